"""The encoders to be looked at: from backbones, checkpoints and the teachers kept of single epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flsl.config.checking import check
from flsl.config.pretrain import HeadSettings, PretrainSettings, Schedule
from flsl.model.backbone import Backbone, load_backbone, read_checkpoint
from flsl.model.head import ProjectionHead
from flsl.model.mean_shift import absolute_temperature, mean_shift
from flsl.runtime.errors import UserError, require_file
from flsl.runtime.progress import warn

_HEAD = "head."


@dataclass(frozen=True)
class Looked:
    """One encoder, frozen.

    Attributes:
        label: what the pictures call it.
        backbone: the encoder.
        head: the projection head; None where the file has none.
        center: (K,) the teacher's, by which assignments are centred; None where they are not.
        tau_sa: τ of self-attention, absolute.
        tau_ca: τ of cross-attention, absolute.
        file: where it comes from.
        epoch: of which epoch it was kept; None for an encoder that was named.
        view: side of the teacher's view that it was pretrained with, in pixels; None where the file does not tell it.
    """

    label: str
    backbone: Backbone
    head: ProjectionHead | None
    tau_sa: float
    tau_ca: float
    file: Path
    epoch: int | None = None
    center: Tensor | None = None
    view: int | None = None

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Return the patch tokens (batch, N, C) of images (batch, 3, S, S) in [0, 1]."""
        statistics = torch.tensor([self.backbone.mean, self.backbone.std], device=images.device)
        mean, std = statistics[..., None, None]
        return self.backbone.tokens((images - mean) / std).float()

    @torch.no_grad()
    def similarities(self, tokens: Tensor) -> Tensor:
        """Return the cosines (batch, N, K) of the tokens' modes among (batch, N, C) with the prototypes."""
        assert self.head is not None
        modes = mean_shift(tokens, tokens, self.tau_sa)
        logits: Tensor = self.head(modes.flatten(0, 1)).unflatten(0, modes.shape[:2])
        return logits

    def assigned(self, similarities: Tensor) -> Tensor:
        """Return the prototype (batch, N) that each mode is assigned to, as in training, from its similarities."""
        return (similarities if self.center is None else similarities - self.center).argmax(-1)


def load_models(named: Sequence[str], epochs: bool, defaults: PretrainSettings, device: torch.device) -> list[Looked]:
    """Load the encoders to compare, in the order given; an encoder's kept epochs come before it.

    Args:
        named: ``FILE`` or ``LABEL=FILE``: our ``checkpoint.pth`` (with its head), ``backbone.safetensors``, or any
            encoder that :func:`flsl.model.backbone.load_backbone` reads.
        epochs: whether the teachers kept in ``epochs`` beside each file are shown as well (``compute.keep_epochs``).
        defaults: temperatures, where a file does not tell its own.
        device: where to compute.

    Raises:
        UserError: when a file is missing or damaged, or two have one label.
    """
    found: list[Looked] = []
    for text in named:
        label, separator, name = text.partition("=")
        if not separator or not label or Path(text).exists():
            label, name = "", text
        path = require_file(name, "an encoder to look at")
        # an epoch's file may be named, too
        final = replace(load_model(path, label, defaults, device), epoch=None)
        if epochs:
            kept = sorted((path.parent / "epochs").glob("epoch-*.pth"))
            found += [
                load_model(one, "", defaults, device, f"{final.label}, " if len(named) > 1 else "")
                for one in kept
                if not _is_of(one, final)
            ]
        found.append(final)
    if epochs and len(found) == len(named):
        warn("--epochs: no epochs were kept beside the encoders; compute.keep_epochs keeps them in training")
    labels = [one.label for one in found]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"--encoder: two are called '{label}'; name them, e.g. --encoder first=FILE")
    return found


def load_model(path: Path, label: str, defaults: PretrainSettings, device: torch.device, prefix: str = "") -> Looked:
    """Load one encoder, with its head where the file holds one of ours."""
    backbone = load_backbone(path).to(device).eval().requires_grad_(False)
    data: Mapping[str, Any] = {} if path.suffix == ".safetensors" else read_checkpoint(path)
    settings, head, center = _recipe(data, path), None, None
    if settings is not None:
        center = _center(data, settings, path, device)
        head = _head(data, settings, backbone.width, path).to(device).eval().requires_grad_(False)
    tau = settings or {"tau_sa": _plain(defaults.tau_sa), "tau_ca": _plain(defaults.tau_ca)}
    sa, ca = (absolute_temperature(_last(tau[name]), backbone.width) for name in ("tau_sa", "tau_ca"))
    epoch = data.get("epoch")
    if not label:
        own = data.get("run", path.stem if path.stem != "backbone" else path.resolve().parent.parent.name)
        label = f"{prefix}epoch {epoch}" if isinstance(epoch, int) else str(own)
    view = (settings or {}).get("views", {}).get("teacher_size")
    return Looked(label, backbone, head, sa, ca, path, epoch if isinstance(epoch, int) else None, center, view)


def _recipe(data: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    """Return the pretraining's settings, where the checkpoint is one of ours."""
    recipe = data.get("recipe")
    if recipe is None:
        return None
    settings = recipe.get("pretrain") if isinstance(recipe, Mapping) else None
    if not isinstance(settings, Mapping) or not {"tau_sa", "tau_ca", "head", "prototypes"} <= settings.keys():
        raise UserError(f"{path}: its recipe is not one of a pretraining; a checkpoint of `flsl pretrain` is expected")
    return settings


def _head(data: Mapping[str, Any], settings: Mapping[str, Any], width: int, path: Path) -> ProjectionHead:
    head = ProjectionHead.from_settings(
        width, int(settings["prototypes"]), check(HeadSettings, settings["head"], str(path))
    )
    weights = {name.removeprefix(_HEAD): value for name, value in data["teacher"].items() if name.startswith(_HEAD)}
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: its projection head does not fit its own settings: {reason}") from None
    return head


def _center(data: Mapping[str, Any], settings: Mapping[str, Any], path: Path, device: torch.device) -> Tensor | None:
    if not settings.get("centering"):
        return None
    objective = data.get("objective")
    center = objective.get("center") if isinstance(objective, Mapping) else None
    if not isinstance(center, Tensor):
        warn(f"{path}: was written without the centre of its assignments; they are shown without it")
        return None
    count = int(settings["prototypes"])
    if center.shape != (count,):
        raise UserError(
            f"{path}: its centre has the shape {tuple(center.shape)}; one value per prototype ({count}) is due"
        )
    return center.to(device)


def _is_of(kept: Path, final: Looked) -> bool:
    """Tell whether a kept epoch is the very encoder that is named."""
    weights = read_checkpoint(kept).get("teacher", {})
    own = final.backbone.vit.state_dict()
    return all(torch.equal(weights[f"encoder.{name}"], value.cpu()) for name, value in own.items()) if weights else True


def _plain(value: float | Schedule) -> Any:
    return value.plain() if isinstance(value, Schedule) else value


def _last(tau: Any) -> float:
    return float(tau["end"] if isinstance(tau, Mapping) else tau)

"""The frozen encoder of a probe: which one, and how its features are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flsl.config.experiment import Experiment
from flsl.model.backbone import Backbone, load_backbone
from flsl.model.vit import build_encoder, timm_arguments
from flsl.runtime.errors import UserError


@dataclass(frozen=True)
class EncoderChoice:
    """What the command line says about the encoder.

    Attributes:
        backbone: our ``backbone.safetensors``, or another checkpoint whose shapes tell what it is.
        model: a timm model name.
        checkpoint: weights for ``model``; without, timm's own are fetched.
        random: leave ``model``, or with none the experiment's encoder, untrained.
    """

    backbone: Path | None = None
    model: str | None = None
    checkpoint: Path | None = None
    random: bool = False

    @property
    def given(self) -> bool:
        """Whether an encoder is named at all."""
        return self.random or any(part is not None for part in (self.backbone, self.model, self.checkpoint))

    @property
    def file(self) -> Path | None:
        """The file that the weights come from, if they do."""
        return self.backbone or self.checkpoint

    @property
    def inputs(self) -> list[Path]:
        """The files to be hashed into a record."""
        return [self.file] if self.file is not None else []

    @property
    def name(self) -> str:
        """A name for the record of an encoder that is no run of the experiment."""
        if self.random:
            return "untrained" if self.model is None else f"{self.model}-untrained"
        return self.model or "base"

    def load(self, experiment: Experiment, device: torch.device) -> Backbone:
        """Load the encoder, and check that the probes' images fit it.

        Raises:
            UserError: when the choice names none or contradicts itself, or the encoder cannot be loaded.
        """
        if not self.given:
            raise UserError("--backbone: name the encoder: --backbone FILE, --model NAME or --random-init")
        if self.random and self.file is not None:
            raise UserError(f"--random-init: an untrained encoder has no weights to load from {self.file}; drop one")
        if self.backbone is not None and self.checkpoint is not None:
            raise UserError("--backbone: give either --backbone or --checkpoint; both name a file of weights")
        backbone = self._random(experiment) if self.random else load_backbone(self.file, self.model)
        backbone.check_size(experiment.features.crop, "features.crop")
        return backbone.requires_grad_(False).eval().to(device)

    def _random(self, experiment: Experiment) -> Backbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.seed)
            if self.model is not None:
                return load_backbone(None, self.model, experiment.features.crop, pretrained=False)
            settings, size = experiment.pretrain.encoder, experiment.pretrain.views.teacher_size
            return Backbone(build_encoder(settings, size), *timm_arguments(settings, size))


def feature_function(
    backbone: Backbone, device: torch.device, precision: str, last_n: int
) -> Callable[[Tensor], Tensor]:
    """Return the function from 8-bit crops (batch, 3, H, W) to the patch tokens of the last blocks.

    Args:
        backbone: on ``device``.
        device: where to compute.
        precision: ``auto`` (bf16 on CUDA, else float32), ``bf16`` or ``float32``.
        last_n: how many blocks.

    Returns:
        a function that gives (batch, last_n, N, C) on ``device``, in the precision of the computation; the last block
        comes last.
    """
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    mean = torch.tensor(backbone.mean, device=device)[:, None, None]
    std = torch.tensor(backbone.std, device=device)[:, None, None]

    @torch.inference_mode()
    def tokens(crops: Tensor) -> Tensor:
        images = (crops.to(device, non_blocking=True).float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            blocks = [backbone.tokens(images)] if last_n == 1 else backbone.block_tokens(images, last_n)
        return torch.stack(blocks, 1)

    return tokens


def mean_tokens(tokens: Tensor) -> Tensor:
    """Return the mean patch token of each block, (batch, blocks, C), float32, of (batch, blocks, N, C)."""
    return tokens.float().mean(2)

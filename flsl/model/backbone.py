"""A frozen encoder for evaluation, from our files, the authors', DINO's, or any of timm's vision transformers."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flsl.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from flsl.model.vit import multiply_patches, sincos_positions
from flsl.runtime.checkpoint import why_unreadable
from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import atomic

_MODEL_KEY, _ARGUMENTS_KEY, _STATISTICS_KEY = "timm_model", "timm_arguments", "image_mean_and_std"
_ENCODER_PARTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "blocks", "norm", "norm_pre", "fc_norm")


class Backbone(nn.Module):
    """A vision transformer that gives patch tokens.

    Attributes:
        vit: the timm model.
        patch_size: side of a patch, in pixels.
        width: token width C.
        depth: number of blocks.
        mean, std: of the images that it expects, for values in [0, 1].
        name: the timm model's name.
        arguments: with which ``timm.create_model`` builds it.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        name: str,
        arguments: Mapping[str, Any],
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        multiply_patches(vit)
        self.vit = vit.eval()
        self.name, self.arguments = name, dict(arguments)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.width: int = vit.embed_dim
        self.depth: int = len(vit.blocks)
        self.mean, self.std = mean, std

    def tokens(self, images: Tensor) -> Tensor:
        """Return the patch tokens (batch, N, C) after the final LayerNorm, row by row, without class or registers.

        Args:
            images: (batch, 3, height, width), normalised by ``mean`` and ``std``; sides multiples of the patch size.
        """
        tokens: Tensor = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        # some timm models normalise after pooling; the norm is the same layer
        normalised: Tensor = self.vit.fc_norm(tokens)
        return normalised

    def block_tokens(self, images: Tensor, last_n: int) -> list[Tensor]:
        """Return the normalised patch tokens (batch, N, C) of each of the last ``last_n`` blocks, the last one last.

        Raises:
            UserError: as :meth:`check_blocks`.
        """
        self.check_blocks(last_n)
        tokens = self.vit.forward_intermediates(
            images, indices=last_n, norm=True, output_fmt="NLC", intermediates_only=True
        )
        return [self.vit.fc_norm(block) for block in tokens]

    def statistics(self) -> dict[str, str]:
        """Return the entry of a file's metadata that tells :attr:`mean` and :attr:`std`; none if ImageNet's."""
        if (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            return {}
        return {_STATISTICS_KEY: json.dumps([self.mean, self.std])}

    def save(self, path: Path | str, **about: str) -> None:
        """Write it as :func:`save_backbone` does, with :meth:`statistics`."""
        save_backbone(path, self.vit, self.name, self.arguments, **self.statistics(), **about)

    def digest(self) -> str:
        """Return the SHA-256 of the names and bytes of all weights, and of :meth:`statistics`."""
        found = hashlib.sha256("".join(self.statistics().values()).encode())
        for name, value in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def check_blocks(self, last_n: int) -> None:
        """Refuse more blocks than there are.

        Raises:
            UserError: naming the settings that ask for them.
        """
        if not 1 <= last_n <= self.depth:
            raise UserError(
                f"the last {last_n} blocks are asked for (linear.blocks, features.blocks), "
                f"but {self.name} has {self.depth}"
            )

    def check_size(self, size: int, setting: str) -> None:
        """Refuse an image side that is no multiple of the patch size.

        Raises:
            UserError: naming ``setting``.
        """
        if size % self.patch_size:
            near = max(1, round(size / self.patch_size)) * self.patch_size
            raise UserError(
                f"{setting}: {size} is not a multiple of the patch size ({self.patch_size}) of {self.name}; {near} is"
            )


def load_backbone(
    checkpoint: Path | str | None, model: str | None = None, image_size: int | None = None, pretrained: bool = True
) -> Backbone:
    """Load an encoder for evaluation.

    Args:
        checkpoint: our ``backbone.safetensors`` or ``checkpoint.pth``; the authors' or DINO's checkpoint
            (``teacher`` and ``student`` dictionaries with ``module.`` and ``backbone.`` prefixes; the teacher is
            taken); a plain timm state dictionary; or None for timm's own weights of ``model``.
        model: timm model name; not needed where the checkpoint tells (ours) or its shapes do (width / 64 heads).
        image_size: side in pixels that timm's own models are built for; None takes theirs. Any size works afterwards.
        pretrained: with no checkpoint, whether to load timm's weights (False: random ones).

    Raises:
        UserError: naming the file or the model that cannot be loaded.
    """
    if checkpoint is None:
        if model is None:
            raise UserError("--model: a timm model name or a checkpoint is needed")
        return _from_timm(model, image_size, pretrained)
    path = require_file(checkpoint, "an encoder's weights")
    about: Mapping[str, Any]
    if path.suffix == ".safetensors":
        weights, about = _read_safetensors(path)
        weights = encoder_weights(weights, path)
    else:
        about = read_checkpoint(path)
        weights = encoder_weights(about, path)
    if _MODEL_KEY in about and model is None:
        arguments = json.loads(about[_ARGUMENTS_KEY])
        vit = _create(about[_MODEL_KEY], arguments)
        _load(vit, weights, path)
        backbone = Backbone(vit, about[_MODEL_KEY], arguments)
    else:
        backbone = _from_weights(weights, model, path)
    backbone.mean, backbone.std = _statistics(about, model)
    return backbone


def save_backbone(path: Path | str, vit: nn.Module, name: str, arguments: Mapping[str, Any], **about: str) -> None:
    """Write an encoder so that ``timm.create_model(name, **arguments)`` loads it with no key renamed.

    Args:
        path: the ``.safetensors`` file; its metadata holds the name, the arguments as JSON and ``about``.
        vit: the encoder, from :func:`flsl.model.vit.build_encoder`.
        name: timm model name.
        arguments: of ``timm.create_model``.
        about: further metadata, e.g. the run's name and step.
    """
    weights = {key: value.detach().cpu().contiguous() for key, value in vit.state_dict().items()}
    metadata = {**timm_metadata(name, arguments), "format": "pt", **about}
    data = safetensors.torch.save(weights, metadata)
    # safetensors writes the metadata in any order; equal encoders are to be equal files
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text, memoryview(data)[end:]):
            file.write(part)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a ``.pth`` file of tensors and plain data.

    Raises:
        UserError: when it is damaged, or holds objects that only running code from the file could make.
    """
    try:
        # the authors' and DINO's files carry their parsed arguments: a plain namespace
        with torch.serialization.safe_globals([argparse.Namespace]):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a wide family here, none of them our fault
        raise UserError(
            f"{path}: cannot be read as a checkpoint of tensors and plain data ({why_unreadable(error)})"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {type(data).__name__}, where a dictionary of tensors is expected")
    return data


def timm_metadata(name: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries by which :func:`load_backbone` knows an encoder's timm model in our files."""
    return {_MODEL_KEY: name, _ARGUMENTS_KEY: json.dumps(dict(arguments))}


def encoder_weights(data: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Find the encoder's state dictionary in a checkpoint: ours, the authors', DINO's, or a plain one.

    Raises:
        UserError: when no patch embedding is found in it.
    """
    found: Mapping[str, Any] = data
    for key in ("teacher", "student", "model", "state_dict"):
        if isinstance(data.get(key), Mapping):
            found = data[key]
            break
    weights: dict[str, Tensor] = {}
    for key, value in found.items():
        for prefix in ("module.", "_orig_mod.", "backbone.", "encoder."):
            key = key.removeprefix(prefix)
        if isinstance(value, Tensor):
            weights[key] = value
    if "patch_embed.proj.weight" not in weights:
        some = ", ".join(list(found)[:4])
        raise UserError(
            f"{path}: holds no vision transformer (no patch_embed.proj.weight among its keys: {some}, …); "
            "expected are our checkpoints, the authors', DINO's or timm's"
        )
    # the heads of the authors' and DINO's files are kept beside the backbone under other first names
    return {key: value for key, value in weights.items() if key.split(".")[0] in _ENCODER_PARTS}


def _statistics(about: Mapping[str, Any], model: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation that a file tells, or a timm name that says which weights it holds."""
    if _STATISTICS_KEY in about:
        mean, std = json.loads(about[_STATISTICS_KEY])
        return tuple(mean), tuple(std)
    weights = timm.get_pretrained_cfg(model) if model is not None and "." in model and timm.is_model(model) else None
    return (IMAGENET_MEAN, IMAGENET_STD) if weights is None else (tuple(weights.mean), tuple(weights.std))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a safetensors file ({error})") from None


def _create(name: str, arguments: Mapping[str, Any], pretrained: bool = False) -> VisionTransformer:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:1] or ["vit_small_patch16_224"]
        raise UserError(f"--model: timm has no model '{name}'; {near[0]} is one that it has")
    try:
        vit = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        reason = str(error).splitlines()[0]
        if pretrained:
            raise UserError(
                f"--model {name}: its weights cannot be had from the model hub ({reason}); name a --checkpoint"
            ) from None
        raise UserError(f"--model {name}: timm cannot build it as a vision transformer: {reason}") from None
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"--model {name}: is not one of timm's VisionTransformers, which give patch tokens")
    patch, stride = vit.patch_embed.patch_size[0], vit.patch_embed.feat_ratio()
    if patch != stride:
        raise UserError(
            f"--model {name}: takes patches of {patch} of features, {stride} pixels apart; a model whose patches are "
            "of pixels is needed, such as vit_small_patch16_224"
        )
    return vit


def _from_timm(name: str, image_size: int | None, pretrained: bool) -> Backbone:
    size = {} if image_size is None else {"img_size": image_size}
    arguments = {"num_classes": 0, "dynamic_img_size": True, **size}
    vit = _create(name, arguments, pretrained)
    return Backbone(vit, name, arguments, tuple(vit.pretrained_cfg["mean"]), tuple(vit.pretrained_cfg["std"]))


def _from_weights(weights: dict[str, Tensor], model: str | None, path: Path) -> Backbone:
    """Build the vision transformer that a state dictionary's shapes describe, and load it."""
    kernel = weights["patch_embed.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    depth = 1 + max((int(key.split(".")[1]) for key in weights if key.startswith("blocks.")), default=-1)
    if not depth:
        raise UserError(f"{path}: holds a patch embedding but no transformer blocks (blocks.0.…)")
    named = None if model is None else _create(model, {"num_classes": 0})
    prefix = int("cls_token" in weights)
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    positions = weights.get("pos_embed")
    if positions is None:
        # fixed positions need not be stored: they are made again for the paper's 224-pixel grid
        side = 224 // patch
        positions = sincos_positions((side, side), width)
        weights["pos_embed"] = torch.cat([positions.new_zeros(1, prefix, width), positions], 1)
        tokens = side * side
    elif named is not None and named.no_embed_class:
        tokens = positions.shape[1]
    else:
        tokens = positions.shape[1] - prefix - registers
        if prefix and not _is_square(tokens) and _is_square(tokens + 1):
            # the authors' ViT keeps a class token that it does not use; all positions are of patches
            del weights["cls_token"]
            prefix, tokens = 0, tokens + 1
    if not _is_square(tokens):
        raise UserError(f"{path}: its {tokens} positions make no square grid of patches")
    side = math.isqrt(tokens)
    arguments: dict[str, Any] = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "img_size": side * patch,
        "class_token": bool(prefix),
        "reg_tokens": registers,
        "global_pool": "avg",
        "fc_norm": "fc_norm.weight" in weights,
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    if named is None or model is None:
        model, arguments["num_heads"] = "vit_small_patch16_224", max(1, width // 64)
    else:
        _check_architecture(named, model, arguments, path)
    vit = _create(model, arguments)
    _load(vit, weights, path)
    return Backbone(vit, model, arguments)


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _check_architecture(named: VisionTransformer, model: str, arguments: Mapping[str, Any], path: Path) -> None:
    """Refuse weights of another width, depth or patch size than the named model's."""
    theirs = {"embed_dim": named.embed_dim, "depth": len(named.blocks), "patch_size": named.patch_embed.patch_size[0]}
    for key, value in theirs.items():
        if arguments[key] != value:
            raise UserError(f"{path}: has {key} {arguments[key]}, but {model} has {value}; name another --model")


def _load(vit: VisionTransformer, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        vit.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: its weights do not fit the model: {reason}") from None

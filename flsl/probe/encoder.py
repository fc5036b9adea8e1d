"""The frozen encoder of a probe: which one, and how its features are computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flsl.config.experiment import Experiment
from flsl.model.backbone import Backbone
from flsl.model.choice import EncoderChoice


def load_frozen(choice: EncoderChoice, experiment: Experiment, device: torch.device) -> Backbone:
    """Load the encoder for a probe, and check that the probes' images fit it.

    Raises:
        UserError: when the choice names none or contradicts itself, or the encoder cannot be loaded.
    """
    backbone = choice.load(experiment)
    backbone.check_size(experiment.features.crop, "features.crop")
    return backbone.requires_grad_(False).eval().to(device)


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

"""AdamW for fine-tuning a detector: what decays, how fast each layer learns, and the 1x schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flsl.config.detect import RecipeSettings

_POSITIONS = ("pos_embed", "cls_token", "reg_token")


def parameter_groups(model: nn.Module, recipe: RecipeSettings, depth: int) -> list[dict[str, Any]]:
    """Return AdamW's groups, each with its ``scale`` of the learning rate.

    Biases, norms and positions do not decay. A ViT block's rate is ``layer_decay`` times that of the block after it
    (Bao et al., BEiT); the embeddings are below the first block, the pyramid and the heads have the full rate.

    Args:
        model: with the encoder as ``backbone.encoder`` (any prefix).
        recipe: settings.
        depth: the encoder's number of blocks.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name.endswith(_POSITIONS) else recipe.weight_decay
        scale = recipe.layer_decay ** (depth + 1 - layer_of(name, depth))
        groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "scale": scale, "lr": 0.0}
        for (decay, scale), members in groups.items()
    ]


def layer_of(name: str, depth: int) -> int:
    """Return a parameter's layer: 0 the embeddings, 1 … depth the blocks, depth + 1 all else."""
    _, found, inner = name.partition("encoder.")
    if not found:
        return depth + 1
    if inner.startswith("blocks."):
        return int(inner.split(".")[1]) + 1
    return 0 if inner.startswith((*_POSITIONS, "patch_embed", "norm_pre")) else depth + 1


def learning_rate(step: int, steps_per_epoch: int, recipe: RecipeSettings) -> float:
    """Return the rate of ``step`` (from 0): a linear warm-up, then a tenth after each milestone."""
    rate = recipe.learning_rate * recipe.batch_size / 8
    if step < recipe.warmup_steps:
        rate *= 0.001 + 0.999 * step / recipe.warmup_steps
    for milestone in recipe.milestones:
        if step >= milestone * steps_per_epoch:
            rate *= 0.1
    return rate


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to ``rate`` times its scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]

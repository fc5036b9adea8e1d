"""Mean shift as non-parametric attention (FLSL paper, section 3.1): where each query's mode lies among the keys."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_shift(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Move each query to the mean-shift mode of its keys: softmax(τ Q Kᵀ) K.

    There are no learned weights, and the keys are the values too. The softmax is computed in float32 whatever autocast
    says. No (M × N) matrix is kept where a fused attention kernel exists.

    Args:
        queries: (batch, M, C) tokens.
        keys: (batch, N, C) tokens.
        temperature: τ, the factor on the inner products; 0 gives the mean of the keys.

    Returns:
        The modes, (batch, M, C), float32.

    >>> mean_shift(torch.ones(1, 1, 2), torch.tensor([[[0.0, 0.0], [2.0, 2.0]]]), temperature=0.0)
    tensor([[[1., 1.]]])
    """
    # queries and keys of two views may differ in type under autocast; float32 costs little beside the encoder
    with torch.autocast(queries.device.type, enabled=False):
        values = keys.float()
        return F.scaled_dot_product_attention(queries.float(), values, values, scale=temperature)


def attention_map(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return the attention weights softmax(τ Q Kᵀ) of :func:`mean_shift`, (batch, M, N), float32."""
    return torch.softmax(temperature * queries.float() @ keys.float().transpose(1, 2), dim=-1)


def absolute_temperature(relative: float, width: int) -> float:
    """Turn a temperature setting into τ for tokens of the given width.

    Settings are in units of √384 / C: for ViT-S (C = 384) 0.1 means 0.1/√384, and for another width τ·C, and with it
    the sharpness of the attention between layer-normalised tokens, stays the same.
    """
    return relative * math.sqrt(384) / width

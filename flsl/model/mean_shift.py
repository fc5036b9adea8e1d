"""Mean shift as non-parametric attention (FLSL paper, section 3.1): where each query's mode lies among the keys."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_shift(
    queries: Tensor, keys: Tensor, temperature: float, prior: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """Move each query to the mean-shift mode of its keys: softmax(τ Q Kᵀ) K.

    There are no learned weights, and the keys are the values too. The softmax is computed in float32 whatever autocast
    says. No (M × N) matrix is kept where a fused attention kernel exists.

    Args:
        queries: (batch, M, C) tokens.
        keys: (batch, N, C) tokens.
        temperature: τ, the factor on the inner products; 0 gives the mean of the keys.
        prior: (batch, M, N) an attention from elsewhere, rows summing to 1, or None.
        share: m in m · softmax(τ Q Kᵀ) + (1 - m) · prior, the attention where there is a prior.

    Returns:
        The modes, (batch, M, C), float32.

    >>> mean_shift(torch.ones(1, 1, 2), torch.tensor([[[0.0, 0.0], [2.0, 2.0]]]), temperature=0.0)
    tensor([[[1., 1.]]])
    """
    # queries and keys of two views may differ in type under autocast; float32 costs little beside the encoder
    with torch.autocast(queries.device.type, enabled=False):
        values = keys.float()
        modes = F.scaled_dot_product_attention(queries.float(), values, values, scale=temperature)
        # rows of both sum to 1, so that the mixture's do, and its modes are the mixture of the two's
        return modes if prior is None else share * modes + (1 - share) * (prior.float() @ values)


def attention_map(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return the attention weights softmax(τ Q Kᵀ) of :func:`mean_shift`, (batch, M, N), float32."""
    with torch.autocast(queries.device.type, enabled=False):
        return torch.softmax(temperature * queries.float() @ keys.float().transpose(1, 2), dim=-1)


def sharp_attention_map(queries: Tensor, keys: Tensor, temperature: float, sharpness: float) -> Tensor:
    """Return nearly even attention on the keys that get more than their row's mean, (batch, M, N), float32.

    With A = softmax(τ Q Kᵀ): σ(sharpness · (A - 1/N)), its rows normalised to sum to 1.
    """
    attention = attention_map(queries, keys, temperature)
    mask = torch.sigmoid(sharpness * (attention - 1 / keys.shape[1]))
    return mask / mask.sum(-1, keepdim=True)


def absolute_temperature(relative: float, width: int) -> float:
    """Turn a temperature setting into τ for tokens of the given width.

    Settings are in units of √384 / C: for ViT-S (C = 384) 0.1 means 0.1/√384, and for another width τ·C, and with it
    the sharpness of the attention between layer-normalised tokens, stays the same.
    """
    return relative * math.sqrt(384) / width

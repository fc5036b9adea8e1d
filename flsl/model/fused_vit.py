"""The ViT's blocks in training on a GPU, between the matrix products by fused kernels that read and write no more than
they must: attention on packed projections, residual sum with the norm that follows, GELU.

A training step of a small ViT is bound by memory traffic, not by its products. Each kernel's backward pass also gives
the gradient of the bias that the linear layer before it has added, for which PyTorch would read the gradient again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from flsl.model.fused_attention import HEAD_SIZE, LONGEST, attend, available
from flsl.model.fused_gelu import gelu
from flsl.model.fused_norm import add_norm, norm


def can_fuse(encoder: VisionTransformer) -> bool:
    """Return whether :class:`FusedEncoder` computes what this encoder does, where it is: plain blocks with biases."""
    if not available(encoder.blocks[0].norm1.weight):
        return False
    plain = isinstance(encoder.norm, nn.LayerNorm) and isinstance(encoder.norm_pre, nn.Identity)
    return plain and isinstance(encoder.patch_drop, nn.Identity) and all(map(_is_plain, encoder.blocks))


def _is_plain(block: Any) -> bool:
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    attention, mlp = block.attn, block.mlp
    unused = (block.ls1, block.ls2, attention.q_norm, attention.k_norm, attention.norm, mlp.norm)
    drops = (attention.attn_drop, attention.proj_drop, mlp.drop1, mlp.drop2)
    return (
        all(isinstance(module, nn.Identity) for module in unused)
        and not any(drop.p for drop in drops)
        and getattr(attention, "gate", None) is None
        and isinstance(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in _linear_layers(block))
        and all(isinstance(layer, nn.LayerNorm) for layer in (block.norm1, block.norm2))
    )


def _linear_layers(block: Block) -> tuple[nn.Linear, ...]:
    return block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2


class FusedEncoder:
    """An encoder's tokens in training, by fused kernels.

    Args:
        encoder: one that :func:`can_fuse`.
        stream: type of the residual stream, float32 or bfloat16.
        half: type of all else but sums, that of the autocast (float32 without one).
        backend: what compiles the embedding of the patches.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        stream: torch.dtype,
        half: torch.dtype = torch.bfloat16,
        backend: str = "inductor",
    ) -> None:
        self._encoder, self._half = encoder, half
        self._embed = torch.compile(partial(_embedded, encoder, stream), dynamic=False, backend=backend)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the tokens (batch, N, C) of images (batch, 3, H, W), float32, after the last norm."""
        blocks = list(self._encoder.blocks)
        x = self._embed(images)
        normed = norm(x, *_of(blocks[0].norm1), self._half)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            branch = _linear(block.attn.proj, _attended(block.attn, normed))
            dropped = _factor(block.drop_path1)
            x, normed = add_norm(x, branch, block.attn.proj.bias, dropped, *_of(block.norm2), self._half)
            branch = _linear(block.mlp.fc2, gelu(_linear(block.mlp.fc1, normed), block.mlp.fc1.bias))
            dropped = _factor(block.drop_path2)
            last = following is None
            after, out = (self._encoder.norm, torch.float32) if last else (following.norm1, self._half)
            x, normed = add_norm(x, branch, block.mlp.fc2.bias, dropped, *_of(after), out)
        return normed


def _embedded(encoder: VisionTransformer, stream: torch.dtype, images: Tensor) -> Tensor:
    embedded: Tensor = encoder._pos_embed(encoder.patch_embed(images))
    return embedded.to(stream)


def _linear(layer: nn.Linear, tokens: Tensor) -> Tensor:
    """Return what the layer makes of the tokens; whatever comes next gives the bias its gradient."""
    assert layer.bias is not None
    return F.linear(tokens, layer.weight, layer.bias.detach())


def _attended(attention: Attention, tokens: Tensor) -> Tensor:
    batch, count, _ = tokens.shape
    heads = (batch, count, 3, attention.num_heads, attention.head_dim)
    if attention.head_dim == HEAD_SIZE and count <= LONGEST:
        return attend(_linear(attention.qkv, tokens).view(heads), attention.qkv.bias)
    query, key, value = attention.qkv(tokens).view(heads).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, -1)


def _of(layer: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return layer.weight, layer.bias, layer.eps


def _factor(drop_path: nn.Module) -> Tensor | None:
    """Return the factors of each sample's branch, (batch, 1, 1), or None where no branch is dropped."""
    factor: Tensor | None = getattr(drop_path, "factor", None)
    return factor if drop_path.training else None

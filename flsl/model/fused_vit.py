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
from flsl.model.vit import drop_path_factors


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
    """An encoder's tokens in training, by fused kernels; views of several sizes are computed as one batch of tokens.

    Args:
        encoder: one that :func:`can_fuse`.
        stream: type of the residual stream, float32 or bfloat16.
        half: type of all else but sums, that of the autocast (float32 without one).
        backend: of ``torch.compile``, which joins the launches of a block; ranks can send the gradients of the last
            blocks while those of the first ones are computed.
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
        self._block = torch.compile(_block, dynamic=False, backend=backend)

    def __call__(self, views: list[Tensor], uniforms: list[Tensor] | None = None) -> list[Tensor]:
        """Return the tokens after the last norm, float32, of each group of views.

        Args:
            views: images (batch, 3, H, W) of each group.
            uniforms: of each group the numbers for stochastic depth, see :func:`flsl.model.vit.set_drop_path`; None
                where no branch is dropped.

        Returns:
            (batch, N, C) of each group.
        """
        encoder = self._encoder
        embedded = [self._embed(images) for images in views]
        sizes = tuple((len(tokens), tokens.shape[1]) for tokens in embedded)
        # a row is a token: (tokens, 1, C)
        x = torch.cat([tokens.flatten(0, 1) for tokens in embedded])[:, None]
        factors = self._factors(uniforms, sizes)
        afters = [*(block.norm1 for block in encoder.blocks[1:]), encoder.norm]
        normed = norm(x, *_of(encoder.blocks[0].norm1), self._half)
        for number, (block, after) in enumerate(zip(encoder.blocks, afters, strict=True)):
            out = torch.float32 if after is encoder.norm else self._half
            own = factors[2 * number : 2 * number + 2]
            x, normed = self._block(block, after, sizes, x, normed, own, self._half, out)
        parts = torch.split(normed, [batch * count for batch, count in sizes])
        return [part.view(*size, -1) for part, size in zip(parts, sizes, strict=True)]

    def _factors(self, uniforms: list[Tensor] | None, sizes: tuple[tuple[int, int], ...]) -> list[Tensor | None]:
        """Return each branch's factors, one a token, or None where it is never dropped."""
        if uniforms is None:
            return [None] * (2 * len(self._encoder.blocks))
        groups = [drop_path_factors(self._encoder, numbers) for numbers in uniforms]
        dropped = [number for number, factor in enumerate(groups[0]) if factor is not None]
        if not dropped:
            return list(groups[0])
        own = [torch.stack([group[number] for number in dropped]) for group in groups]  # type: ignore[misc]
        spread = [f[..., None].expand(-1, -1, count).flatten(1) for f, (_, count) in zip(own, sizes, strict=True)]
        rows = iter(torch.cat(spread, 1).unbind(0))
        return [None if factor is None else next(rows) for factor in groups[0]]


def _embedded(encoder: VisionTransformer, stream: torch.dtype, images: Tensor) -> Tensor:
    embedded: Tensor = encoder._pos_embed(encoder.patch_embed(images))
    return embedded.to(stream)


def _block(
    block: Any,
    after: nn.LayerNorm,
    sizes: tuple[tuple[int, int], ...],
    x: Tensor,
    normed: Tensor,
    factors: list[Tensor | None],
    half: torch.dtype,
    out: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Compute a block and the norm ``after`` it, of which ``normed`` is what the one before it gave."""
    attention, mlp = block.attn, block.mlp
    branch = _linear(attention.proj, _attended(attention, normed, sizes))
    x, normed = add_norm(x, branch, attention.proj.bias, factors[0], *_of(block.norm2), half)
    branch = _linear(mlp.fc2, gelu(_linear(mlp.fc1, normed), mlp.fc1.bias))
    return add_norm(x, branch, mlp.fc2.bias, factors[1], *_of(after), out)


def _attended(attention: Attention, tokens: Tensor, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    heads = (3, attention.num_heads, attention.head_dim)
    if attention.head_dim == HEAD_SIZE and all(count <= LONGEST for _, count in sizes):
        qkv = _linear(attention.qkv, tokens).view(-1, *heads)
        return attend(qkv, sizes, attention.qkv.bias)[:, None]
    parts = torch.split(attention.qkv(tokens), [batch * count for batch, count in sizes])
    mixed = []
    for part, size in zip(parts, sizes, strict=True):
        query, key, value = part.view(*size, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed.append(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(mixed)[:, None]


def _linear(layer: nn.Linear, tokens: Tensor) -> Tensor:
    """Return what the layer makes of the tokens; whatever comes next gives the bias its gradient."""
    assert layer.bias is not None
    return F.linear(tokens, layer.weight, layer.bias.detach())


def _of(layer: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return layer.weight, layer.bias, layer.eps

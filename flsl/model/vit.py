"""The encoder: timm's ViT without a class token, on fixed sine-cosine positions (arXiv 2306.06203)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import LayerScale, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint

from flsl.config.pretrain import EncoderSettings
from flsl.runtime.errors import UserError


def timm_arguments(settings: EncoderSettings, image_size: int) -> tuple[str, dict[str, Any]]:
    """Return the timm model name and the arguments with which ``timm.create_model`` builds the encoder.

    Args:
        settings: the encoder's settings.
        image_size: side of the teacher's view, for whose grid the positions are made, in pixels.
    """
    sizes = {"embed_dim": settings.width, "depth": settings.depth, "num_heads": settings.heads}
    return settings.name, {
        "patch_size": settings.patch_size,
        "img_size": image_size,
        "class_token": False,
        # average pooling of normalised tokens is what the probes measure; fc_norm would normalise after pooling
        "global_pool": "avg",
        "fc_norm": False,
        "num_classes": 0,
        "dynamic_img_size": True,
        **{name: value for name, value in sizes.items() if value is not None},
    }


def build_encoder(settings: EncoderSettings, image_size: int, drop_path: float = 0.0) -> VisionTransformer:
    """Build the untrained encoder; ``encoder.forward_features(images)`` gives its tokens.

    Images are (batch, 3, height, width), normalised, sides multiples of the patch size; tokens are (batch, N, C) after
    the final LayerNorm, row by row, with no class token. Positions are resampled (bicubic) to the images' grid.

    Args:
        settings: the encoder's settings.
        image_size: side of the images that positions are made for, in pixels.
        drop_path: stochastic depth of the last block (0 in the teacher), rising linearly from 0 in the first.

    Raises:
        UserError: when timm has no such vision transformer or the sizes do not fit.
    """
    name, arguments = timm_arguments(settings, image_size)
    if not timm.is_model(name):
        raise UserError(f"pretrain.encoder.name: timm has no model '{name}'; vit_small_patch16_224 is one that it has")
    try:
        encoder = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"pretrain.encoder: timm cannot build '{name}' with {arguments}: {error}; "
            "width must be a multiple of heads, and the model one of timm's VisionTransformers"
        ) from None
    if not isinstance(encoder, VisionTransformer) or encoder.num_prefix_tokens:
        raise UserError(
            f"pretrain.encoder.name: '{name}' is not one of timm's VisionTransformers without prefix tokens"
        )
    if not all(hasattr(block, "drop_path1") and hasattr(block, "attn") for block in encoder.blocks):
        raise UserError(
            f"pretrain.encoder.name: the blocks of '{name}' compute several branches at a time; "
            "a model of plain blocks such as vit_small_patch16_224 is needed"
        )
    multiply_patches(encoder)
    if settings.position == "sincos":
        _fix_positions(encoder, settings.position_strength)
    for index, block in enumerate(encoder.blocks):
        rate = drop_path * index / max(1, len(encoder.blocks) - 1)
        if rate > 0:
            block.drop_path1, block.drop_path2 = SampledDropPath(rate), SampledDropPath(rate)
    return encoder


class PatchProjection(nn.Conv2d):
    """A convolution whose stride is its kernel, computed on CUDA as one matrix product over the patches.

    cuDNN has no fast kernel for it: a plain training step of ViT-S/16 took a fifth longer (256 images, H200).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Project the patches of images (batch, channels, height, width) to (batch, C, rows, columns)."""
        return self.product(input) if input.is_cuda else super().forward(input)

    def product(self, images: Tensor) -> Tensor:
        """Return what :meth:`forward` does, by the product."""
        high, wide = self.kernel_size
        batch, channels, height, width = images.shape
        patches = images.reshape(batch, channels, height // high, high, width // wide, wide)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def multiply_patches(encoder: VisionTransformer) -> None:
    """Let the patch embedding be a :class:`PatchProjection` with the weights that it has."""
    old = encoder.patch_embed.proj
    # (timm pads images to whole patches before, where that is asked for)
    if type(old) is not nn.Conv2d or old.kernel_size != old.stride or old.groups != 1 or any(old.padding):
        return
    new: PatchProjection = skip_init(  # type: ignore[no-untyped-call]
        PatchProjection, old.in_channels, old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None
    )
    new.weight, new.bias = old.weight, old.bias
    encoder.patch_embed.proj = new


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return the fixed 2-D sine-cosine position embedding, (1, rows × columns, width)."""
    if width % 4:
        raise UserError(f"pretrain.encoder.width: {width} is not a multiple of 4, which sine-cosine positions need")
    positions: Tensor = build_sincos2d_pos_embed(list(grid), width)
    return positions[None]


@torch.no_grad()
def _fix_positions(encoder: VisionTransformer, strength: float) -> None:
    positions = sincos_positions(encoder.patch_embed.grid_size, encoder.embed_dim)
    encoder.pos_embed.copy_(strength * positions)
    encoder.pos_embed.requires_grad_(False)


def use_plain_attention(encoder: VisionTransformer) -> None:
    """Let the blocks multiply out their attention instead of calling the fused kernel.

    On the CPU the fused kernel's backward pass in bfloat16 takes several times as long as the plain products.
    """
    for block in encoder.blocks:
        block.attn.fused_attn = False


def round_residuals(encoder: VisionTransformer) -> None:
    """Let the residual stream, what the blocks add to, be bfloat16 under autocast, which leaves it in float32.

    It is read and written more often than anything else in a block: a tenth of a training step's memory is saved, and a
    fifth of what the norms, activations and sums of a compiled block read and write.
    """
    encoder.blocks[0].register_forward_pre_hook(partial(_cast, torch.bfloat16))
    encoder.norm.register_forward_pre_hook(partial(_cast, torch.float32))
    for module in encoder.blocks.modules():
        if isinstance(module, LayerScale):  # float32 factors would make a branch, and with it the stream, float32
            module.register_forward_hook(_round)


def _cast(dtype: torch.dtype, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    tokens, *rest = arguments
    return (_as(dtype, tokens), *rest)


def _round(module: nn.Module, arguments: tuple[Tensor, ...], scaled: Tensor) -> Tensor:
    return _as(torch.bfloat16, scaled)


def _as(dtype: torch.dtype, tokens: Tensor) -> Tensor:
    # without autocast the blocks' weights would be of another type
    return tokens.to(dtype) if torch.is_autocast_enabled(tokens.device.type) else tokens


def compile_blocks(encoder: VisionTransformer) -> None:
    """Compile the blocks, which share what is compiled; each size of images is compiled for itself.

    Ranks can send the gradients of the last blocks while those of the first ones are computed.

    Args:
        encoder: from :func:`build_encoder`.
    """
    for block in encoder.blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def recompute_activations(encoder: VisionTransformer) -> None:
    """Let the blocks keep only their input for the backward pass, and compute the rest again there.

    A block takes about a third longer in training and keeps about a tenth as much (timm's own switch would recompute
    with the coin tosses of whichever views came last).
    """
    for block in encoder.blocks:
        block.forward = partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    drops = [layer for layer in (block.drop_path1, block.drop_path2) if isinstance(layer, SampledDropPath)]
    factors = [layer.factor for layer in drops]

    def run(tokens: Tensor) -> Tensor:
        for layer, factor in zip(drops, factors, strict=True):
            layer.factor = factor
        return forward(tokens)

    found: Tensor = checkpoint(run, tokens, use_reentrant=False, preserve_rng_state=False)
    return found


class SampledDropPath(nn.Module):
    """Stochastic depth whose coin tosses are given from outside, so that sample i's are its own in any batch.

    timm's layer draws from the process's generator: what happens to a sample would then depend on its rank and on
    restarts. :func:`set_drop_path` sets the tosses before each forward.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.factor: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Scale each sample's residual branch (batch, N, C) by 0 or 1 / (1 - rate); identity when evaluating."""
        if not self.training or self.factor is None:
            return branch
        return branch * self.factor.to(branch.dtype)


def set_drop_path(encoder: VisionTransformer, uniforms: Tensor) -> None:
    """Set which residual branches the next training forward drops.

    Args:
        encoder: from :func:`build_encoder`.
        uniforms: (batch, 2 × depth) numbers in [0, 1) on the encoder's device; a branch of rate p is dropped below p.
    """
    for layer, factor in zip(_drop_paths(encoder), drop_path_factors(encoder, uniforms), strict=True):
        if factor is not None:
            layer.factor = factor[:, None, None]


def drop_path_factors(encoder: VisionTransformer, uniforms: Tensor) -> list[Tensor | None]:
    """Return what :func:`set_drop_path` sets: of each of the 2 × depth branches the samples' factors, (batch,).

    None stands for a branch that is never dropped.
    """
    layers = _drop_paths(encoder)
    rates = [layer.rate for layer in layers if isinstance(layer, SampledDropPath)]
    if not rates:
        return [None] * len(layers)
    columns = uniforms.T.contiguous().unbind(0)
    sampled = [c for c, layer in zip(columns, layers, strict=True) if isinstance(layer, SampledDropPath)]
    # all layers at a time: a few launches of a GPU instead of three for each
    kept = (torch.stack(torch._foreach_sub(sampled, rates)) >= 0).float().unbind(0)
    factors = iter(torch._foreach_div(kept, [1 - rate for rate in rates]))
    return [next(factors) if isinstance(layer, SampledDropPath) else None for layer in layers]


def _drop_paths(encoder: VisionTransformer) -> list[nn.Module]:
    return [layer for block in encoder.blocks for layer in (block.drop_path1, block.drop_path2)]

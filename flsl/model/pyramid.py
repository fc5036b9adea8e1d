"""A vision transformer as a detector's backbone: tokens of plain blocks become maps at strides 4 to 64.

The FLSL paper's detector takes the tokens after blocks 4, 6, 8 and 12 to strides 4, 8, 16 and 32 and puts an FPN on
them; ViTDet (Li et al., ECCV 2022) makes all strides from the last block's tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from flsl.config.detect import PATCHES, DetectorSettings
from flsl.runtime.errors import UserError

STRIDES = (4, 8, 16, 32)
LEVELS = ("p2", "p3", "p4", "p5", "p6")
"""Names of the maps, at strides 4, 8, 16, 32 and 64."""


class ViTPyramid(nn.Module):
    """Maps images of any size to five maps.

    Attributes:
        encoder: the timm model; its final norm is not used and not trained.
        out_channels: channels of every map.
        size_divisibility: what the maps' input is padded to.
    """

    size_divisibility = STRIDES[-1]

    def __init__(self, encoder: VisionTransformer, settings: DetectorSettings) -> None:
        """Build the pyramid on an encoder, which is changed (stochastic depth, checkpointing).

        Raises:
            UserError: when the patch size is not 4, 8 or 16 or the encoder has not the blocks.
        """
        super().__init__()
        self.encoder = encoder
        self.patch_size: int = encoder.patch_embed.patch_size[0]
        self.out_channels = settings.channels
        if self.patch_size not in PATCHES:
            raise UserError(
                f"the encoder's patch size is {self.patch_size}; the pyramid's strides are made from 4, 8 or 16"
            )
        self.blocks = chosen_blocks(settings, len(encoder.blocks))
        width = encoder.embed_dim
        self.rescale = nn.ModuleList(_rescale(width, self.patch_size / stride) for stride in STRIDES)
        self.fpn: nn.Module
        if settings.pyramid == "fpn":
            self.fpn = FeaturePyramidNetwork([width] * 4, settings.channels)
        else:
            self.fpn = nn.ModuleDict({level: _simple_level(width, settings.channels) for level in LEVELS[:4]})
        encoder.norm.requires_grad_(False)
        encoder.fc_norm.requires_grad_(False)
        rates = torch.linspace(0, settings.drop_path, len(encoder.blocks)).tolist()
        for block, rate in zip(encoder.blocks, rates, strict=True):
            block.drop_path1 = DropPath(rate) if rate else nn.Identity()
            block.drop_path2 = DropPath(rate) if rate else nn.Identity()
        encoder.set_grad_checkpointing(settings.activation_checkpointing)
        if settings.frozen_blocks:
            _freeze(encoder, settings.frozen_blocks)
        # blocks after the last one that is looked at get no gradient
        for block in encoder.blocks[self.blocks[-1] :]:
            block.requires_grad_(False)

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> OrderedDict[str, Tensor]:
        """Return the maps ``p2`` … ``p6``, (batch, channels, ⌈H / stride⌉, ⌈W / stride⌉) of the padded input.

        Each image goes through the encoder at its own size, padded to whole patches: positions are interpolated to its
        own grid, and its tokens do not depend on the others of its batch.

        Args:
            images: (batch, 3, H, W), normalised, padded below and to the right.
            sizes: (height, width) of each image within ``images``; None: they fill it.
        """
        batch, _, height, width = images.shape
        sizes = list(sizes) if sizes is not None else [(height, width)] * batch
        padded = tuple(-(-side // self.size_divisibility) * self.size_divisibility for side in (height, width))
        grid = (padded[0] // self.patch_size, padded[1] // self.patch_size)
        tokens = self._tokens(images, sizes, grid)
        scaled = OrderedDict(
            (level, rescale(x)) for level, rescale, x in zip(LEVELS, self.rescale, tokens, strict=False)
        )
        if isinstance(self.fpn, nn.ModuleDict):
            maps = OrderedDict((level, self.fpn[level](x)) for level, x in scaled.items())
        else:
            maps = self.fpn(scaled)
        maps["p6"] = F.max_pool2d(maps["p5"], kernel_size=1, stride=2)
        return maps

    def _tokens(self, images: Tensor, sizes: Sequence[tuple[int, int]], grid: tuple[int, int]) -> list[Tensor]:
        """Return the chosen blocks' tokens as four maps (batch, C, *grid), zero outside each image."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, (height, width) in enumerate(sizes):
            groups.setdefault((height, width), []).append(index)
        found: dict[int, list[Tensor]] = {}
        for (height, width), members in groups.items():
            crop = torch.stack([images[index, :, :height, :width] for index in members])
            crop = F.pad(crop, (0, -width % self.patch_size, 0, -height % self.patch_size))
            maps = self.encoder.forward_intermediates(
                crop, indices=sorted({block - 1 for block in self.blocks}), stop_early=True, intermediates_only=True
            )
            maps = [F.pad(x, (0, grid[1] - x.shape[-1], 0, grid[0] - x.shape[-2])) for x in maps]
            found |= {index: [x[place] for x in maps] for place, index in enumerate(members)}
        # no index on the device: its copy would wait for what is computed there
        distinct = [torch.stack(maps) for maps in zip(*(found[index] for index in range(len(sizes))), strict=True)]
        numbers = sorted(set(self.blocks))
        return [distinct[numbers.index(block)] for block in self.blocks]


def _freeze(encoder: VisionTransformer, count: int) -> None:
    """Keep the embeddings and the first ``count`` blocks as they are; no gradient is computed for them."""
    depth = len(encoder.blocks)
    if count > depth:
        raise UserError(f"detection.model.frozen_blocks: {count} is more than the encoder's {depth} blocks")
    kept = encoder.blocks[count:]
    encoder.requires_grad_(False)
    kept.requires_grad_(True)


def chosen_blocks(settings: DetectorSettings, depth: int) -> list[int]:
    """Return the blocks (from 1) whose tokens go to strides 4, 8, 16 and 32.

    Raises:
        UserError: when the encoder has fewer blocks.
    """
    if settings.pyramid == "simple":
        return [depth] * 4
    if settings.blocks is None:
        return [max(1, round(depth * share)) for share in (4 / 12, 6 / 12, 8 / 12, 1)]
    if settings.blocks[-1] > depth:
        raise UserError(f"detection.model.blocks: {settings.blocks}, but the encoder's last block is {depth}")
    return settings.blocks


def _rescale(width: int, factor: float) -> nn.Module:
    """Return what takes a map to ``factor`` times its resolution."""
    if factor >= 4:
        return nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2),
            LayerNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, 2),
        )
    if factor == 2:
        return nn.ConvTranspose2d(width, width, 2, 2)
    return nn.Identity() if factor == 1 else nn.MaxPool2d(round(1 / factor))


def _simple_level(width: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )

"""Video object segmentation by label propagation: DINO's protocol (arXiv 2104.14294) on DAVIS 2017, no training.

The first frame's mask is given. Every further frame takes its soft labels, at token resolution, from the first frame
and a few previous ones; these labels are the context of the frames to come. For output they are brought to pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flsl.config.video import DavisSettings
from flsl.data.decode import load_rgb
from flsl.model.backbone import Backbone
from flsl.runtime.progress import warn
from flsl.video.affinity import propagate_labels
from flsl.video.frames import encode, load_batches, preview_picture, protocol_size
from flsl.video.sequences import LabelMap, Video, read_first_mask

_ROUNDING = 1e-5  # as a share of the largest label; over 100 frames it adds up to some 1e-6


@dataclass(frozen=True)
class Segmented:
    """A frame's result: its label map at the frame's size, and a small picture of the frame."""

    labels: LabelMap
    picture: Image.Image


@torch.inference_mode()
def segment(video: Video, backbone: Backbone, settings: DavisSettings, device: torch.device) -> Iterator[Segmented]:
    """Yield the segmentation of each frame in order, the first one being the given mask.

    Args:
        video: the sequence.
        backbone: the encoder, on ``device``.
        settings: the protocol.
        device: where to compute.

    Raises:
        UserError: for frames that are unreadable or of several sizes, and a first mask without objects.
    """
    first = read_first_mask(video.first_mask)
    original = (first.shape[1], first.shape[0])
    size = protocol_size(*original, settings, backbone.patch_size)
    grid = (size[0] // backbone.patch_size, size[1] // backbone.patch_size)
    ids = np.unique(np.append(first, 0)).astype(np.uint8)
    labels = one_hot(first, ids, grid)
    for index in range(1, len(ids)):
        if not labels[..., index].any():
            warn(f"{video.name}: object {ids[index]} is so small that it is lost between tokens; it is not followed")

    pictures: list[Image.Image] = []

    def features() -> Iterator[Tensor]:
        for batch in load_batches(video.frames, size, original, settings.batch_size):
            pictures.extend(frame.picture for frame in batch)
            yield from encode(batch, backbone, device, settings.precision)

    propagated = propagate(features(), labels.to(device), settings)
    next(propagated)
    yield Segmented(first, pictures.pop(0))
    for soft in propagated:
        found = ids[label_map(soft, backbone.patch_size)]
        full = Image.fromarray(found).resize(original, Image.Resampling.NEAREST)
        yield Segmented(np.asarray(full), pictures.pop(0))


def copy_first_mask(video: Video) -> Iterator[Segmented]:
    """Yield the given mask for every frame: the baseline that an encoder has to beat."""
    first = read_first_mask(video.first_mask)
    for path in video.frames:
        yield Segmented(first, preview_picture(load_rgb(path)))


def propagate(features: Iterable[Tensor], first: Tensor, settings: DavisSettings) -> Iterator[Tensor]:
    """Yield the soft labels (rows, columns, K) of each frame in order, beginning with ``first`` itself.

    Args:
        features: each frame's features (rows, columns, C), of unit length; taken one at a time.
        first: labels (rows, columns, K) of the first frame.
        settings: the protocol; the context is the first frame and up to ``context_frames`` previous ones.
    """
    frames = 1 + settings.context_frames
    remaining = iter(features)
    keys = next(remaining).repeat(frames, 1, 1, 1)
    labels = first.repeat(frames, 1, 1, 1)
    yield first
    for index, current in enumerate(remaining):
        filled = min(1 + index, frames)
        found = propagate_labels(
            current, keys[:filled], labels[:filled], settings.radius, settings.top_k, settings.temperature
        )
        if settings.context_frames:
            # the first frame keeps its place, each later one takes the oldest one's
            place = 1 + index % settings.context_frames
            keys[place], labels[place] = current, found
        yield found


def one_hot(mask: LabelMap, ids: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """Return the labels (rows, columns, K) of a mask resized (nearest) to a grid of (columns, rows) tokens."""
    small = np.asarray(Image.fromarray(mask).resize(grid, Image.Resampling.NEAREST))
    return torch.from_numpy((small[..., None] == ids).astype(np.float32))


def label_map(soft: Tensor, patch_size: int) -> NDArray[np.intp]:
    """Return the index of each pixel's label (rows × patch, columns × patch) from soft labels (rows, columns, K).

    Labels are upsampled bilinearly and each is stretched to [0, 1] over the frame; one that is constant but for
    rounding is left as it is. The largest wins, the first of several equal ones.
    """
    maps = F.interpolate(soft.movedim(-1, 0)[None], scale_factor=patch_size, mode="bilinear", align_corners=False)[0]
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    spread = highest - lowest
    # an object that fills the frame has ones that differ by rounding, which would become anything from 0 to 1
    varies = spread > _ROUNDING * highest
    stretched = torch.where(varies, (maps - lowest) / torch.where(varies, spread, 1.0), maps)
    indices: NDArray[np.intp] = stretched.argmax(0).cpu().numpy()
    return indices

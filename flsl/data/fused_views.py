"""The making of views in few passes over their pixels, for ``torch.compile``: what ``flsl.data.views`` does otherwise.

A channel of all images is a tensor of its own, so that a change of colour reads and writes every pixel once, and the
products with matrices need no copies of them. All that is done to a pixel by itself is one function, for all images of
a batch; only contrast, which blends with an image's mean gray, reads the images once before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flsl.data.crops import resize_matrices
from flsl.data.photometric import PhotometricParameters, both_blur_matrices, gray_of, hue_turned

# jitter's blends before the hue turns and after it, by their places: of each, those that are on that side are made
_BEFORE, _AFTER = (0, 1, 2), (1, 2, 3)


class FusedOperations(NamedTuple):
    """How the passes are computed.

    Attributes:
        matrices: :func:`flsl.data.crops.resize_matrices`.
        change: :func:`changed`.
        finish: :func:`finished`.
    """

    matrices: Callable[[Tensor, Tensor, int, int], Tensor]
    change: Callable[..., Tensor]
    finish: Callable[[Tensor, Tensor, Tensor], Tensor]

    @classmethod
    def compiled(cls, backend: str = "inductor") -> FusedOperations:
        """Return what ``torch.compile`` makes of them, for each size of views."""
        functions = (resize_matrices, changed, finished)
        return cls(*(torch.compile(function, dynamic=False, backend=backend) for function in functions))


def cropped(pixels: Tensor, rows: Tensor, columns: Tensor) -> list[Tensor]:
    """Crop and resize images: several views of each.

    Args:
        pixels: (batch, 3, T, T), float32.
        rows: (views × batch, S, T), view by view.
        columns: (views × batch, S, T).

    Returns:
        The three channels, each (views × batch, S, S).
    """
    batch, size = len(pixels), rows.shape[1]
    channels = []
    for channel in pixels.unbind(1):
        views = channel.new_empty(len(rows), size, size)
        for start in range(0, len(rows), batch):
            own = slice(start, start + batch)
            torch.bmm(torch.bmm(rows[own], channel), columns[own].transpose(1, 2), out=views[own])
        channels.append(views)
    return channels


def coloured(
    channels: Sequence[Tensor],
    colours: PhotometricParameters,
    largest_sigma: float,
    statistics: Tensor,
    operations: FusedOperations,
) -> Tensor:
    """Change the colours of a batch of images, and normalise.

    Args:
        channels: three, (batch, H, W), values in [0, 255] of any type.
        colours: the changes.
        largest_sigma: see :func:`flsl.data.photometric.apply_photometric`.
        statistics: (2, 3, 1, 1) mean and standard deviation of the channels.
        operations: how.

    Returns:
        (batch, 3, H, W), float32.
    """
    images = operations.change(*channels, colours.numbers)
    if len(colours.blurred):
        rows, columns = both_blur_matrices(colours.sigmas, images.shape[2], images.shape[3], largest_sigma)
        for channel in images.unbind(1):
            sharp = channel.index_select(0, colours.blurred)
            channel.index_copy_(0, colours.blurred, torch.bmm(torch.bmm(rows, sharp), columns.transpose(1, 2)))
    return operations.finish(images, colours.is_solarized, statistics)


def changed(red: Tensor, green: Tensor, blue: Tensor, numbers: Tensor) -> Tensor:
    """Jitter the colours of images, and make some gray.

    Args:
        red, green, blue: (batch, H, W), values in [0, 255] of any type, or a little beyond.
        numbers: (16, batch), see :class:`flsl.data.photometric.PhotometricParameters`.

    Returns:
        (batch, 3, H, W) in [0, 1], float32.
    """
    start = [(channel.float() / 255).clamp(0, 1) for channel in (red, green, blue)]
    jitter = _Jitter(numbers[..., None, None])
    channels = jitter(start, mean=jitter.blended_with(start).mean((1, 2), keepdim=True))
    is_gray, gray = numbers[14, :, None, None] > 0, gray_of(*channels)
    return torch.stack([torch.where(is_gray, gray, channel) for channel in channels], 1)


class _Jitter:
    """Colour jitter of all images in one go: blends, the hue's turn, and blends again.

    The hue is turned at one of four places, which takes more arithmetic than all blends: once, between them, and not
    at every place.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._factors, self._to_mean, self._to_gray = numbers[:4], numbers[4:8], numbers[8:12]
        self._turns, self._hue_place = numbers[12], numbers[13]

    def __call__(self, channels: list[Tensor], mean: Tensor) -> list[Tensor]:
        """Return the channels (batch, H, W) jittered; contrast blends with ``mean`` (batch, 1, 1)."""
        for place in _BEFORE:
            channels = self._blend(channels, place, self._hue_place > place, mean)
        channels = self._turn(channels)
        for place in _AFTER:
            channels = self._blend(channels, place, self._hue_place < place, mean)
        return channels

    def blended_with(self, channels: list[Tensor]) -> Tensor:
        """Return each image's gray pixels as they are when its contrast changes, (batch, H, W)."""
        found = torch.zeros_like(channels[0])
        # what follows on contrast is wrong here, and is not looked at
        for place in _BEFORE:
            here = self._hue_place > place
            found = found + torch.where(here, self._to_mean[place], 0.0) * gray_of(*channels)
            channels = self._blend(channels, place, here, None)
        channels = self._turn(channels)
        for place in _AFTER:
            here = self._hue_place < place
            found = found + torch.where(here, self._to_mean[place], 0.0) * gray_of(*channels)
            channels = self._blend(channels, place, here, None)
        return found

    def _blend(self, channels: list[Tensor], place: int, here: Tensor, mean: Tensor | None) -> list[Tensor]:
        factor = torch.where(here, self._factors[place], 1.0)
        other = self._to_gray[place] * gray_of(*channels)
        if mean is not None:
            other = other + self._to_mean[place] * mean
        return [(factor * channel + (1 - factor) * other).clamp(0, 1) for channel in channels]

    def _turn(self, channels: list[Tensor]) -> list[Tensor]:
        red, green, blue = channels
        turned = hue_turned(red, green, blue, self._turns)
        return [torch.where(self._turns != 0, new, old) for new, old in zip(turned, channels, strict=True)]


def finished(images: Tensor, is_solarized: Tensor, statistics: Tensor) -> Tensor:
    """Solarize some of the images (batch, 3, H, W) in [0, 1], and normalise all."""
    solarize = (is_solarized[:, None, None, None] > 0) & (images >= 128 / 255)
    return (torch.where(solarize, 1 - images, images) - statistics[0]) / statistics[1]

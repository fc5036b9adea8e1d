"""Colour changes of a batch of views, each sample with its own parameters (arXiv 2306.06203, DINO's recipe).

Order: colour jitter (its four parts in random order), grayscale, then branch A (blur) or branch B (blur, solarize).
Which samples undergo what is decided on the CPU and travels as index lists: only those samples are worked on, and the
device never has to report back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flsl.config.pretrain import ViewSettings
from flsl.data.crops import apply_matrices, blur_matrices

PHOTOMETRIC_DRAWS = 14
"""Uniform numbers that one view's colour changes take."""

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class PhotometricParameters:
    """What happens to each sample of a batch of B views.

    Attributes:
        factors: (4, B) blend factors of brightness, contrast or saturation at each of jitter's four places; 1 where
            there is another operation.
        to_mean: (4, B) 1 where the blend is with the mean gray (contrast), else 0.
        to_gray: (4, B) 1 where the blend is with the gray image (saturation), else 0; neither: with black.
        hue_samples: at each place the samples whose hue turns there, (n,).
        hue_turns: at each place by how much, in turns, (n,).
        gray: samples that become gray, (n,).
        blurred: samples that are blurred, (n,).
        sigmas: their Gaussian's standard deviations, in pixels, (n,).
        solarized: samples that are solarized, (n,).
    """

    factors: Tensor
    to_mean: Tensor
    to_gray: Tensor
    hue_samples: list[Tensor]
    hue_turns: list[Tensor]
    gray: Tensor
    blurred: Tensor
    sigmas: Tensor
    solarized: Tensor

    def to(self, device: torch.device) -> PhotometricParameters:
        """Move everything to a device, without waiting where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PhotometricParameters:
        """Copy everything to page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PhotometricParameters:
        return PhotometricParameters(
            factors=change(self.factors),
            to_mean=change(self.to_mean),
            to_gray=change(self.to_gray),
            hue_samples=[change(samples) for samples in self.hue_samples],
            hue_turns=[change(turns) for turns in self.hue_turns],
            gray=change(self.gray),
            blurred=change(self.blurred),
            sigmas=change(self.sigmas),
            solarized=change(self.solarized),
        )


def draw_photometric(uniforms: NDArray[np.float64], settings: ViewSettings, blur_scale: float) -> PhotometricParameters:
    """Turn uniform numbers into parameters.

    Args:
        uniforms: (batch, 14) numbers in [0, 1).
        settings: probabilities and ranges.
        blur_scale: factor on the blur radius, which is given for 224-pixel teacher views.
    """
    jittered = uniforms[:, 0] < settings.jitter
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    factors = np.stack([_factor(uniforms[:, 1 + i], strength) for i, strength in enumerate(strengths)], 1)
    turns = settings.hue * (2 * uniforms[:, 4] - 1)
    order = np.argsort(uniforms[:, 5:9], 1, kind="stable")
    # a place holds operation order[:, place]; hue and what is not jittered blends with factor 1: nothing
    at_place = np.concatenate([factors, np.ones((len(uniforms), 1))], 1)[np.arange(len(uniforms))[:, None], order]
    at_place = np.where(jittered[:, None], at_place, 1.0)
    hue_at = [np.flatnonzero(jittered & (order[:, place] == _HUE)) for place in range(4)]
    branch_a = uniforms[:, 10] < 0.5
    blurred = np.flatnonzero(uniforms[:, 11] < np.where(branch_a, settings.blur_a, settings.blur_b))
    low, high = settings.blur_radius
    return PhotometricParameters(
        factors=_floats(at_place.T),
        to_mean=_floats((order == _CONTRAST).T),
        to_gray=_floats((order == _SATURATION).T),
        hue_samples=[torch.from_numpy(samples) for samples in hue_at],
        hue_turns=[_floats(turns[samples]) for samples in hue_at],
        gray=torch.from_numpy(np.flatnonzero(uniforms[:, 9] < settings.grayscale)),
        blurred=torch.from_numpy(blurred),
        sigmas=_floats(blur_scale * (low + (high - low) * uniforms[blurred, 12])),
        solarized=torch.from_numpy(np.flatnonzero(~branch_a & (uniforms[:, 13] < settings.solarize))),
    )


def _factor(uniforms: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return low + (high - low) * uniforms


def _floats(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def apply_photometric(
    images: Tensor, parameters: PhotometricParameters, largest_sigma: float, operations: Operations | None = None
) -> Tensor:
    """Change the colours of a batch of images.

    Args:
        images: (batch, 3, H, W), values in [0, 1], not changed in place.
        parameters: on the same device.
        largest_sigma: largest blur of the settings, in pixels; the kernel is cut off at three times it.
        operations: how the changes of each pixel are computed; None: by :data:`PLAIN`.

    Returns:
        (batch, 3, H, W), values in [0, 1], not normalised.
    """
    blend, turn = PLAIN if operations is None else operations
    images = images.clone()
    for place in range(4):
        images = blend(images, parameters.factors[place], parameters.to_mean[place], parameters.to_gray[place])
        samples = parameters.hue_samples[place]
        if len(samples):
            images[samples] = turn(images[samples], parameters.hue_turns[place])
    if len(parameters.gray):
        images[parameters.gray] = luma(images[parameters.gray]).expand(-1, 3, -1, -1)
    if len(parameters.blurred):
        images[parameters.blurred] = _blur(images[parameters.blurred], parameters.sigmas, largest_sigma)
    if len(parameters.solarized):
        bright = images[parameters.solarized]
        images[parameters.solarized] = torch.where(bright >= 128 / 255, 1 - bright, bright)
    return images


def _blend(images: Tensor, factor: Tensor, to_mean: Tensor, to_gray: Tensor) -> Tensor:
    """Blend each image with its gray image, its mean gray or black, as the numbers (batch,) say."""
    factor, to_mean, to_gray = (values[:, None, None, None] for values in (factor, to_mean, to_gray))
    gray = luma(images)
    other = to_gray * gray + to_mean * gray.mean((1, 2, 3), keepdim=True)
    return (factor * images + (1 - factor) * other).clamp_(0, 1)


def luma(images: Tensor) -> Tensor:
    """Return the gray image (batch, 1, H, W) of RGB (batch, 3, H, W), as torchvision weighs them."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB images (batch, 3, H, W) in [0, 1] by ``turns`` (batch,) of the colour circle."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    grayish = chroma == 0
    divisor = torch.where(grayish, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * turns[:, None, None]
    # back in closed form: a channel is value - chroma·clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6
    # (made on the device: a tensor from a Python list would make a GPU wait for the copy)
    shift = torch.arange(5, 0, -2, device=images.device)[None, :, None, None]
    k = (shift + hue[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


class Operations(NamedTuple):
    """How the changes of each pixel by itself are computed.

    Attributes:
        blend: brightness, contrast and saturation.
        turn_hue: the hue.
    """

    blend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    turn_hue: Callable[[Tensor, Tensor], Tensor]

    @classmethod
    def compiled(cls, backend: str = "inductor") -> Operations:
        """Return operations that ``torch.compile`` fuses into one or two passes over the images each."""
        # other samples turn their hue in every batch, and not equally many
        turn: Callable[[Tensor, Tensor], Tensor] = torch.compile(turn_hue, backend=backend, dynamic=True)
        return cls(torch.compile(_blend, backend=backend), turn)


PLAIN = Operations(_blend, turn_hue)


def _blur(images: Tensor, sigmas: Tensor, largest_sigma: float) -> Tensor:
    height, width = images.shape[-2:]
    radius = max(1, math.ceil(3 * largest_sigma))
    rows = blur_matrices(sigmas, height, min(radius, height - 1))
    columns = rows if height == width else blur_matrices(sigmas, width, min(radius, width - 1))
    return apply_matrices(images, rows, columns)

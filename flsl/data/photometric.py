"""Colour changes of a batch of views, each sample with its own parameters (arXiv 2306.06203, DINO's recipe).

Order: colour jitter (its four parts in random order), grayscale, then branch A (blur) or branch B (blur, solarize).
Which samples undergo what is decided on the CPU and travels as index lists: only those samples are worked on, and the
device never has to report back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
        numbers: (16, B) the properties below, one after another: one copy to a GPU instead of six.
        hue_samples: at each of jitter's places the samples whose hue turns there, (n,).
        gray: samples that become gray, (n,).
        blurred: samples that are blurred, (n,).
        sigmas: their Gaussian's standard deviations, in pixels, (n,).
        solarized: samples that are solarized, (n,).
    """

    numbers: Tensor
    hue_samples: list[Tensor]
    gray: Tensor
    blurred: Tensor
    sigmas: Tensor
    solarized: Tensor

    @property
    def factors(self) -> Tensor:
        """(4, B) blend factors of brightness, contrast or saturation at each place; 1 for another operation."""
        return self.numbers[:4]

    @property
    def to_mean(self) -> Tensor:
        """(4, B) 1 where the blend is with the mean gray (contrast), else 0."""
        return self.numbers[4:8]

    @property
    def to_gray(self) -> Tensor:
        """(4, B) 1 where the blend is with the gray image (saturation), else 0; neither: with black."""
        return self.numbers[8:12]

    @property
    def turns(self) -> Tensor:
        """(B,) by how much the hue turns, in turns of the colour circle."""
        return self.numbers[12]

    @property
    def hue_place(self) -> Tensor:
        """(B,) at which of jitter's places the hue turns, 0 … 3."""
        return self.numbers[13]

    @property
    def is_gray(self) -> Tensor:
        """(B,) 1 for :attr:`gray`, else 0."""
        return self.numbers[14]

    @property
    def is_solarized(self) -> Tensor:
        """(B,) 1 for :attr:`solarized`, else 0."""
        return self.numbers[15]

    def each(self, change: Callable[[Tensor], Tensor]) -> PhotometricParameters:
        """Return parameters of which ``change`` made every tensor."""
        return PhotometricParameters(
            numbers=change(self.numbers),
            hue_samples=[change(samples) for samples in self.hue_samples],
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
    turns = np.where(jittered, settings.hue * (2 * uniforms[:, 4] - 1), 0.0)
    order = np.argsort(uniforms[:, 5:9], 1, kind="stable")
    # a place holds operation order[:, place]; hue and what is not jittered blends with factor 1: nothing
    at_place = np.concatenate([factors, np.ones((len(uniforms), 1))], 1)[np.arange(len(uniforms))[:, None], order]
    at_place = np.where(jittered[:, None], at_place, 1.0)
    hue_place = (order == _HUE).argmax(1)
    branch_a = uniforms[:, 10] < 0.5
    blurred = np.flatnonzero(uniforms[:, 11] < np.where(branch_a, settings.blur_a, settings.blur_b))
    low, high = settings.blur_radius
    is_gray = uniforms[:, 9] < settings.grayscale
    is_solarized = ~branch_a & (uniforms[:, 13] < settings.solarize)
    contrast, saturation = (order == _CONTRAST).T, (order == _SATURATION).T
    return PhotometricParameters(
        numbers=_floats(np.concatenate([at_place.T, contrast, saturation, [turns, hue_place, is_gray, is_solarized]])),
        hue_samples=[torch.from_numpy(np.flatnonzero(turns * (hue_place == place))) for place in range(4)],
        gray=torch.from_numpy(np.flatnonzero(is_gray)),
        blurred=torch.from_numpy(blurred),
        sigmas=_floats(blur_scale * (low + (high - low) * uniforms[blurred, 12])),
        solarized=torch.from_numpy(np.flatnonzero(is_solarized)),
    )


def _factor(uniforms: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return low + (high - low) * uniforms


def _floats(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def apply_photometric(images: Tensor, parameters: PhotometricParameters, largest_sigma: float) -> Tensor:
    """Change the colours of a batch of images.

    Args:
        images: (batch, 3, H, W), values in [0, 1], not changed in place.
        parameters: on the same device.
        largest_sigma: largest blur of the settings, in pixels; the kernel is cut off at three times it.

    Returns:
        (batch, 3, H, W), values in [0, 1], not normalised.
    """
    images = images.clone()
    for place in range(4):
        images = _blend(images, parameters.factors[place], parameters.to_mean[place], parameters.to_gray[place])
        samples = parameters.hue_samples[place]
        if len(samples):
            images[samples] = turn_hue(images[samples], parameters.turns[samples])
    if len(parameters.gray):
        images[parameters.gray] = luma(images[parameters.gray]).expand(-1, 3, -1, -1)
    if len(parameters.blurred):
        height, width = images.shape[-2:]
        matrices = both_blur_matrices(parameters.sigmas, height, width, largest_sigma)
        images[parameters.blurred] = apply_matrices(images[parameters.blurred], *matrices)
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
    return gray_of(*images.unbind(1))[:, None]


def gray_of(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Return :func:`luma` of three channels of any shape, in that shape."""
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB images (batch, 3, H, W) in [0, 1] by ``turns`` (batch,) of the colour circle."""
    red, green, blue = images.unbind(1)
    return torch.stack(hue_turned(red, green, blue, turns[:, None, None]), 1)


def hue_turned(red: Tensor, green: Tensor, blue: Tensor, turns: Tensor) -> list[Tensor]:
    """Return the channels of :func:`turn_hue`, each in the shape of one."""
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    is_red, is_green = value == red, value == green
    difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    hue = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0)) + difference / divisor + 6 * turns
    # back in closed form: a channel is value - chroma·clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6
    places = [_modulo_6(n + hue) for n in (5, 3, 1)]
    return [value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in places]


def _modulo_6(numbers: Tensor) -> Tensor:
    """Return numbers in [-6, 18) modulo 6; the operator takes several times as long, on a GPU most of a hue's turn."""
    least = torch.where(numbers < 0, numbers + 6, numbers)
    return torch.where(least >= 12, least - 12, torch.where(least >= 6, least - 6, least))


def both_blur_matrices(sigmas: Tensor, height: int, width: int, largest_sigma: float) -> tuple[Tensor, Tensor]:
    """Return the matrices that blur rows (n, height, height) and columns (n, width, width), see ``blur_matrices``."""
    radius = max(1, math.ceil(3 * largest_sigma))
    rows = blur_matrices(sigmas, height, min(radius, height - 1))
    return rows, rows if height == width else blur_matrices(sigmas, width, min(radius, width - 1))

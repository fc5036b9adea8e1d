"""Random crops as numbers, and cropping with resizing (and blurring) as products with small matrices.

A crop that is resized bicubically with antialiasing is separable and linear: one matrix a side does it, with another
matrix for each sample of a batch. The same product blurs. So a batch of differently cropped views is two batched matrix
products on whatever device, where the usual way is a loop over images on the CPU.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CROP_DRAWS = 22
"""Uniform numbers that one random resized crop takes: ten tries of area and ratio, and a position."""

_TRIES = 10
_LEAST_SIGMA = 1e-3  # in pixels; the neighbours of a pixel get no weight that float32 can hold
_LOG_RATIO = math.log(4 / 3)


def random_resized_boxes(
    uniforms: NDArray[np.float64], height: int, width: int, scale: tuple[float, float]
) -> NDArray[np.int64]:
    """Return boxes distributed as torchvision's ``RandomResizedCrop`` with ratio (3/4, 4/3).

    Args:
        uniforms: (batch, 22) numbers in [0, 1).
        height: of the image, in pixels.
        width: of the image, in pixels.
        scale: range of the box's area, as a share of the image's.

    Returns:
        (batch, 4) top, left, height and width, in pixels.
    """
    tries = uniforms[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[..., 0])
    ratio = np.exp(_LOG_RATIO * (2 * tries[..., 1] - 1))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows, first = np.arange(len(uniforms)), fits.argmax(1)
    h, w = h[rows, first], w[rows, first]
    top = np.floor(uniforms[:, -2] * (height - h + 1)).astype(np.int64)
    left = np.floor(uniforms[:, -1] * (width - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], 1)
    boxes[~fits.any(1)] = _central_box(height, width)
    return boxes


def random_resized_crop(image: Tensor, uniforms: NDArray[np.float64], scale: tuple[float, float], size: int) -> Tensor:
    """Crop an image at random, and resize the crop to a square.

    Args:
        image: (3, height, width), uint8.
        uniforms: (22,) numbers in [0, 1) that decide the box.
        scale: range of the box's area, as a share of the image's.
        size: side of the square, in pixels.

    Returns:
        (3, size, size), uint8.
    """
    box = random_resized_boxes(uniforms[None], image.shape[1], image.shape[2], scale)[0]
    top, left, height, width = box.tolist()
    return resized(image[:, top : top + height, left : left + width], size, size)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Resize an image (3, H, W), uint8: bicubic, antialiased.

    On 8-bit tensors torch resizes in integers as Pillow does, equally on all CPUs and several times faster; it rounds
    and clips at other places between the two passes of the filter.
    """
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]


def _central_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the largest central box whose ratio is within (3/4, 4/3): torchvision's last resort."""
    low, high = 3 / 4, 4 / 3
    w, h = width, height
    if width / height < low:
        h = round(w / low)
    elif width / height > high:
        w = round(h * high)
    return (height - h) // 2, (width - w) // 2, h, w


def resize_matrices(starts: Tensor, lengths: Tensor, in_size: int, out_size: int) -> Tensor:
    """Return matrices that crop and resize one side: bicubic, antialiased, as Pillow and torchvision do.

    Args:
        starts: (batch,) first pixel of each crop.
        lengths: (batch,) pixels of each crop.
        in_size: pixels of the side before.
        out_size: pixels of the side after.

    Returns:
        (batch, out_size, in_size) weights, rows summing to 1, float32, on the device of ``starts``.
    """
    device = starts.device
    start, length = starts.float()[:, None, None], lengths.float()[:, None, None]
    scale = length / out_size
    # pixel centres of the result, in pixels of the crop
    centre = scale * (torch.arange(out_size, device=device)[None, :, None] + 0.5)
    position = torch.arange(in_size, device=device)[None, None, :] - start
    inside = (position >= 0) & (position < length)
    distance = (position + 0.5 - centre).abs() / scale.clamp(min=1.0)
    weights = torch.where(inside, _cubic(distance), 0.0)
    return weights / weights.sum(-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Return Keys' cubic kernel with a = -1/2 at non-negative distances."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def blur_matrices(sigmas: Tensor, size: int, radius: int) -> Tensor:
    """Return matrices that blur one side with a Gaussian, reflecting at the borders.

    Args:
        sigmas: (batch,) standard deviations, in pixels; 0 leaves the side as it is.
        size: pixels of the side.
        radius: pixels at which the kernel is cut off on either side; below ``size``.

    Returns:
        (batch, size, size) weights, rows summing to 1, float32, on the device of ``sigmas``.
    """
    device = sigmas.device
    offsets = torch.arange(-radius, radius + 1, device=device)
    kernel = torch.exp(-0.5 * (offsets / sigmas.float().clamp(min=_LEAST_SIGMA)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    source = (torch.arange(size, device=device)[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    weights = kernel.new_zeros(len(sigmas), size, size)
    index = source.expand(len(sigmas), -1, -1)
    return weights.scatter_add_(2, index, kernel[:, None, :].expand(-1, size, -1).contiguous())


def apply_matrices(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return each image (batch, channels, H, W) multiplied from the left by ``rows`` and the right by ``columns``ᵀ.

    Args:
        images: float images.
        rows: (batch, H', H).
        columns: (batch, W', W).

    Returns:
        (batch, channels, H', W').
    """
    # a channel at a time: no copy of the matrices for each
    across = columns.transpose(1, 2)
    return torch.stack([torch.bmm(torch.bmm(rows, channel), across) for channel in images.unbind(1)], 1)

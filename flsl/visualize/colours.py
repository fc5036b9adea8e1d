"""From features and assignments to colours that can be compared between encoders."""

from __future__ import annotations

import colorsys
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Colours = NDArray[np.uint8]
Number = TypeVar("Number", np.int64, np.float64)
_GOLDEN = 0.618034


def principal_components(tokens: Tensor) -> tuple[NDArray[np.float64], float]:
    """Return each token's first three principal components, and their share of the variance.

    Args:
        tokens: (images, N, C) of all images together.

    Returns:
        (images, N, 3), each component's largest value positive, so that the signs are the same on any machine; and
        the share of the variance in [0, 1] that the three explain.
    """
    flat = tokens.flatten(0, 1).double().cpu()
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    parts = centred @ vectors[:, -3:].flip(1)
    extreme = parts.gather(0, parts.abs().argmax(0, keepdim=True))
    parts = parts * torch.where(extreme < 0, -1.0, 1.0)
    share = float(values[-3:].sum() / values.sum().clamp(min=1e-30))
    return parts.reshape(*tokens.shape[:2], 3).numpy(), share


def align(parts: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reorder and mirror components so that each resembles one of another encoder's: like features, like colours.

    Args:
        parts: (images, N, 3).
        to: (images, M, 3), M patches of the same images.
    """
    near = np.stack([regrid(parts[..., one], to.shape[1]) for one in range(3)], -1)
    flat, reference = near.reshape(-1, 3), to.reshape(-1, 3)
    norms = np.linalg.norm(flat, axis=0)[:, None] * np.linalg.norm(reference, axis=0)[None]
    cosines = flat.T @ reference / np.maximum(norms, 1e-12)
    own, theirs = linear_sum_assignment(-np.abs(cosines))
    aligned = np.empty_like(parts)
    for one, other in zip(own, theirs, strict=True):
        aligned[..., other] = parts[..., one] * (-1 if cosines[one, other] < 0 else 1)
    return aligned


def as_rgb(parts: NDArray[np.float64]) -> Colours:
    """Turn components (…, 3) to 8-bit colours: each from its 2nd to its 98th percentile."""
    flat = parts.reshape(-1, 3)
    low, high = np.percentile(flat, [2, 98], axis=0)
    scaled = (parts - low) / np.maximum(high - low, 1e-12)
    colours: Colours = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    return colours


def segment_colours(assignments: list[NDArray[np.int64]], reference: int) -> list[Colours]:
    """Colour the prototypes that patches are assigned to, like for like between encoders.

    The prototypes of the reference get their colours by how often they occur. Another encoder's prototypes take the
    colours of those that they share the most patches with, one to one; what is left gets further colours.

    Args:
        assignments: of each encoder, (images, g · g) prototypes, g patches a side.
        reference: which encoder's colours the others follow.

    Returns:
        of each encoder, (images, g · g, 3).
    """
    base = assignments[reference]
    names, counts = np.unique(base, return_counts=True)
    slots = {int(name): slot for slot, name in enumerate(names[np.argsort(-counts, kind="stable")])}
    coloured = []
    for index, own in enumerate(assignments):
        found = slots if index == reference else _follow(own, regrid(base, own.shape[1]), slots)
        palette = np.stack([colour(slot) for slot in range(max(found.values()) + 1)])
        coloured.append(palette[np.vectorize(found.__getitem__, otypes=[np.int64])(own)])
    return coloured


def _follow(own: NDArray[np.int64], base: NDArray[np.int64], slots: dict[int, int]) -> dict[int, int]:
    """Return the colour slots of one encoder's prototypes, given the reference's assignment of the same patches."""
    names, rows = np.unique(own, return_inverse=True)
    theirs = np.array(list(slots))
    columns = np.vectorize(slots.__getitem__, otypes=[np.int64])(base)  # slot and column are in the same order
    together = np.zeros((len(names), len(theirs)))
    np.add.at(together, (rows.ravel(), columns.ravel()), 1)
    taken = {}
    for one, other in zip(*linear_sum_assignment(-together), strict=True):
        if together[one, other]:
            taken[int(names[one])] = int(other)
    # by how often they occur
    left = [int(name) for name in names[np.argsort(-together.sum(1), kind="stable")] if int(name) not in taken]
    return taken | {name: len(slots) + place for place, name in enumerate(left)}


def regrid(patches: NDArray[Number], count: int) -> NDArray[Number]:
    """Sample a square grid of patches (images, g · g) at the centres of another one with ``count`` patches."""
    before, after = (round(number**0.5) for number in (patches.shape[1], count))
    near = ((np.arange(after) + 0.5) * before / after).astype(int)
    grid = patches.reshape(-1, before, before)
    return grid[:, near[:, None], near[None]].reshape(len(patches), -1)


def colour(slot: int) -> Colours:
    """Return the slot's colour: neighbouring slots differ in hue, and rounds of hues in lightness and strength."""
    lightness, saturation = ((0.55, 0.75), (0.72, 0.6), (0.38, 0.6))[slot // 8 % 3]
    rgb = colorsys.hls_to_rgb(slot * _GOLDEN % 1, lightness, saturation)
    return np.array([round(255 * part) for part in rgb], dtype=np.uint8)


def heat(values: NDArray[np.float64], image: NDArray[np.uint8]) -> Colours:
    """Lay attention over a picture: bright where it is high, the picture in dark grey where it is low.

    Args:
        values: (height, width), from 0 to the largest.
        image: (height, width, 3).
    """
    share = (values / max(values.max(), 1e-12))[..., None]
    grey = image.mean(-1, keepdims=True).repeat(3, -1) * 0.45
    stops = np.array([[0, 0, 0], [90, 15, 110], [220, 70, 60], [250, 170, 40], [255, 250, 200]], dtype=float)
    place = share[..., 0] * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    hot = stops[low] + (place - low)[..., None] * (stops[low + 1] - stops[low])
    mixed: Colours = (grey * (1 - 0.75 * share) + hot * (0.25 + 0.5 * share)).clip(0, 255).round().astype(np.uint8)
    return mixed

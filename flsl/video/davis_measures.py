"""DAVIS' measures of one frame and of one object: region similarity J, boundary accuracy F, and their statistics.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation" (CVPR 2016), in the form
that the official tool, davis2017-evaluation, gives them.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flsl.video.bitmaps import Counts, boundary, count, dilate, pack

Values: TypeAlias = NDArray[np.float64]

TOLERANCE = 0.008
"""Tolerance of the boundary measure, as a share of the image's diagonal."""


def region_and_contour(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], objects: int) -> tuple[Values, Values]:
    """Return J and F of the objects 1…``objects`` in one frame.

    J is the intersection over the union of the two masks; F the harmonic mean of the shares of either boundary that
    lie within ⌈0.008 · diagonal⌉ pixels of the other one. Where both masks are empty, both measures are 1.

    Args:
        truth: ids (height, width).
        prediction: ids (height, width).
        objects: number of objects n.

    Returns:
        Two arrays (n,) in [0, 1].
    """
    height, width = truth.shape
    ids = np.arange(1, objects + 1, dtype=np.uint8)[:, None, None]
    expected, found = pack(truth == ids), pack(prediction == ids)
    union = count(expected | found)
    region = np.where(union > 0, count(expected & found) / np.maximum(union, 1), 1.0)

    radius = math.ceil(TOLERANCE * math.hypot(height, width))
    expected_edge, found_edge = boundary(expected, width), boundary(found, width)
    expected_count, found_count = count(expected_edge), count(found_edge)
    precision = _share(count(found_edge & dilate(expected_edge, radius, width)), found_count)
    recall = _share(count(expected_edge & dilate(found_edge, radius, width)), expected_count)
    total = precision + recall
    return region, np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)


def _share(matched: Counts, pixels: Counts) -> Values:
    """Return the matched share of a boundary; one without pixels has nothing unmatched."""
    return np.where(pixels > 0, matched / np.maximum(pixels, 1), 1.0)


def statistics(values: Values) -> tuple[float, float, float]:
    """Return mean, recall (share above 0.5) and decay (first quarter's mean minus the last's) of values over frames.

    The quarters' ends are rounded as the official tool rounds them, neighbouring quarters sharing a frame. (Its
    indices wrap beyond 256 frames, which no sequence of DAVIS has; these do not.)
    """
    ends = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    decay = values[: ends[1] + 1].mean() - values[ends[3] : ends[4] + 1].mean()
    return float(values.mean()), float((values > 0.5).mean()), float(decay)

"""COCO's 12 figures of one class of boxes over very many frames, from arrays.

COCO's own form, a dictionary a box, takes most of a minute for a million detections before anything is matched. These
figures are pycocotools' (`tests/detect/test_uavdt_coco.py` compares them on random inputs), by the matching of
:mod:`flsl.detect.uavdt_match`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flsl.detect.uavdt_match import Flags, Floats, Ints, Pairs, by_preference, match, overlapping, places

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""All, small, medium, large: in square pixels, both ends included."""
_MOST = 100


class Boxes(NamedTuple):
    """Boxes of many frames.

    Attributes:
        frame: (n,) rising numbers of the frames.
        box: (n, 4) left, top, width, height.
    """

    frame: Ints
    box: Floats

    @property
    def area(self) -> Floats:
        """(n,) square pixels."""
        area: Floats = self.box[:, 2] * self.box[:, 3]
        return area


def coco_stats(found: Boxes, score: Floats, truth: Boxes, crowds: Boxes) -> Floats:
    """Return the 12 figures in pycocotools' order, as shares of 1; -1 where there is no box to measure on.

    Args:
        found: detections, within a frame by falling score.
        score: (detections,) their scores.
        truth: boxes that are to be found.
        crowds: regions in which any number of detections count as neither true nor false.
    """
    first = places(found.frame) < _MOST
    found, score = Boxes(found.frame[first], found.box[first]), score[first]
    place = places(found.frame)
    pairs = by_preference(_pairs(found, truth, crowds), place)
    areas, real = np.concatenate([truth.area, crowds.area]), np.arange(len(truth.frame) + len(crowds.frame))
    crowd = real >= len(truth.frame)
    # equal scores stay in the order of the frames
    order = np.argsort(-score, kind="stable")
    precision, recall = np.full((4, 10), -1.0), np.full((4, 10), -1.0)
    recall_of_first: dict[int, Floats] = {1: np.full(10, -1.0), 10: np.full(10, -1.0)}
    for row, (low, high) in enumerate(_AREAS):
        counted = ~crowd & (areas >= low) & (areas <= high)
        positives = int(counted.sum())
        if not positives:
            continue
        outside = (found.area < low) | (found.area > high)
        preferred = _counted_last(pairs, counted)
        for column, threshold in enumerate(THRESHOLDS):
            box = match(preferred.at(preferred.overlap >= threshold), place, len(areas), crowd)
            hit = (box >= 0) & counted[box]
            judged = hit | ((box < 0) & ~outside)
            precision[row, column] = _precision(hit[order], judged[order], positives)
            recall[row, column] = hit.sum() / positives
            if row == 0:
                for most, values in recall_of_first.items():
                    values[column] = hit[place < most].sum() / positives
    return np.array(
        [
            precision[0].mean(), precision[0, 0], precision[0, 5], *precision[1:].mean(1),
            recall_of_first[1].mean(), recall_of_first[10].mean(), *recall.mean(1),
        ]
    )  # fmt: skip


def _pairs(found: Boxes, truth: Boxes, crowds: Boxes) -> Pairs:
    """Return the pairs that overlap by the least threshold: by their union, or with a crowd by the detection's area."""
    least = float(THRESHOLDS[0])
    boxes, _ = overlapping(*found, *truth, least)
    _, within = overlapping(*found, *crowds, least)
    within = within._replace(box=within.box + len(truth.frame))
    return Pairs(*(np.concatenate(parts) for parts in zip(boxes, within, strict=True)))


def _counted_last(pairs: Pairs, counted: Flags) -> Pairs:
    """Return the pairs with each detection's counted boxes after the others, so that they are preferred."""
    group = np.cumsum(np.append(True, pairs.detection[1:] != pairs.detection[:-1])) if len(pairs.box) else pairs.box
    order = np.argsort(2 * group + counted[pairs.box], kind="stable")
    return pairs.at(order)


def _precision(hit: Flags, judged: Flags, positives: int) -> float:
    """Return the mean precision at 101 recalls, of detections by falling score."""
    true = np.cumsum(hit[judged])
    precision = true / np.arange(1, len(true) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(true / positives, _RECALLS, side="left")].mean())

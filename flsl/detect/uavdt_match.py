"""UAVDT's matching of detections to ground truth, over all frames at once.

A frame's detections are matched greedily by falling score. The k-th detections of all frames do not compete with each
other, so that one vectorised step handles them together; only pairs that overlap enough are kept.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_CHUNK = 1 << 16  # pairs looked at together: what a core's cache holds


class Pairs(NamedTuple):
    """Pairs of a detection and a box of the same frame that overlap enough.

    Attributes:
        detection, box: indices.
        overlap: of each pair, at least the threshold.
    """

    detection: Ints
    box: Ints
    overlap: Floats

    def at(self, chosen: Ints | Flags) -> Pairs:
        """Return those pairs, in that order."""
        return Pairs(self.detection[chosen], self.box[chosen], self.overlap[chosen])


def frame_pairs(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Return every pair (i, j) with ``first[i] == second[j]``; both are sorted."""
    start = np.searchsorted(second, first, side="left")
    count = np.searchsorted(second, first, side="right") - start
    i = np.repeat(np.arange(len(first)), count)
    offset = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    return i, np.repeat(start, count) + offset


def intersections(a: Floats, b: Floats) -> Floats:
    """Return the common area of each pair of boxes ``left, top, width, height`` (n, 4)."""
    width = np.minimum(a[:, 0] + a[:, 2], b[:, 0] + b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 1] + a[:, 3], b[:, 1] + b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    common: Floats = np.maximum(width, 0) * np.maximum(height, 0)
    return common


def overlapping(
    frames: Ints, boxes: Floats, true_frames: Ints, true_boxes: Floats, threshold: float
) -> tuple[Pairs, Pairs]:
    """Return the pairs whose intersection over union, and over the detection's area, is at least ``threshold``.

    Args:
        frames: (n,) frames of the detections, sorted.
        boxes: (n, 4) detections ``left, top, width, height``; areas are width × height.
        true_frames, true_boxes: the same of the ground truth, sorted by frame.
        threshold: smallest overlap, above 0.
    """
    count = np.searchsorted(true_frames, frames, side="right") - np.searchsorted(true_frames, frames, side="left")
    last = np.cumsum(count)
    pieces = np.searchsorted(last, np.arange(_CHUNK, last[-1] if len(last) else 0, _CHUNK)).tolist()
    bounds = sorted({0, *pieces, len(frames)})
    found: tuple[list[Pairs], list[Pairs]] = ([_none()], [_none()])
    for start, stop in itertools.pairwise(bounds):
        i, j = frame_pairs(frames[start:stop], true_frames)
        i += start
        a, b = boxes[i], true_boxes[j]
        common = intersections(a, b)
        touching = np.flatnonzero(common > 0)
        i, j, common = i[touching], j[touching], common[touching]
        area, true_area = a[touching, 2] * a[touching, 3], b[touching, 2] * b[touching, 3]
        for kept, overlap in zip(found, (common / (area + true_area - common), common / area), strict=True):
            enough = np.flatnonzero(overlap >= threshold)
            kept.append(Pairs(i[enough], j[enough], overlap[enough]))
    union, within = (Pairs(*(np.concatenate(parts) for parts in zip(*kept, strict=True))) for kept in found)
    return union, within


def _none() -> Pairs:
    return Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))


def strictly_inside(frames: Ints, boxes: Floats, region_frames: Ints, regions: Floats) -> Flags:
    """Return which boxes lie strictly inside (all four edges) a region of their frame; both are sorted by frame."""
    i, j = frame_pairs(frames, region_frames)
    a, b = boxes[i], regions[j]
    low, high = a[:, :2] > b[:, :2], a[:, :2] + a[:, 2:] < b[:, :2] + b[:, 2:]
    inside = np.zeros(len(frames), dtype=bool)
    inside[i[(low & high).all(1)]] = True
    return inside


def places(frames: Ints) -> Ints:
    """Return each row's place among those of its frame, from 0; ``frames`` is sorted."""
    place: Ints = np.arange(len(frames)) - np.searchsorted(frames, frames)
    return place


def by_preference(pairs: Pairs, rank: Ints) -> Pairs:
    """Return the pairs in the order that :func:`match` takes.

    Detections come by their place in their frame; each one's pairs by rising overlap, then by the box's place in the
    file, so that the one it would rather have comes last.

    Args:
        pairs: in any order; box indices rise in file order.
        rank: (detections,) place of each detection in its frame by falling score, from 0.
    """
    order = np.lexsort((pairs.box, pairs.overlap, pairs.detection, rank[pairs.detection]))
    return pairs.at(order)


def match(pairs: Pairs, rank: Ints, boxes: int, shared: Flags | None = None) -> Ints:
    """Match greedily and return the box of each detection, -1 for those that get none.

    Each detection, by falling score in its frame, takes the last of its pairs whose box is still free.

    Args:
        pairs: candidates, in the order of :func:`by_preference`.
        rank: (detections,) place of each detection in its frame by falling score, from 0.
        boxes: number of boxes.
        shared: (boxes,) which boxes any number of detections may have; None: no box.
    """
    matched = np.full(len(rank), -1, dtype=np.int64)
    free = np.ones(boxes, dtype=bool)
    ranks = rank[pairs.detection]
    bounds = np.searchsorted(ranks, np.arange(int(ranks[-1]) + 2)) if len(ranks) else np.zeros(1, dtype=np.int64)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        candidates = np.flatnonzero(free[pairs.box[start:stop]]) + start
        owners = pairs.detection[candidates]
        best = candidates[np.append(owners[1:] != owners[:-1], True)] if len(candidates) else candidates
        taken = pairs.box[best]
        matched[pairs.detection[best]] = taken
        free[taken] = False if shared is None else shared[taken]
    return matched


def average_precision(scores: Floats, hits: Flags, positives: int) -> float | None:
    """Return the area under the monotone precision envelope over recall (PASCAL VOC 2010), in percent.

    Args:
        scores: (n,) scores; equal ones keep their order.
        hits: (n,) whether a detection is a true positive.
        positives: boxes to be found; None is returned where there are none.
    """
    if positives == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    recall = np.concatenate([[0.0], found / positives])
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(100 * np.sum(np.diff(recall) * envelope))

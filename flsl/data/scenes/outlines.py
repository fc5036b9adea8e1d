"""Masks as COCO stores them: polygons along the pixels' edges, and run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
# right, down, left, up: a clockwise turn (as seen, y down) is one step on
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def segmentation(mask: Mask) -> list[list[int]] | dict[str, Any]:
    """Return the exact mask as COCO's ``segmentation``.

    One polygon ``[x, y, x, y, …]`` for each connected part (pixels that touch at a corner only are not connected);
    run lengths where a part has a hole, which polygons cannot say.
    """
    polygons = [np.array(outline) for outline in outlines(mask)]
    if any(_turning_area(polygon) < 0 for polygon in polygons):
        return run_lengths(mask)
    return [polygon.ravel().tolist() for polygon in polygons]


def run_lengths(mask: Mask) -> dict[str, Any]:
    """Return the mask as COCO's uncompressed RLE: lengths of runs of 0, 1, 0, … down the columns."""
    flat = mask.ravel(order="F")
    bounds = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    counts = np.diff(bounds).tolist()
    # a run of zeros comes first, be it of none
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def outlines(mask: Mask) -> list[list[tuple[int, int]]]:
    """Trace the mask's outlines along pixel edges; each is the list of its corners (x, y).

    The mask lies on the right of the way: outer outlines run clockwise as seen (y down), holes the other way.
    """
    edges = _edges(mask)
    found = []
    while edges:
        start = next(iter(edges))
        x, y, direction = start
        corners = []
        while (x, y, direction) in edges:
            del edges[x, y, direction]
            x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
            # where two pixels touch at this corner only, the right turn stays with the same pixel
            for turn in (1, 0, 3):
                following = (direction + turn) % 4
                if (x, y, following) in edges or (x, y, following) == start:
                    break
            if following != direction:
                corners.append((x, y))
            direction = following
        found.append(corners)
    return found


def _edges(mask: Mask) -> dict[tuple[int, int, int], None]:
    """Return the unit edges (x, y, direction) between the mask and what is not, in reading order."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    # each pixel's top edge runs right from its left corner, its right edge down, its bottom edge left, its left edge up
    sides = (
        (inner & ~padded[:-2, 1:-1], 0, 0),
        (inner & ~padded[1:-1, 2:], 1, 0),
        (inner & ~padded[2:, 1:-1], 1, 1),
        (inner & ~padded[1:-1, :-2], 0, 1),
    )
    edges: dict[tuple[int, int, int], None] = {}
    for direction, (side, right, down) in enumerate(sides):
        for y, x in np.argwhere(side).tolist():
            edges[x + right, y + down, direction] = None
    return edges


def _turning_area(polygon: NDArray[np.int_]) -> float:
    """Return the polygon's area, negative for an outline that runs anticlockwise as seen (y down)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2

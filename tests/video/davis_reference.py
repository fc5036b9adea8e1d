"""DAVIS' semi-supervised measures once more, pixel by pixel, object by object and frame by frame."""

from __future__ import annotations

import math

import numpy as np


def edge(mask):
    """The boundary map: pixels whose right, lower or lower right neighbour (where there is one) differs."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            right, below = min(x + 1, width - 1), min(y + 1, height - 1)
            neighbours = [mask[y, right], mask[below, x], mask[below, right]]
            found[y, x] = any(neighbour != mask[y, x] for neighbour in neighbours)
    return found


def within(points, others, radius):
    """How many points have one of the others at a Euclidean distance of at most ``radius``."""
    return sum(((others - point) ** 2).sum(1).min() <= radius**2 for point in points)


def region(truth, found):
    union = (truth | found).sum()
    return 1.0 if union == 0 else (truth & found).sum() / union


def contour(truth, found):
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    true_edge, found_edge = np.argwhere(edge(truth)), np.argwhere(edge(found))
    if len(true_edge) == 0 and len(found_edge) == 0:
        return 1.0
    if len(true_edge) == 0 or len(found_edge) == 0:
        return 0.0
    precision = within(found_edge, true_edge, radius) / len(found_edge)
    recall = within(true_edge, found_edge, radius) / len(true_edge)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def statistics(values):
    count = len(values)
    # quarter ends at 1 + i (n - 1) / 4, counted from one, halves rounded to even after a nudge of 1e-10
    ends = [round(1 + i * (count - 1) / 4 + 1e-10) for i in range(5)]
    first, last = values[ends[0] - 1 : ends[1]], values[ends[3] - 1 : ends[4]]
    return np.mean(values), np.mean([value > 0.5 for value in values]), np.mean(first) - np.mean(last)


def evaluate(sequences):
    """Figures in [0, 1] of ``{name: (truths, predictions)}``, lists of label maps over all frames."""
    rows = {}
    for name, (truths, predictions) in sequences.items():
        first = np.where(truths[0] == 255, 0, truths[0])
        for identity in range(1, int(first.max()) + 1):
            pairs = [
                (truth == identity, found == identity)
                for truth, found in zip(truths[1:-1], predictions[1:-1], strict=True)
            ]
            rows[name, identity] = (
                *statistics([region(*pair) for pair in pairs]),
                *statistics([contour(*pair) for pair in pairs]),
            )
    means = np.mean(list(rows.values()), axis=0)
    return {"J&F": (means[0] + means[3]) / 2, "means": means, "rows": rows}

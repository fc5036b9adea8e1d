"""Labels from the nearest features of other frames: the propagation step of DINO's protocol (arXiv 2104.14294)."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_TILE = 16


def propagate_labels(
    queries: Tensor, keys: Tensor, labels: Tensor, radius: int, top_k: int, temperature: float
) -> Tensor:
    """Give each query token the mean label of its best keys, weighted by exp(cos / temperature).

    The keys of a query are the tokens of all context frames at most ``radius`` rows and columns away. The grid is cut
    into square tiles of queries; a tile meets only the rectangle of keys that its window covers, in one matrix product.
    Time is thus linear in tokens × window × frames, and memory is that of one tile's products.

    Keys that tie with the ``top_k``-th best are all kept, as in DINO's code; the result does not depend on an order.

    Args:
        queries: features (height, width, C) of one frame, of unit length.
        keys: features (frames, height, width, C) of the context, of unit length.
        labels: soft labels (frames, height, width, K) of the context.
        radius: half side of the window, in tokens; 0 is the same place only.
        top_k: keys kept a query; where the window has fewer, all are.
        temperature: of the weights.

    Returns:
        Soft labels (height, width, K).
    """
    height, width, _ = queries.shape
    # larger tiles make larger products, smaller ones meet fewer keys outside their queries' windows
    side = min(_LARGEST_TILE, radius + 4)
    result = labels.new_empty(height, width, labels.shape[-1])
    for top in range(0, height, side):
        rows = slice(top, min(top + side, height))
        key_rows = slice(max(0, rows.start - radius), min(height, rows.stop + radius))
        for left in range(0, width, side):
            columns = slice(left, min(left + side, width))
            key_columns = slice(max(0, columns.start - radius), min(width, columns.stop + radius))
            cosines = _flat(queries[rows, columns]) @ _flat(keys[:, key_rows, key_columns]).T
            above = _beyond(rows, key_rows, radius, cosines.device)
            beside = _beyond(columns, key_columns, radius, cosines.device)
            outside = above[:, None, :, None] | beside[:, None]
            penalty = cosines.new_zeros(outside.shape).masked_fill_(outside, -torch.inf)
            # (queries, frames × keys), its frames all masked alike
            cosines.view(len(cosines), len(keys), -1).add_(penalty.flatten(2).flatten(0, 1)[:, None])
            best = _mean_of_best(cosines, _flat(labels[:, key_rows, key_columns]), top_k, temperature)
            result[rows, columns] = best.view(rows.stop - rows.start, columns.stop - columns.start, -1)
    return result


def _flat(grid: Tensor) -> Tensor:
    return grid.reshape(-1, grid.shape[-1])


def _beyond(queries: slice, keys: slice, radius: int, device: torch.device) -> Tensor:
    """Tell for each pair of a query's and a key's row (or column) whether they are more than ``radius`` apart."""
    places, others = (torch.arange(part.start, part.stop, device=device) for part in (queries, keys))
    return (places[:, None] - others).abs() > radius


def _mean_of_best(cosines: Tensor, labels: Tensor, top_k: int, temperature: float) -> Tensor:
    """Return the labels (queries, K) that the best of ``cosines`` (queries, keys) give; ``labels`` is (keys, K)."""
    kept = min(top_k, cosines.shape[1])
    # one more than is kept, to see whether it ties with the last one kept
    values, indices = cosines.topk(min(kept + 1, cosines.shape[1]))
    weights = torch.softmax(values[:, :kept] / temperature, 1)
    means = torch.einsum("qk,qkl->ql", weights.to(labels.dtype), labels[indices[:, :kept]])
    if values.shape[1] > kept:
        tied = torch.nonzero((values[:, kept] == values[:, kept - 1]) & values[:, kept].isfinite()).flatten()
        if len(tied):
            short = cosines[tied]
            short = short.masked_fill(short < values[tied, kept - 1, None], -torch.inf)
            means[tied] = torch.softmax(short / temperature, 1).to(labels.dtype) @ labels
    return means

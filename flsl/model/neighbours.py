"""Exact nearest neighbours by similarity, in bounded memory, and k-NN classification as DINO's (arXiv 2104.14294).

Ties have one outcome: of two neighbours with equal computed similarity the one with the smaller index is nearer; of two
classes with equal votes the one with the smaller index wins, and classes without any vote come after all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flsl.runtime.errors import UserError
from flsl.runtime.progress import bar

_QUERIES = 256  # a chunk: enough for a full-speed matrix product, few enough for long chunks of the bank
_SLICES = 8  # rows with ties are settled a slice of a chunk at a time, as that takes several bytes a similarity
_LEAST_LENGTH = 1e-12  # of a row of zeros, whose cosine with anything is 0
TOP = 5  # predictions kept a query


@torch.no_grad()
def top_neighbours(
    queries: Tensor,
    bank: Tensor,
    k: int,
    memory_mb: int = 1024,
    device: torch.device | None = None,
    cosine: bool = True,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` rows of ``bank`` that are most similar to each row of ``queries``.

    Both sets are cut into chunks; the bank goes through the device once. The result does not depend on how rows are
    cut, but for the rounding of the matrix product.

    Args:
        queries: (M, C), of any floating type and on any device.
        bank: (N, C), likewise; chunks are converted to float32.
        k: neighbours a query, 1 … N.
        memory_mb: for the similarities and the chunks' copies, in MiB; the result takes 12 bytes a neighbour more.
        device: where to compute; None: where the bank is.
        cosine: whether the similarity is the cosine; else the inner product.
        progress: whether to show a bar.

    Returns:
        similarities (M, k), float32, falling, and indices into the bank (M, k), int64, on ``device``.

    Raises:
        UserError: when the bank has fewer than ``k`` rows, or a row is not finite.
    """
    if k > len(bank):
        raise UserError(f"k-NN: {k} neighbours are asked for, but there are only {len(bank)} to choose from")
    device = bank.device if device is None else device
    rows, columns = _chunk_sizes(len(queries), len(bank), bank.shape[1], memory_mb)
    best = torch.full((len(queries), k), -torch.inf, device=device)
    indices = torch.zeros((len(queries), k), dtype=torch.int64, device=device)
    pairs = math.ceil(len(queries) / rows) * math.ceil(len(bank) / columns)
    with bar("k-NN (pairs of chunks)", pairs, enabled=progress) as shown:
        for first, keys in _chunks(bank, columns, device, cosine):
            for start, asked in _chunks(queries, rows, device, cosine):
                found, places = _row_top(asked @ keys.T, min(k, len(keys)))
                part = slice(start, start + len(asked))
                # stable: what was found earlier, at smaller indices, stays before equals
                merged, order = torch.cat([best[part], found], 1).sort(dim=1, descending=True, stable=True)
                best[part] = merged[:, :k]
                indices[part] = torch.cat([indices[part], places + first], 1).gather(1, order[:, :k])
                shown.advance()
    return best, indices


def _chunk_sizes(queries: int, bank: int, width: int, memory_mb: int) -> tuple[int, int]:
    """Return how many queries and how many rows of the bank are compared at a time.

    Half of the memory is for similarities; the rest for the chunks as float32, their normalised copies, and ties.
    """
    numbers = memory_mb * 2**20 // 4
    rows = max(1, min(queries, _QUERIES))
    columns = max(1, min(bank, numbers // 2 // rows, numbers // 8 // width))
    return max(1, min(queries, numbers // 2 // columns, numbers // 16 // width)), columns


def _chunks(features: Tensor, size: int, device: torch.device, cosine: bool) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(features), size):
        chunk = features[start : start + size].to(device, torch.float32)
        # a row's length is finite only if the row is: this spares a pass over all numbers
        lengths = torch.linalg.vector_norm(chunk, dim=1, keepdim=True)
        finite = lengths.isfinite()
        if not finite.all():
            row = start + int(finite.logical_not().nonzero()[0, 0])
            raise UserError(f"features: row {row} is not finite (NaN or infinity); the encoder has diverged")
        yield start, chunk / lengths.clamp_min(_LEAST_LENGTH) if cosine else chunk


def _row_top(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of each row, falling, equals in rising order of index, and their indices."""
    # one more than asked for shows whether the last one has an equal that was left out
    values, places = similarities.topk(min(k + 1, similarities.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    values, places = values[:, :k], places[:, :k]
    if len(tied):
        values, places = values.clone(), places.clone()
        for part in torch.split(tied, max(1, len(similarities) // _SLICES)):
            values[part], places[part] = _tied_top(similarities[part], values[part, -1:], k)
    return values, places


def _tied_top(similarities: Tensor, least: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return what :func:`_row_top` does, of rows whose ``k``-th largest value is ``least`` (rows, 1)."""
    larger, equal = similarities > least, similarities == least
    room = k - larger.sum(1, keepdim=True)
    kept = larger | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
    places = kept.nonzero()[:, 1].reshape(len(similarities), k)
    values, order = similarities.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def vote(similarities: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Return each class's share of the neighbours' votes, weighted exp(similarity / temperature).

    Args:
        similarities: (M, k), the nearest first.
        labels: (M, k), classes of the neighbours, 0 … classes - 1.
        classes: number of classes.
        temperature: of the weights; DINO's is 0.07.

    Returns:
        shares (M, classes), float64, each row's sum is 1.
    """
    # relative to the nearest neighbour: shares are the same, and no temperature overflows
    weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
    shares = weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)
    return shares / weights.sum(1, keepdim=True)


def predict(
    similarities: Tensor, labels: Tensor, classes: int, temperature: float, memory_mb: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return the classes with the most votes, best first, and their shares of the votes.

    Args:
        similarities, labels, classes, temperature: as for :func:`vote`.
        memory_mb: for the votes of a chunk of queries, in MiB.

    Returns:
        classes (M, min(5, classes)), int64; shares of the same shape, float64.
    """
    rows = max(1, memory_mb * 2**20 // (classes * 8 * 4))  # shares, their sorted copy, its indices and some room
    predicted, shares = [], []
    for near, named in zip(torch.split(similarities, rows), torch.split(labels, rows), strict=True):
        ranked, order = vote(near, named, classes, temperature).sort(dim=1, descending=True, stable=True)
        shares.append(ranked[:, :TOP].clone())
        predicted.append(order[:, :TOP].clone())
    return torch.cat(predicted), torch.cat(shares)


def knn_predictions(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    k: Sequence[int],
    temperature: float = 0.07,
    memory_mb: int = 1024,
    device: torch.device | None = None,
    progress: bool = False,
) -> dict[int, Tensor]:
    """Classify queries by their nearest neighbours in the bank.

    Args:
        queries: features (M, C), M ≥ 1; cosines are taken, so their lengths do not matter.
        bank: features (N, C) to choose neighbours from.
        bank_labels: (N,), classes 0 … classes - 1.
        classes: number of classes.
        k: numbers of neighbours; one search serves all.
        temperature, memory_mb, device, progress: as for :func:`vote` and :func:`top_neighbours`.

    Returns:
        for each of ``k`` the predicted classes (M, min(5, classes)) as of :func:`predict`, on the CPU.

    Raises:
        UserError: when the bank has fewer rows than the largest of ``k``.
    """
    similarities, indices = top_neighbours(queries, bank, max(k), memory_mb, device, progress=progress)
    labels = bank_labels.to(indices.device)[indices]
    return {
        count: predict(similarities[:, :count], labels[:, :count], classes, temperature, memory_mb)[0].cpu()
        for count in sorted(set(k))
    }


def accuracies(predictions: dict[int, Tensor], labels: Tensor, classes: int) -> dict[str, float]:
    """Return the percentages of queries whose class is the first, or among the first five (k if less), predicted.

    Args:
        predictions: from :func:`knn_predictions`.
        labels: the queries' classes (M,), on the CPU.
        classes: number of classes; with fewer than five, top-5 says nothing and is left out.

    Returns:
        ``top1@<k>`` and ``top5@<k>`` in percent.
    """
    figures = {}
    for k, predicted in predictions.items():
        right = predicted == labels[:, None]
        figures[f"top1@{k}"] = 100 * right[:, 0].double().mean().item()
        if classes >= TOP:
            # as DINO's: k neighbours vote for k classes at most, and the next are the first that nobody voted for
            figures[f"top5@{k}"] = 100 * right[:, : min(TOP, k)].any(1).double().mean().item()
    return figures


def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    k: Sequence[int],
    temperature: float = 0.07,
    memory_mb: int = 1024,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Return :func:`accuracies` of :func:`knn_predictions`, e.g. ``{"top1@20": 70.6, "top5@20": 95.1}``."""
    predictions = knn_predictions(queries, bank, bank_labels, classes, k, temperature, memory_mb, device)
    return accuracies(predictions, query_labels.cpu(), classes)

"""DAVIS 2017 semi-supervised evaluation with the figures of the official tool, davis2017-evaluation.

Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation" (arXiv 1704.00675). What the official tool
fixes beyond the papers, and this one follows:

- a sequence's objects are 1…n, n the largest id in its first mask; void (255) is background;
- the first and the last frame are left out;
- all figures are means over objects (not sequences), and J&F is the mean of the two means.

It differs in one thing: pixels of ids that the ground truth does not have count as background, where the official
tool stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flsl.config.data import DavisDataSettings
from flsl.runtime.errors import UserError
from flsl.runtime.processes import cores, parallel_map
from flsl.runtime.progress import track, warn
from flsl.video.davis_measures import Values, region_and_contour, statistics
from flsl.video.sequences import (
    VOID,
    LabelMap,
    ground_truth,
    predicted,
    read_first_mask,
    read_mask,
    sequence_names,
)

_FRAMES_A_PIECE = 16  # pieces, not whole sequences, so that long and short ones fill the processes alike
_FRAMES_A_PROCESS = 200  # a process takes about as long to start as to measure these


@dataclass(frozen=True)
class Evaluation:
    """The figures of a set of sequences, in percent.

    Attributes:
        metrics: ``davis/J&F-Mean``, ``davis/J-Mean``, ``davis/J-Recall``, ``davis/J-Decay`` and F's three.
        sequences: a row per sequence: name, counts and the same figures, means over its objects.
        objects: a row per object: sequence, id and the same figures.
    """

    metrics: dict[str, float]
    sequences: list[dict[str, Any]]
    objects: list[dict[str, Any]]


@dataclass(frozen=True)
class _Piece:
    """Some frames of a sequence: what one process measures at a time."""

    sequence: str
    objects: int
    truth: tuple[Path, ...]
    predicted: tuple[Path, ...]


@dataclass(frozen=True)
class _Measured:
    """J and F (objects, frames) of a piece; whether any object is predicted in it, and which ids beyond them are."""

    region: Values
    contour: Values
    predicted: bool
    superfluous: frozenset[int]


def evaluate(
    data: DavisDataSettings, split: str, masks: Path, only: Iterable[str] = (), processes: int = 0
) -> Evaluation:
    """Evaluate predicted masks against the annotations.

    Args:
        data: DAVIS' folders.
        split: name of the list of sequences.
        masks: folder of the predicted masks, ``<sequence>/%05d.png``.
        only: sequences to evaluate; empty takes the split's.
        processes: number of processes at most; 0 takes one a processor.

    Raises:
        UserError: for masks that are missing, unreadable, or of another size than the annotations.
    """
    names = sequence_names(data, split, only)
    pieces = [piece for name in names for piece in _pieces(data, masks, name)]
    measured: dict[str, list[_Measured]] = {name: [] for name in names}
    worth = 1 + sum(len(piece.truth) for piece in pieces) // _FRAMES_A_PROCESS
    with parallel_map(min(processes or cores(), worth), "a measuring process") as mapping:
        results = track(mapping(_measure, pieces), "davis evaluate", len(pieces))
        for piece, result in zip(pieces, results, strict=True):
            measured[piece.sequence].append(result)
    objects = [row for name in names for row in _object_rows(name, measured[name], masks / name)]
    sequences = [_sequence_row(name, measured[name], objects) for name in names]
    return Evaluation({f"davis/{name}": value for name, value in _means(objects).items()}, sequences, objects)


def _pieces(data: DavisDataSettings, masks: Path, name: str) -> Iterator[_Piece]:
    truth = ground_truth(data, name)
    first = read_first_mask(truth[0])
    objects = int(first.max())
    absent = sorted(set(range(1, objects + 1)) - set(np.unique(first).tolist()))
    if absent:
        listed = ", ".join(map(str, absent))
        warn(f"{truth[0]}: ids are not 1…{objects} without a gap; as in the official tool, {listed} count as objects")
    evaluated = truth[1:-1]
    found = predicted(masks, name, evaluated)
    for start in range(0, len(evaluated), _FRAMES_A_PIECE):
        chosen = slice(start, start + _FRAMES_A_PIECE)
        yield _Piece(name, objects, evaluated[chosen], found[chosen])


def _measure(piece: _Piece) -> _Measured:
    region = np.empty((piece.objects, len(piece.truth)))
    contour = np.empty_like(region)
    any_object, superfluous = False, set[int]()
    for index, (true_path, found_path) in enumerate(zip(piece.truth, piece.predicted, strict=True)):
        truth, found = read_mask(true_path), read_mask(found_path)
        if truth.shape != found.shape:
            raise UserError(
                f"{found_path}: {_size(found)} pixels, but its ground truth {true_path} has {_size(truth)}; "
                "masks are evaluated at the annotations' size"
            )
        region[:, index], contour[:, index] = region_and_contour(truth, found, piece.objects)
        beyond = found > piece.objects
        any_object |= bool(((found > 0) & ~beyond).any())
        superfluous.update(np.unique(found[beyond]).tolist())
    return _Measured(region, contour, any_object, frozenset(superfluous))


def _size(labels: LabelMap) -> str:
    return f"{labels.shape[1]}×{labels.shape[0]}"


def _object_rows(name: str, measured: Sequence[_Measured], folder: Path) -> list[dict[str, Any]]:
    region = np.concatenate([part.region for part in measured], axis=1)
    contour = np.concatenate([part.contour for part in measured], axis=1)
    superfluous = frozenset[int]().union(*(part.superfluous for part in measured))
    if superfluous == {VOID} and not any(part.predicted for part in measured):
        raise UserError(f"{folder}: 0/255 masks; objects are given by ids 1…n (write 1 for 255), 255 is void")
    if superfluous:
        listed = ", ".join(map(str, sorted(superfluous)))
        warn(f"{folder}: the ground truth has no objects {listed}; their pixels count as background")
    return [{"sequence": name, "object": i + 1, **_figures(region[i], contour[i])} for i in range(len(region))]


def _sequence_row(name: str, measured: Sequence[_Measured], objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for row in objects if row["sequence"] == name]
    frames = sum(part.region.shape[1] for part in measured)
    return {"sequence": name, "objects": len(rows), "frames": frames, **_means(rows)}


def _figures(region: Values, contour: Values) -> dict[str, float]:
    (j_mean, j_recall, j_decay), (f_mean, f_recall, f_decay) = statistics(region), statistics(contour)
    return {
        "J&F-Mean": 50 * (j_mean + f_mean),
        "J-Mean": 100 * j_mean,
        "J-Recall": 100 * j_recall,
        "J-Decay": 100 * j_decay,
        "F-Mean": 100 * f_mean,
        "F-Recall": 100 * f_recall,
        "F-Decay": 100 * f_decay,
    }


def _means(objects: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Average the objects' figures; the mean of J&F is also the mean of J's and F's means."""
    return {
        name: float(np.mean([row[name] for row in objects]))
        for name in objects[0]
        if name not in ("sequence", "object")
    }

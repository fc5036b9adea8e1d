"""UAVDT's figures (Du et al., ECCV 2018): the official AP at IoU 0.7 with its attribute tables, and COCO-style AP.

The official by-object script has two faults: a box of another label can never be matched, so that every detection on it
counts as false, and recall's denominator still counts it. That figure is ``official``. Beside it stands ``corrected``:
boxes of other labels are ignored (a detection that finds no free box of the label and lies on one, by 0.7 of the
detection's area, counts as neither true nor false), and recall counts the label's boxes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flsl.data.uavdt import CATEGORIES, LAST_FRAME
from flsl.detect.coco_eval import CocoFigures
from flsl.detect.coco_files import Record
from flsl.detect.uavdt_coco import Boxes, coco_stats
from flsl.detect.uavdt_files import Rows, Sequence, read_detections, read_sequences, truth_files
from flsl.detect.uavdt_match import (
    Flags,
    Floats,
    Ints,
    Pairs,
    average_precision,
    by_preference,
    match,
    overlapping,
    places,
    strictly_inside,
)
from flsl.runtime.outputs import StageRecord
from flsl.runtime.progress import warn

THRESHOLD = 0.7
SEQUENCE_ATTRIBUTES: Mapping[str, frozenset[str]] = {
    name: frozenset(members.split())
    for name, members in {
        "day": "M0208 M0209 M0403 M0601 M0602 M0606 M0801 M0802 M1301 M1302 M1303 M1401",
        "night": "M0203 M0205 M1001 M1007 M1101",
        "fog": "M0701 M1004 M1009",
        "low-alt": "M0203 M0205 M0209 M0801 M0802 M1101 M1303 M1401",
        "medium-alt": "M0208 M0403 M0602 M0606 M1001 M1004 M1007 M1009 M1301 M1302",
        "high-alt": "M0601 M0701",
        "front-view": "M0208 M0209 M0403 M0601 M0602 M0606 M1001 M1004 M1007 M1101 M1301 M1401",
        "side-view": "M0205 M0209 M0403 M0601 M0606 M0802 M1101 M1302 M1303",
        "bird-view": "M0203 M0701 M0801 M1009",
        "long-term": "M0209 M1001",
    }.items()
}
"""Test sequences by the official toolkit's attributes."""
OBJECT_ATTRIBUTES: Mapping[str, Mapping[int, str]] = {
    "category": CATEGORIES,
    "occlusion": {1: "none", 2: "large", 3: "medium", 4: "small"},
    "out_of_view": {1: "none", 2: "medium", 3: "small"},
}
"""Labels of the ground truth's columns by their codes."""


class Pool(NamedTuple):
    """Detections and boxes of several sequences, ready to be matched; the ignore regions' detections are gone.

    Attributes:
        sequence, score, rank: of each detection: its sequence's index, score, and place in its frame by falling score.
            Detections are ordered by sequence, frame and falling score.
        owner: (boxes,) each box's sequence index.
        labels: the boxes' columns ``category``, ``occlusion``, ``out_of_view``.
        pairs: detection and box overlap by 0.7 of their union; in the order of :func:`by_preference`.
        covered: detection and box overlap by 0.7 of the detection.
    """

    sequence: Ints
    score: Floats
    rank: Ints
    owner: Ints
    labels: pd.DataFrame
    pairs: Pairs
    covered: Pairs


def pool(sequences: list[Sequence], detections: Mapping[str, Rows]) -> Pool:
    """Drop the detections that lie in ignore regions and find the overlapping pairs, sequence by sequence."""
    owners, scores, ranks, boxes, labels = [], [], [], [], []
    pairs: tuple[list[Pairs], list[Pairs]] = ([], [])
    first_detection = first_box = 0
    for index, each in enumerate(sequences):
        rows = detections[each.name]
        rows = rows[np.lexsort((-rows[:, 5], rows[:, 0]))]
        ignore = _by_frame(each.ignore)
        frames = rows[:, 0].astype(np.int64)
        inside = strictly_inside(frames, rows[:, 1:5], _frames(ignore), _boxes(ignore))
        rows, frames = rows[~inside], frames[~inside]
        truth = _by_frame(each.truth)
        found = overlapping(frames, rows[:, 1:5], _frames(truth), _boxes(truth), THRESHOLD)
        for kept, new in zip(pairs, found, strict=True):
            kept.append(Pairs(new.detection + first_detection, new.box + first_box, new.overlap))
        owners.append(np.full(len(rows), index))
        scores.append(rows[:, 5])
        ranks.append(places(frames))
        boxes.append(np.full(len(truth), index))
        labels.append(truth[list(OBJECT_ATTRIBUTES)])
        first_detection += len(rows)
        first_box += len(truth)
    rank = np.concatenate(ranks)
    union, covered = (Pairs(*(np.concatenate(parts) for parts in zip(*each, strict=True))) for each in pairs)
    return Pool(
        np.concatenate(owners),
        np.concatenate(scores),
        rank,
        np.concatenate(boxes),
        pd.concat(labels, ignore_index=True),
        by_preference(union, rank),
        covered,
    )


def _by_frame(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("frame", kind="stable")


def _frames(table: pd.DataFrame) -> Ints:
    return table["frame"].to_numpy(np.int64)


def _boxes(table: pd.DataFrame) -> Floats:
    return table[["left", "top", "width", "height"]].to_numpy(np.float64)


def sequence_table(pooled: Pool, sequences: list[Sequence]) -> tuple[float | None, dict[str, float], list[Record]]:
    """Return AP@0.7 over all sequences, by sequence attribute, and a row per sequence.

    Attributes that no evaluated sequence with boxes has are left out.
    """
    hits = match(pooled.pairs, pooled.rank, len(pooled.owner)) >= 0

    def over(members: Flags) -> float | None:
        chosen = members[pooled.sequence]
        return average_precision(pooled.score[chosen], hits[chosen], int(members[pooled.owner].sum()))

    names = [each.name for each in sequences]
    attributes = {
        attribute: over(np.array([name in members for name in names]))
        for attribute, members in SEQUENCE_ATTRIBUTES.items()
    }
    rows: list[Record] = []
    for index, name in enumerate(names):
        found, boxes = pooled.sequence == index, int((pooled.owner == index).sum())
        rows.append(
            {
                "sequence": name,
                "AP@0.7": over(np.arange(len(names)) == index),
                "recall": 100 * float(hits[found].sum()) / boxes if boxes else None,
                "ground_truth": boxes,
                "detections": int(found.sum()),
            }
        )
    known = {name: value for name, value in attributes.items() if value is not None}
    return over(np.ones(len(names), dtype=bool)), known, rows


def object_table(pooled: Pool) -> list[Record]:
    """Return one row per label of the boxes: attribute, label, boxes, and AP@0.7 ``official`` and ``corrected``.

    Labels without boxes are left out.
    """
    rows: list[Record] = []
    for attribute, names in OBJECT_ATTRIBUTES.items():
        codes = pooled.labels[attribute].to_numpy()
        for code, name in names.items():
            mine = codes == code
            if not mine.any():
                continue
            candidates = mine[pooled.pairs.box]
            hits = match(pooled.pairs.at(candidates), pooled.rank, len(mine)) >= 0
            ignored = np.zeros(len(hits), dtype=bool)
            ignored[pooled.covered.detection[~mine[pooled.covered.box]]] = True
            counted = hits | ~ignored
            rows.append(
                {
                    "attribute": attribute,
                    "label": name,
                    "ground_truth": int(mine.sum()),
                    "official": average_precision(pooled.score, hits, len(mine)),
                    "corrected": average_precision(pooled.score[counted], hits[counted], int(mine.sum())),
                }
            )
    return rows


def coco_figures(sequences: list[Sequence], detections: Mapping[str, Rows]) -> dict[str, float]:
    """Return COCO's 12 figures over the same frames: one class, ignore regions as crowds, 100 detections per frame."""
    rows = [detections[each.name] for each in sequences]
    # frames of different sequences are different ones
    first = [index * (LAST_FRAME + 1) for index in range(len(sequences))]
    frames = np.concatenate([each[:, 0].astype(np.int64) + start for each, start in zip(rows, first, strict=True)])
    found = np.concatenate(rows)
    order = np.lexsort((-found[:, 5], frames))
    truth, crowds = (
        Boxes(
            np.concatenate([_frames(table) + start for table, start in zip(tables, first, strict=True)]),
            np.concatenate([_boxes(table) for table in tables]),
        )
        for tables in zip(*((_by_frame(each.truth), _by_frame(each.ignore)) for each in sequences), strict=True)
    )
    stats = coco_stats(Boxes(frames[order], found[order, 1:5]), found[order, 5], truth, crowds)
    return CocoFigures(stats, []).metrics("uavdt/coco")


def evaluate_files(
    ground_truth: Path,
    detections: Path,
    out: Path,
    sequences: list[str] | None = None,
    annotations: Path | None = None,
    run: str = "files",
) -> dict[str, Any]:
    """Evaluate UAVDT detections and write ``metrics.json``; return what was written.

    Metrics, percentages: ``uavdt/AP@0.7``; ``uavdt/AP@0.7/<sequence attribute>``;
    ``uavdt/AP@0.7/<object attribute>/<label>/official`` and ``…/corrected``; ``uavdt/coco/AP`` … ``uavdt/coco/ARl``.
    The tables ``sequences`` and ``objects`` have the counts besides.

    Args:
        ground_truth: folder of ``<sequence>_gt_whole.txt`` and ``<sequence>_gt_ignore.txt``.
        detections: folder of ``<sequence>.txt``, or a COCO result file.
        out: file to write.
        sequences: names to evaluate; None takes the official test sequences that are there.
        annotations: COCO file that tells the results' image ids; None takes :func:`image_id`'s.
        run: name of the run that the figures belong to.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    truth = read_sequences(ground_truth, sequences)
    found, skipped = read_detections(detections, truth, annotations)
    names = [each.name for each in truth]
    inputs = truth_files(Path(ground_truth), names)
    inputs += [Path(detections) / f"{name}.txt" for name in names] if Path(detections).is_dir() else [Path(detections)]
    record = StageRecord("uavdt", run, {"sequences": names, "threshold": THRESHOLD}, inputs)
    for reason, count in skipped.items():
        warn(f"{count} {reason} skipped")
    metrics, tables = figures(truth, found)
    return record.write(out, metrics, **tables, skipped=skipped)


def figures(
    sequences: list[Sequence], detections: Mapping[str, Rows]
) -> tuple[dict[str, float], dict[str, list[Record]]]:
    """Return all metrics by name, and the tables ``sequences`` and ``objects``."""
    pooled = pool(sequences, detections)
    overall, by_sequence, rows = sequence_table(pooled, sequences)
    objects = object_table(pooled)
    metrics = {} if overall is None else {"uavdt/AP@0.7": overall}
    metrics |= {f"uavdt/AP@0.7/{name}": value for name, value in by_sequence.items()}
    for row in objects:
        for convention in ("official", "corrected"):
            metrics[f"uavdt/AP@0.7/{row['attribute']}/{row['label']}/{convention}"] = row[convention]
    return metrics | coco_figures(sequences, detections), {"sequences": rows, "objects": objects}

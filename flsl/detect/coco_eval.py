"""COCO's average precision and recall of boxes and masks, from any files in COCO's formats.

The figures are pycocotools' to the last digit that is printed; faster-coco-eval, a compiled rewrite of it, computes
them (`tests/detect/test_coco_eval.py` compares the two on random inputs).
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from flsl.data.listing import no_collector
from flsl.detect.coco_files import Annotations, Record, read_annotations, read_results, with_masks
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import StageRecord
from flsl.runtime.progress import warn

IouType = Literal["bbox", "segm"]
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl")
"""COCO's 12 figures, in the order in which pycocotools prints them."""


class CocoFigures(NamedTuple):
    """Figures of one kind (boxes or masks).

    Attributes:
        stats: (12,) pycocotools' own ``stats``, in the order of :data:`FIGURES`: shares of 1, and -1 where there is no
            ground truth to measure on.
        classes: one row per category: its name, ``ground_truth`` (boxes that count), ``detections`` and its AP, AP50,
            AP75, APs, APm, APl and AR@100 in percent (None where it has no ground truth).
    """

    stats: NDArray[np.float64]
    classes: list[Record]

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the figures that could be measured, in percent, named ``<prefix>/AP`` and so on."""
        return {f"{prefix}/{name}": float(100 * v) for name, v in zip(FIGURES, self.stats, strict=True) if v >= 0}


def evaluate(truth: Annotations, detections: list[Record], kind: IouType, source: Path) -> CocoFigures:
    """Return COCO's figures of ``detections`` (read from ``source``) against ``truth``.

    Raises:
        UserError: when a mask is broken, or when masks are asked for and the ground truth has none.
    """
    annotations = truth.annotations
    if kind == "segm":
        annotations = true_masks(truth)
        detections = with_masks(detections, truth.images, source, "detection")
    elif any(not detection.get("bbox") for detection in detections):
        # only masks: their boxes are taken, which needs sound codes
        detections = with_masks(detections, truth.images, source, "detection")
    if any(annotation["id"] == 0 for annotation in annotations):
        warn(f"{truth.path}: an annotation has the id 0, which pycocotools counts as never found; number them from 1")
    # the rewrite takes ids that 64 bits do not hold, or double precision does not tell apart, for others or for none;
    # places among the sorted ids leave the order, and with it the figures, as they are
    images, categories = _places(truth.images), _places(truth.categories)
    annotations = [{**entry, "id": entry["id"] and place} for place, entry in enumerate(annotations, 1)]
    data = {
        "images": [{**image, "id": images[number]} for number, image in truth.images.items()],
        "categories": [{"id": categories[number], "name": name} for number, name in truth.categories.items()],
        "annotations": _placed(annotations, images, categories),
    }
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    with no_collector(), warnings.catch_warnings():
        # of the id 0, said above
        warnings.simplefilter("ignore", UserWarning)
        ground = COCO(data)
        found = ground.loadRes(_placed(_uniform(detections, source), images, categories))
        evaluator = COCOeval_faster(ground, found, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    stats = np.asarray(evaluator.stats[:12], dtype=np.float64)
    return CocoFigures(stats, _class_table(evaluator, truth, detections))


def _places(numbers: Iterable[int]) -> dict[int, int]:
    return {number: place for place, number in enumerate(sorted(numbers), 1)}


def _placed(records: Iterable[Record], images: dict[int, int], categories: dict[int, int]) -> list[Record]:
    """Return copies whose images and categories are named by their places."""
    return [
        {**record, "image_id": images[record["image_id"]], "category_id": categories[record["category_id"]]}
        for record in records
    ]


def true_masks(truth: Annotations) -> list[Record]:
    """Return the annotations, each ``segmentation`` as :func:`flsl.detect.coco_files.with_masks` makes it.

    Raises:
        UserError: naming the first annotation without a segmentation, or with a broken one.
    """
    without = _without_mask(truth)
    if without is not None:
        raise UserError(f"{truth.path}: annotation {without} has no segmentation; evaluate boxes only (bbox)")
    return with_masks(truth.annotations, truth.images, truth.path, "annotation")


def _without_mask(truth: Annotations) -> int | None:
    return next((entry["id"] for entry in truth.annotations if not entry.get("segmentation")), None)


def _uniform(detections: list[Record], source: Path) -> Iterator[Record]:
    """Yield copies in the one form that pycocotools' ``loadRes`` takes, which decides by the first detection."""
    if detections and detections[0].get("bbox"):
        missing = next((i for i, detection in enumerate(detections) if not detection.get("bbox")), None)
        if missing is not None:
            raise UserError(f"{source}: detection {missing} has no bbox but the first one has; give all or none")
    for detection in detections:
        yield {k: v for k, v in detection.items() if k != "bbox" or v}


def _class_table(evaluator: Any, truth: Annotations, detections: list[Record]) -> list[Record]:
    shape = [len(evaluator.params.iouThrs), len(evaluator.params.recThrs), len(truth.categories), 4, 3]
    precision = np.asarray(evaluator.eval["precision"]).reshape(shape)[..., -1]
    recall = np.asarray(evaluator.eval["recall"]).reshape([shape[0], *shape[2:]])[..., -1]
    real = Counter(entry["category_id"] for entry in truth.annotations if not entry["iscrowd"])
    found = Counter(entry["category_id"] for entry in detections)
    rows = []
    for index, (number, name) in enumerate(sorted(truth.categories.items())):
        values = {
            "AP": precision[:, :, index, 0],
            "AP50": precision[0, :, index, 0],
            "AP75": precision[5, :, index, 0],
            "APs": precision[:, :, index, 1],
            "APm": precision[:, :, index, 2],
            "APl": precision[:, :, index, 3],
            "AR@100": recall[:, index, 0],
        }
        row: Record = {"id": number, "name": name, "ground_truth": real[number], "detections": found[number]}
        rows.append(row | {key: _percent(value) for key, value in values.items()})
    return rows


def _percent(values: NDArray[np.float64]) -> float | None:
    measured = values[values > -1]
    return float(100 * measured.mean()) if measured.size else None


def evaluate_files(
    annotations: Path, detections: Path, out: Path, kinds: list[IouType] | None = None, run: str = "files"
) -> Record:
    """Evaluate a COCO result file and write ``metrics.json``; return what was written.

    Metrics are ``coco/bbox/AP`` … ``coco/bbox/ARl`` and ``coco/segm/…``, percentages; those without any ground truth
    to measure on are left out there and stand as -1 in ``stats`` (pycocotools' own 12 numbers). ``classes`` has a
    table a kind, ``skipped`` counts what was left out of the files.

    Args:
        annotations: COCO ``instances_*.json``.
        detections: COCO results: a list of image_id, category_id, score and bbox and/or segmentation.
        out: file to write.
        kinds: what to evaluate; None takes boxes, and masks where the detections have them.
        run: name of the run that the figures belong to.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    truth = read_annotations(annotations)
    found, skipped = read_results(detections, truth)
    if not truth.images:
        raise UserError(f"{annotations}: it lists no images; there is nothing to evaluate on")
    if kinds is None:
        masks = any(entry.get("segmentation") for entry in (found or truth.annotations))
        without = _without_mask(truth) if masks else None
        if found and without is not None:
            warn(f"{annotations}: annotation {without} has no segmentation; only boxes are evaluated, no masks")
        kinds = ["bbox", "segm"] if masks and without is None else ["bbox"]
    record = StageRecord("coco", run, {"kinds": kinds}, [Path(annotations), Path(detections)])
    skipped = {**truth.skipped, **skipped}
    for reason, count in skipped.items():
        warn(f"{count} {reason} skipped")
    figures = {kind: evaluate(truth, found, kind, Path(detections)) for kind in kinds}
    metrics = {name: value for kind, each in figures.items() for name, value in each.metrics(f"coco/{kind}").items()}
    return record.write(
        out,
        metrics,
        stats={kind: list(map(float, each.stats)) for kind, each in figures.items()},
        classes={kind: each.classes for kind, each in figures.items()},
        skipped=skipped,
    )

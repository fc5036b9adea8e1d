"""Read COCO annotation and result files, checked: a clear line for what is wrong, a count for what is skipped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flsl.data.coco import MOST_PIXELS, as_id
from flsl.data.listing import no_collector
from flsl.data.rle import MaskError, check_codes, compress, is_finite
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import read_json
from flsl.runtime.progress import counted

Record = dict[str, Any]


class Annotations(NamedTuple):
    """A checked COCO data set and what was left out of it.

    Attributes:
        images: by id, each with integer ``width`` and ``height``.
        categories: names by id, ids rising.
        annotations: with ``id``, ``image_id``, ``category_id``, ``bbox``, ``area`` and ``iscrowd``.
        skipped: how many annotations were left out, by reason.
    """

    path: Path
    images: dict[int, Record]
    categories: dict[int, str]
    annotations: list[Record]
    skipped: dict[str, int]

    def dataset(self) -> Record:
        """Return the data set as COCO's plain JSON structure."""
        return {
            "images": list(self.images.values()),
            "categories": [{"id": number, "name": name} for number, name in self.categories.items()],
            "annotations": self.annotations,
        }


@no_collector()
def read_annotations(path: Path | str, images_only: bool = False) -> Annotations:
    """Read a COCO ``instances_*.json``, or where ``images_only`` an ``image_info_*.json``, which has no annotations.

    Annotations of images or categories that the file does not list are skipped and counted, as pycocotools leaves
    them out. A missing ``iscrowd`` is 0, a missing ``area`` the box's.

    Raises:
        UserError: naming the file and the entry that is broken.
    """
    data = read_json(path, "a COCO annotation file")
    if images_only and isinstance(data, dict):
        data = {**data, "annotations": []}
    return parse_annotations(data, Path(path))


def parse_annotations(data: Any, path: Path) -> Annotations:
    """Check the content of a COCO annotation file as :func:`read_annotations` does; messages name ``path``."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UserError(
                f"{path}: not a COCO annotation file: it has no list '{key}' (images, annotations, categories)"
            )
    images = _by_id(data["images"], path, "image")
    for number, image in images.items():
        for side in ("width", "height"):
            if type(image.get(side)) is not int or not 1 <= image[side] < MOST_PIXELS:
                raise UserError(
                    f"{path}: image {number}: its {side} is {str(image.get(side))[:60]}; it must be a count from 1"
                )
    categories = _by_id(data["categories"], path, "category")
    annotations: list[Record] = []
    skipped: Counter[str] = Counter()
    for number, annotation in _by_id(data["annotations"], path, "annotation").items():
        of, category = as_id(annotation.get("image_id")), as_id(annotation.get("category_id"))
        if of not in images:
            skipped["annotations of unknown images"] += 1
        elif category not in categories:
            skipped["annotations of unknown categories"] += 1
        else:
            x, y, width, height = _box(annotation.get("bbox"), f"{path}: annotation {number}")
            area = annotation.get("area", width * height)
            if not is_finite(area):
                raise UserError(f"{path}: annotation {number}: its area is {area!r}; it must be a number")
            annotations.append(
                {
                    **annotation,
                    "id": number,
                    "image_id": of,
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "area": area,
                    "iscrowd": int(bool(annotation.get("iscrowd", 0))),
                }
            )
    names = {number: str(categories[number].get("name", number)) for number in sorted(categories)}
    return Annotations(path, images, names, annotations, dict(skipped))


def read_results(path: Path | str, truth: Annotations) -> tuple[list[Record], dict[str, int]]:
    """Read a COCO result file: a list of ``image_id, category_id, score`` and ``bbox`` and/or ``segmentation``.

    Detections of categories that the annotations do not list are skipped and counted, as pycocotools leaves them out.

    Raises:
        UserError: naming the file and the entry that is broken, or that is of an unknown image.
    """
    path = Path(path)
    data = read_json(path, "a COCO result file")
    if isinstance(data, dict) and isinstance(data.get("annotations"), list):
        data = data["annotations"]
    if not isinstance(data, list):
        raise UserError(f"{path}: not a COCO result file: it must be a list of detections")
    skipped: Counter[str] = Counter()
    kept: list[Record] = []
    unknown: Counter[Any] = Counter()
    for index, detection in enumerate(data):
        where = f"{path}: detection {index}"
        if not isinstance(detection, dict):
            raise UserError(f"{where}: not a mapping with image_id, category_id, score and bbox or segmentation")
        image, category = as_id(detection.get("image_id")), as_id(detection.get("category_id"))
        if image not in truth.images:
            unknown[str(detection.get("image_id"))] += 1
            continue
        if not is_finite(detection.get("score")):
            raise UserError(f"{where}: its score is {detection.get('score')!r}; it must be a finite number")
        if detection.get("bbox"):
            _box(detection["bbox"], where)
        elif not detection.get("segmentation"):
            raise UserError(f"{where}: it has neither a bbox nor a segmentation")
        if category not in truth.categories:
            skipped["detections of unknown categories"] += 1
            continue
        detection["image_id"], detection["category_id"] = image, category
        kept.append(detection)
    if unknown:
        first = ", ".join(list(unknown)[:3])
        raise UserError(
            f"{path}: {counted(unknown.total(), 'detection')} of images that {truth.path} does not list "
            f"(image_id {first}{', …' if len(unknown) > 3 else ''}); both files must be of the same split"
        )
    return kept, dict(skipped)


def with_masks(records: Iterable[Record], images: Mapping[int, Record], path: Path, what: str) -> list[Record]:
    """Return ``records`` with each ``segmentation`` as a sound compressed run-length code of its image's size.

    A record without one gets its box as its mask, as pycocotools does for results.

    Raises:
        UserError: naming the file and the first record (a ``what``) whose segmentation is broken.
    """
    done: list[Record] = []
    for index, record in enumerate(records):
        image = images[record["image_id"]]
        segmentation = record.get("segmentation")
        try:
            if segmentation is None:
                x, y, w, h = record["bbox"]
                segmentation = [[x, y, x, y + h, x + w, y + h, x + w, y]]
            mask = compress(segmentation, image["height"], image["width"])
        except MaskError as error:
            raise UserError(f"{path}: {what} {record.get('id', index)}: {error}") from None
        done.append({**record, "segmentation": mask})
    codes = [record["segmentation"]["counts"].encode() for record in done]
    pixels = np.array([math.prod(record["segmentation"]["size"]) for record in done], dtype=np.int64)
    broken = np.flatnonzero(~check_codes(codes, pixels))
    if len(broken):
        record = done[int(broken[0])]
        raise UserError(
            f"{path}: {what} {record.get('id', int(broken[0]))}: the run-length code is broken: it does not decode to "
            f"the {pixels[broken[0]]} pixels of its image"
        )
    return done


def _by_id(entries: list[Any], path: Path, what: str) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for index, entry in enumerate(entries):
        number = as_id(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            raise UserError(f"{path}: {what} number {index} has no whole number as its id")
        if number in found:
            raise UserError(f"{path}: two entries of kind {what} have the id {number}; ids must differ")
        found[number] = entry if type(entry["id"]) is int else {**entry, "id": number}
    return found


def _box(box: Any, where: str) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(is_finite(value) for value in box):
        raise UserError(f"{where}: its bbox is {str(box)[:60]}; it must be four finite numbers [x, y, width, height]")
    if box[2] < 0 or box[3] < 0:
        raise UserError(f"{where}: its bbox {box} has a negative width or height; a COCO box is [x, y, width, height]")
    return box

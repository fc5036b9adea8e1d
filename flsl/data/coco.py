"""COCO detection (Lin et al., ECCV 2014): whether ``instances_*.json`` is sound and agrees with the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flsl.config.data import CocoSettings
from flsl.data.files import Row, shown
from flsl.data.findings import Findings
from flsl.data.rle import BROKEN, MaskError, check, check_codes, is_finite
from flsl.runtime.errors import UserError, inside
from flsl.runtime.outputs import read_json

Record = dict[str, Any]
MOST_PIXELS = 2**31
"""Of a side; more than image files can have."""
_LISTED_CATEGORIES = 2000
# COCO's own boxes leave their image by up to a pixel, from rounding
_TOLERANCE = 1.0


def check_coco(settings: CocoSettings, rows: Sequence[Row]) -> Findings:
    """Check both annotation files against each other and against the images that were inspected.

    Raises:
        UserError: when an annotation file is not COCO's JSON, or a split has no image.
    """
    findings = Findings()
    categories: dict[str, dict[int, str]] = {}
    per_category: dict[str, Counter[int]] = {}
    for split, images, file in (
        ("train", settings.train_images, settings.train_annotations),
        ("val", settings.val_images, settings.val_annotations),
    ):
        path = Path(settings.root) / file
        mine = [row for row in rows if row.split == split and row.path != Path(file).as_posix()]
        if not mine:
            raise UserError(
                f"{Path(settings.root) / images}: holds no images; data.coco.{split}_images is expected there"
            )
        data = read_instances(path)
        report = _Report(path)
        known = _check_files(data["images"], images, mine, report)
        categories[split] = _check_categories(data["categories"], report)
        figures, per_category[split] = _check_annotations(data["annotations"], known, categories[split], report)
        findings.splits[split] = {"folder": images, "listed": len(known), **figures}
        findings.inconsistencies += report.lines()
        findings.notes += [f"{path}: {note}" for note in report.notes]
    if categories["train"] != categories["val"]:
        findings.inconsistencies.append(
            "the categories of train and val differ; both files need the same ids and names"
        )
    names = dict(sorted((categories["val"] | categories["train"]).items())[:_LISTED_CATEGORIES])
    findings.extra["classes"] = {
        "count": len(categories["train"]),
        "listed": {
            shown(name): {split: counts[identity] for split, counts in per_category.items()}
            for identity, name in names.items()
        },
    }
    return findings


def read_instances(path: Path | str) -> dict[str, list[Record]]:
    """Read a COCO annotation file: its lists ``images``, ``annotations`` and ``categories`` of mappings with an ``id``.

    Raises:
        UserError: when it is missing, not JSON or of another form.
    """
    data = read_json(path, "a COCO annotation file")
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path}: has no list '{key}'; a COCO annotation file is expected there")
        for index, entry in enumerate(entries):
            identity = as_id(entry.get("id")) if isinstance(entry, dict) else None
            if identity is None:
                raise UserError(f"{path}: {key}[{index}]: a mapping with a whole number 'id' is expected")
            entry["id"] = identity
    return {key: data[key] for key in ("images", "annotations", "categories")}


def as_id(value: object) -> int | None:
    """Return a whole number, which some tools write as 1.0, as such; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int and is_finite(value) else None


class _Report:
    """Counts what is wrong by kind, with the first example of each, so that a million mistakes are a few lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, what: str, example: object) -> None:
        self._counts[what] += 1
        self._examples.setdefault(what, str(example))

    def note(self, what: str, examples: Sequence[str]) -> None:
        if examples:
            self.notes.append(f"{len(examples)} × {what}, e.g. {examples[0]}")

    def lines(self) -> list[str]:
        return [f"{self._path}: {count} × {what}, e.g. {self._examples[what]}" for what, count in self._counts.items()]


def _check_files(images: Iterable[Record], folder: str, rows: Sequence[Row], report: _Report) -> dict[int, Record]:
    """Check the listed images against the files; return those with a sound size by id."""
    files = {row.path: row for row in rows}
    known: dict[int, Record] = {}
    named: set[str] = set()
    identities: set[int] = set()
    for image in images:
        identity, name = image["id"], image.get("file_name")
        width, height = image.get("width"), image.get("height")
        if identity in identities:
            report.add("image id used twice", identity)
        identities.add(identity)
        if not all(type(side) is int and 1 <= side < MOST_PIXELS for side in (width, height)):
            report.add("image without a width and height", f"id {identity}")
            continue
        known.setdefault(identity, image)
        if not isinstance(name, str) or not _stays_inside(name):
            report.add("image whose file_name is no path below its folder", f"id {identity}")
            continue
        path = (Path(folder) / name).as_posix()
        if path in named:
            report.add("image file listed twice", name)
        named.add(path)
        row = files.get(path)
        if row is None:
            report.add("image that is listed but not there", name)
        elif not row.ok:
            report.add("image that is listed but quarantined", f"{name} ({row.status})")
        elif (row.width, row.height) != (width, height):
            report.add(
                "image of another size than listed", f"{name} is {row.width}×{row.height}, listed as {width}×{height}"
            )
    report.note("image file that is not listed", sorted(files.keys() - named))
    return known


def _check_categories(categories: Iterable[Record], report: _Report) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in categories:
        identity, name = category["id"], category.get("name")
        if not isinstance(name, str) or not name:
            report.add("category without a name", f"id {identity}")
            name = str(identity)
        if identity in names:
            report.add("category id used twice", identity)
        elif name in names.values():
            report.add("category name used twice", name)
        names[identity] = name
    if names and max(names) - min(names) + 1 != len(names):
        report.notes.append(f"{len(names)} category ids with gaps from {min(names)} to {max(names)}, as in COCO")
    return names


def _check_annotations(
    annotations: Iterable[Record], images: dict[int, Record], categories: dict[int, str], report: _Report
) -> tuple[dict[str, int], Counter[int]]:
    """Check every annotation; return the split's figures and the number of annotations by category id."""
    identities: set[int] = set()
    annotated: set[int] = set()
    figures = Counter(annotations=0, crowds=0, polygons=0, run_lengths=0, images_without_annotations=0)
    per_category: Counter[int] = Counter()
    for annotation in annotations:
        identity, of = annotation["id"], as_id(annotation.get("image_id"))
        image = None if of is None else images.get(of)
        figures["annotations"] += 1
        if identity in identities:
            report.add("annotation id used twice", identity)
        identities.add(identity)
        category = as_id(annotation.get("category_id"))
        if category in categories:
            per_category[category] += 1
        else:
            report.add("annotation of an unknown category", f"id {identity}")
        if annotation.get("iscrowd", 0) not in (0, 1):
            report.add("annotation whose iscrowd is not 0 or 1", f"id {identity}")
        figures["crowds"] += annotation.get("iscrowd") == 1
        if image is None:
            report.add("annotation of an unknown image", f"id {identity}")
            continue
        annotated.add(image["id"])
        for fault in _faults(annotation, image, figures):
            report.add(fault, f"id {identity}")
    figures["images_without_annotations"] = len(images) - len(annotated)
    report.note(
        "category without annotations", [name for category, name in categories.items() if not per_category[category]]
    )
    return dict(figures), per_category


def _faults(annotation: Record, image: Record, figures: Counter[str]) -> Iterator[str]:
    """Yield what is wrong with an annotation's box and mask; count its mask's kind into ``figures``."""
    height, width = image["height"], image["width"]
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        yield "box that is not [x, y, width, height]"
    elif box[2] <= 0 or box[3] <= 0:
        yield "box without area"
    elif min(box[:2]) < -_TOLERANCE or box[0] + box[2] > width + _TOLERANCE or box[1] + box[3] > height + _TOLERANCE:
        yield "box that leaves its image"
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        yield "annotation without segmentation"
        return
    figures["run_lengths" if isinstance(segmentation, dict) else "polygons"] += 1
    try:
        code = check(segmentation, height, width)
    except MaskError as error:
        yield error.kind
        return
    if code is not None and not check_codes([code], np.array([height * width], dtype=np.int64))[0]:
        yield BROKEN


def _stays_inside(name: str) -> bool:
    try:
        inside(Path(), name, "")
    except UserError:
        return False
    return bool(name)

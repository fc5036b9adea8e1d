"""COCO-format images for training and prediction: what is sound, with changes that are reproducible."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flsl.config.detect import RecipeSettings
from flsl.data.decode import load_rgb
from flsl.data.files import FILES, read_rows
from flsl.data.listing import no_collector
from flsl.data.manifest import load_manifest
from flsl.data.order import Key
from flsl.data.rle import MaskError, check, check_codes, compress
from flsl.data.strings import Strings
from flsl.detect.augment import Geometry, Target, apply_image, apply_target, draw, fitted
from flsl.detect.coco_files import Annotations, Record
from flsl.runtime.errors import UserError, inside, require_folder
from flsl.runtime.outputs import sha256_file
from flsl.runtime.signals import obey_parent


class Sample(NamedTuple):
    """An image as a detector gets it.

    Attributes:
        image: (3, height, width) uint8, RGB.
        target: its objects, empty in prediction.
        image_id: COCO's.
        size: height and width of the file's image, in pixels.
    """

    image: Tensor
    target: Target
    image_id: int
    size: tuple[int, int]


@dataclass(frozen=True)
class TrainingSet:
    """Images with at least one sound object, and their objects.

    Attributes:
        digest: changes with what is trained on.
        folder: of the image files.
        images: COCO's records.
        boxes: by image, (n, 4) x0, y0, x1, y1 within the image.
        labels: by image, (n,) classes from 1, in the order of the category ids.
        segmentations: by image, n segmentations, or None where only boxes are trained.
        skipped: what was left out, by reason.
    """

    digest: str
    folder: Path
    images: list[Record]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    segmentations: Strings | None
    skipped: dict[str, int]


def check_files(truth: Annotations, folder: Path) -> None:
    """Refuse a data set with missing images.

    Raises:
        UserError: naming the first missing file and how many there are.
    """
    require_folder(folder, "the images of the data set")
    missing = [
        image.get("file_name")
        for image in truth.images.values()
        if not isinstance(image.get("file_name"), str) or not inside(folder, image["file_name"], truth.path).is_file()
    ]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of the {len(truth.images)} images of {truth.path} are missing, e.g. {missing[0]}"
        )


def check_suspects(manifest: Path, records: Mapping[Path, Record]) -> None:
    """Read the images that the data set's check found damaged or of another size than they are listed with.

    Hours of training, or all of it where they are predicted on, would end at them.

    Args:
        manifest: which the check wrote.
        records: COCO's records by the images' paths.

    Raises:
        UserError: naming the first that is still so.
    """
    folder = manifest.parent
    root = Path(load_manifest(folder)["root"])
    for row in read_rows(folder / FILES) if (folder / FILES).exists() else ():
        record = records.get(root / row.path)
        if record is not None and (not row.ok or (row.width, row.height) != (record["width"], record["height"])):
            _check_size(load_rgb(root / row.path).size, record, root / row.path)


@no_collector()
def training_set(truth: Annotations, folder: Path, masks: bool) -> TrainingSet:
    """Take what can be trained on.

    Crowds, boxes of no area within their image and broken segmentations are left out and counted; so are images
    without any object left.

    Raises:
        UserError: when an image is missing or nothing is left.
    """
    check_files(truth, folder)
    labels = {number: index for index, number in enumerate(sorted(truth.categories), 1)}
    skipped: Counter[str] = Counter(truth.skipped)
    broken = _broken_masks(truth) if masks else set()
    objects: dict[int, list[tuple[list[float], int, Any]]] = {}
    for entry in truth.annotations:
        image = truth.images[entry["image_id"]]
        x, y, width, height = entry["bbox"]
        box = [max(x, 0.0), max(y, 0.0), min(x + width, image["width"]), min(y + height, image["height"])]
        if entry["iscrowd"]:
            skipped["crowds"] += 1
        elif box[2] <= box[0] or box[3] <= box[1]:
            skipped["boxes outside their image or of no area"] += 1
        elif entry["id"] in broken:
            skipped["broken segmentations"] += 1
        else:
            found = (box, labels[entry["category_id"]], entry.get("segmentation") if masks else None)
            objects.setdefault(entry["image_id"], []).append(found)
    if not objects:
        raise UserError(f"{truth.path}: no image has an object to train on ({dict(skipped) or 'no annotations'})")
    empty = len(truth.images) - len(objects)
    if empty:
        skipped["images without objects"] = empty
    ids = sorted(objects)
    images = [truth.images[number] for number in ids]
    boxes = [np.array([box for box, _, _ in objects[number]], dtype=np.float32) for number in ids]
    classes = [np.array([label for _, label, _ in objects[number]], dtype=np.int64) for number in ids]
    # as lists of Python's numbers they would be gigabytes, copied by each loading process that reads them
    parts = Strings(json.dumps([part for _, _, part in objects[number]]) for number in ids) if masks else None
    return TrainingSet(_digest(truth, images, boxes, classes), folder, images, boxes, classes, parts, dict(skipped))


def _digest(truth: Annotations, images: list[Record], *arrays: list[NDArray[Any]]) -> str:
    """Return a digest of what is trained on: the file of the annotations, if there is one, and images and boxes."""
    content = hashlib.sha256(sha256_file(truth.path).encode() if truth.path.is_file() else b"")
    for record in images:
        content.update(f"{record['id']} {record['file_name']}\n".encode())
    for array in itertools.chain(*arrays):
        content.update(array.tobytes())
    return content.hexdigest()


def _broken_masks(truth: Annotations) -> set[int]:
    """Return the ids of the annotations whose segmentation cannot be drawn."""
    broken: set[int] = set()
    codes: list[bytes] = []
    about: list[tuple[int, int]] = []
    for entry in truth.annotations:
        image = truth.images[entry["image_id"]]
        try:
            code = check(entry.get("segmentation"), image["height"], image["width"])
        except MaskError:
            broken.add(entry["id"])
            continue
        if code is not None:
            codes.append(code)
            about.append((entry["id"], image["height"] * image["width"]))
    sound = check_codes(codes, np.array([pixels for _, pixels in about], dtype=np.int64))
    return broken | {number for (number, _), ok in zip(about, sound, strict=True) if not ok}


class TrainingImages(Dataset[Sample]):
    """Training samples by (epoch, index): what happens to an image is a function of (seed, epoch, index)."""

    def __init__(self, data: TrainingSet, recipe: RecipeSettings, seed: int) -> None:
        self._data, self._recipe, self._seed = data, recipe, seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        record = self._data.images[index]
        path = self._data.folder / record["file_name"]
        image = load_rgb(path)
        _check_size(image.size, record, path)
        height, width = record["height"], record["width"]
        geometry = draw(np.random.default_rng((self._seed, epoch, index)), width, height, self._recipe)
        masks = None
        if self._data.segmentations is not None:
            codes = [compress(part, height, width) for part in json.loads(self._data.segmentations[index])]
            masks = coco_mask.decode(codes).transpose(2, 0, 1)
        target = apply_target(self._data.boxes[index], self._data.labels[index], masks, geometry)
        return Sample(apply_image(image, geometry), target, record["id"], (height, width))


class TestImages(Dataset[Sample]):
    """Images as they are predicted on, by index."""

    def __init__(self, records: list[Record], folder: Path, recipe: RecipeSettings) -> None:
        self._records, self._folder, self._recipe = records, folder, recipe

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        path = self._folder / record["file_name"]
        image = load_rgb(path)
        _check_size(image.size, record, path)
        size = fitted(*image.size, self._recipe.test_short_side, self._recipe.long_side)
        pixels = apply_image(image, Geometry((0, 0, *image.size), size, False))
        empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None)
        return Sample(pixels, empty, record["id"], (image.height, image.width))


def _check_size(size: tuple[int, int], record: Record, path: Path) -> None:
    if size != (record["width"], record["height"]):
        raise UserError(
            f"{path}: is {size[0]}×{size[1]} pixels, but its annotations say {record['width']}×{record['height']}"
        )


def loader(data: Dataset[Sample], workers: int, device: torch.device, **order: Any) -> Iterator[list[Sample]]:
    """Yield batches as lists of samples, in page-locked memory where ``device`` is CUDA.

    ``order`` is a DataLoader's ``batch_sampler`` or ``batch_size``.

    Raises:
        UserError: naming an image that cannot be read.
    """
    # so that copies to the GPU, masks above all, do not keep the process waiting
    pinned = device.type == "cuda"
    batches: DataLoader[Any] = DataLoader(
        data,
        num_workers=workers,
        worker_init_fn=obey_parent,
        collate_fn=_as_it_is,
        pin_memory=pinned,
        **order,
    )
    yield from batches


def _as_it_is(batch: list[Any]) -> list[Any]:
    return batch

"""UAVDT in COCO's form: frames as images, ignore regions as crowds, for training and predicting with any COCO tool."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from flsl.data.decode import open_image, reason
from flsl.data.uavdt import CATEGORIES, TEST_SEQUENCES, TRAIN_SEQUENCES
from flsl.detect.uavdt_files import Sequence, image_id, read_sequences
from flsl.runtime.errors import UserError, require_folder
from flsl.runtime.outputs import write_json
from flsl.runtime.progress import warn

Split = Literal["train", "test"]
Classes = Literal["vehicle", "each"]
_FRAME = re.compile(r"img(\d{6})\.jpe?g", re.IGNORECASE)


def split_names(ground_truth: Path, split: Split) -> list[str]:
    """Return the official split's sequences whose ground truth is there.

    Raises:
        UserError: when none of them is.
    """
    official = TRAIN_SEQUENCES if split == "train" else TEST_SEQUENCES
    folder = require_folder(ground_truth, "UAVDT's ground truth (<sequence>_gt_whole.txt)")
    there = [name for name in official if (folder / f"{name}_gt_whole.txt").is_file()]
    if not there:
        raise UserError(f"{folder}: holds none of the {len(official)} {split} sequences' <sequence>_gt_whole.txt")
    if len(there) < len(official):
        warn(f"{folder}: {len(there)} of the {len(official)} {split} sequences are there")
    return there


def convert(
    frames: Path, ground_truth: Path, names: Iterable[str], stride: int = 1, classes: Classes = "vehicle"
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return sequences as a COCO data set.

    Image ids are :func:`flsl.detect.uavdt_files.image_id`'s, file names ``<sequence>/img%06d.jpg`` below ``frames``.
    Boxes are cut at the image's border. Ignore regions are crowds of every category.

    Args:
        frames: folder of ``<sequence>/img%06d.jpg``.
        ground_truth: folder of ``<sequence>_gt_whole.txt`` and ``<sequence>_gt_ignore.txt``.
        names: sequences.
        stride: every how many frames one is kept, the first one always.
        classes: ``vehicle`` makes one class of car, truck and bus; ``each`` keeps them.

    Returns:
        the data set, and how many boxes were left out, by reason.

    Raises:
        UserError: when frames are missing or unreadable, or a ground truth file is broken.
    """
    frames = require_folder(frames, "UAVDT's frames (<sequence>/img000001.jpg)")
    categories = {1: "vehicle"} if classes == "vehicle" else CATEGORIES
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for sequence in read_sequences(ground_truth, names):
        files, (width, height) = _frames(frames, sequence)
        kept = {number: name for number, name in files.items() if (number - 1) % stride == 0}
        first = image_id(sequence.name, 0)
        images += [
            {"id": first + number, "file_name": f"{sequence.name}/{name}", "width": width, "height": height}
            for number, name in kept.items()
        ]
        boxes = _boxes(sequence.truth, kept, width, height, "boxes outside the image or of no area", skipped)
        for frame, box, code in boxes:
            entry = _annotation(first + frame, box, 1 if classes == "vehicle" else code, 0)
            annotations.append({**entry, "id": len(annotations) + 1})
        ignored = "ignore regions outside the image or of no area"
        for frame, box, _ in _boxes(sequence.ignore, kept, width, height, ignored, skipped):
            for category in categories:
                entry = _annotation(first + frame, box, category, 1)
                annotations.append({**entry, "id": len(annotations) + 1})
    names_ = [{"id": number, "name": name} for number, name in categories.items()]
    return {"images": images, "annotations": annotations, "categories": names_}, dict(skipped)


def convert_files(
    frames: Path,
    ground_truth: Path,
    out: Path,
    split: Split,
    stride: int = 1,
    classes: Classes = "vehicle",
    names: list[str] | None = None,
) -> dict[str, Any]:
    """Write the official ``split`` (or the sequences ``names``) as a COCO annotation file and return its content."""
    chosen = names if names is not None else split_names(ground_truth, split)
    data, skipped = convert(frames, ground_truth, chosen, stride, classes)
    for what, count in skipped.items():
        warn(f"{count} {what} skipped")
    write_json(out, data)
    return data


def _frames(root: Path, sequence: Sequence) -> tuple[dict[int, str], tuple[int, int]]:
    """Return the sequence's files by frame number, and their size (width, height) by the first one."""
    folder = require_folder(root / sequence.name, f"the frames of {sequence.name}")
    numbered = [(match, path.name) for path in folder.iterdir() if (match := _FRAME.fullmatch(path.name))]
    files = dict(sorted((int(match[1]), name) for match, name in numbered))
    if not files:
        raise UserError(f"{folder}: holds no frames img000001.jpg, img000002.jpg, …")
    missing = sorted(set(sequence.truth["frame"]) - set(files))
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} frames of the ground truth are missing, the first is img{missing[0]:06d}.jpg"
        )
    if len(files) < sequence.frames:
        warn(f"{folder}: {len(files)} frames are there; the official list has {sequence.frames}")
    path = folder / next(iter(files.values()))
    try:
        with path.open("rb") as stream, open_image(stream) as image:
            return files, image.size
    except Exception as error:  # whatever a parser of damaged bytes may raise
        raise UserError(f"{path}: not a readable image: {reason(error)}") from None


def _boxes(
    table: pd.DataFrame, kept: dict[int, str], width: int, height: int, reason: str, skipped: Counter[str]
) -> list[tuple[int, list[float], int]]:
    """Return ``(frame, [left, top, width, height], category)`` of the kept frames, cut at the border."""
    table = table[table["frame"].isin(list(kept))]
    low = table[["left", "top"]].to_numpy()
    high = np.minimum(low + table[["width", "height"]].to_numpy(), [width, height])
    low = np.maximum(low, 0)
    inside = (high > low).all(1)
    skipped[reason] += int((~inside).sum())
    if not skipped[reason]:
        del skipped[reason]
    boxes = np.concatenate([low, high - low], 1)[inside]
    rows = zip(table["frame"][inside].tolist(), boxes.tolist(), table["category"][inside].tolist(), strict=True)
    return list(rows)


def _annotation(image: int, box: list[float], category: int, crowd: int) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}

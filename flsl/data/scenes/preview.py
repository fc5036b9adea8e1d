"""A picture of what was made, read back from the files: to see at a glance whether the scenes are as they should be."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from flsl.data.palette import palette
from flsl.data.scenes import uavdt
from flsl.runtime.outputs import atomic

_COLUMNS = 12
_GAP = 4
_COLOURS = ("#ff4040", "#40e060", "#4090ff", "#ffe040", "#ff60ff", "#40f0f0")


def draw_preview(out: Path, path: Path) -> None:
    """Write a contact sheet of the data sets below ``out`` to the PNG file ``path``.

    From top to bottom: samples of each class, some with their box; COCO images with masks (crowds filled white); UAVDT
    frames with boxes coloured by category (ignored ones white); DAVIS videos as strips, with masks.

    Raises:
        UserError: when ``path`` cannot be written.
    """
    strips: list[Image.Image] = []
    for name, draw in (("images", _images), ("coco", _coco), ("uavdt", _uavdt), ("davis", _davis)):
        if (out / name).is_dir():
            strips += draw(out / name)
    width = max(strip.width for strip in strips)
    # one strip's width for all, so that small and large frames show alike
    strips = [strip.resize((width, round(strip.height * width / strip.width))) for strip in strips]
    with atomic(path) as temporary:
        _stack(strips).save(temporary, "PNG")


def _images(folder: Path) -> list[Image.Image]:
    with (folder / "boxes.csv").open(encoding="utf-8", newline="") as stream:
        boxes = {row["path"]: [int(row[side]) for side in ("x0", "y0", "x1", "y1")] for row in csv.DictReader(stream)}
    strips = []
    for class_folder in sorted((folder / "train").iterdir()):
        samples = []
        for number, path in enumerate(sorted(class_folder.iterdir())[:_COLUMNS]):
            image, scale = _open(path, 96)
            if number % 3 == 0:
                _rectangle(image, boxes[path.relative_to(folder).as_posix()], scale, _COLOURS[0])
            samples.append(image)
        strips.append(_row(samples, _COLUMNS))
    return strips


def _coco(folder: Path) -> list[Image.Image]:
    made = json.loads((folder / "annotations/instances_val2017.json").read_text(encoding="utf-8"))
    samples = []
    for entry in made["images"][:_COLUMNS]:
        image, scale = _open(folder / "val2017" / entry["file_name"], 190)
        objects = [one for one in made["annotations"] if one["image_id"] == entry["id"]]
        for number, one in enumerate(objects):
            colour = "#ffffff" if one["iscrowd"] else _COLOURS[number % len(_COLOURS)]
            _segmentation(image, one["segmentation"], scale, colour)
            x, y, w, h = one["bbox"]
            _rectangle(image, (x, y, x + w, y + h), scale, colour)
        samples.append(image)
    return [_row(samples[first : first + 6], 6) for first in range(0, len(samples), 6)]


def _segmentation(image: Image.Image, segmentation: Any, scale: float, colour: str) -> None:
    if isinstance(segmentation, list):
        for polygon in segmentation:
            ImageDraw.Draw(image).polygon([scale * value for value in polygon], outline=colour)
        return
    height, width = segmentation["size"]
    runs = segmentation["counts"]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask = Image.fromarray(flat.reshape(width, height).T).resize(image.size, Image.Resampling.NEAREST)
    image.paste(Image.blend(image, Image.new("RGB", image.size, colour), 0.4), mask=mask)


def _uavdt(folder: Path) -> list[Image.Image]:
    samples = []
    for sequence in sorted((folder / uavdt.FRAMES).iterdir())[:4]:
        frames = sorted(sequence.iterdir())
        path = frames[len(frames) // 2]
        frame = int(path.stem.removeprefix("img"))
        image, scale = _open(path, 380)
        for suffix in ("whole", "ignore"):
            rows = (folder / uavdt.TRUTH / f"{sequence.name}_gt_{suffix}.txt").read_text(encoding="utf-8").split()
            for row in (list(map(int, row.split(","))) for row in rows):
                if row[0] == frame:
                    box = (row[2], row[3], row[2] + row[4], row[3] + row[5])
                    _rectangle(image, box, scale, "#ffffff" if suffix == "ignore" else _COLOURS[row[8] - 1])
        samples.append(image)
    return [_row(samples[first : first + 2], 2) for first in range(0, len(samples), 2)]


def _davis(folder: Path) -> list[Image.Image]:
    strips = []
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    for sequence in sorted((folder / "JPEGImages/480p").iterdir())[:4]:
        frames = sorted(sequence.iterdir())
        chosen = [frames[k] for k in np.linspace(0, len(frames) - 1, 8).round().astype(int)]
        plain, masked = [], []
        for path in chosen:
            image, _ = _open(path, 190)
            with Image.open(folder / "Annotations/480p" / sequence.name / f"{path.stem}.png") as opened:
                mask = np.asarray(opened.resize(image.size, Image.Resampling.NEAREST))
            shown = np.where(mask[..., None] > 0, np.asarray(image) // 2 + colours[mask] // 2, np.asarray(image))
            plain.append(image)
            masked.append(Image.fromarray(shown.astype(np.uint8)))
        strips += [_row(plain, 8), _row(masked, 8)]
    return strips


def _open(path: Path, side: int) -> tuple[Image.Image, float]:
    """Return the image with its longer side brought to ``side`` pixels, and the scale."""
    with Image.open(path) as opened:
        scale = side / max(opened.size)
        size = (max(round(opened.width * scale), 1), max(round(opened.height * scale), 1))
        return opened.convert("RGB").resize(size, Image.Resampling.NEAREST), scale


def _rectangle(image: Image.Image, box: Sequence[float], scale: float, colour: str) -> None:
    x0, y0, x1, y1 = (scale * side for side in box)
    ImageDraw.Draw(image).rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour)


def _row(samples: Sequence[Image.Image], columns: int) -> Image.Image:
    """Put the samples side by side in ``columns`` cells of the widest one's size."""
    cell = max(sample.width for sample in samples) + _GAP
    row = Image.new("RGB", (columns * cell, max(sample.height for sample in samples) + _GAP))
    for number, sample in enumerate(samples):
        row.paste(sample, (number * cell, 0))
    return row


def _stack(strips: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet

"""Predictions beside ground truth, as images to look at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from flsl.data.decode import load_rgb
from flsl.data.rle import compress
from flsl.detect.coco_files import Annotations, Record
from flsl.runtime.outputs import atomic

_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#46f0f0",
    "#f032e6",
    "#bcf60c",
    "#fabebe",
    "#008080",
)

_LIKELY, _BEST = 0.3, 3
_SIDE = 480  # pixels that an image's longer side has at least, so that words find room


def draw_predictions(truth: Annotations, results: list[Record], images: Path, folder: Path, count: int) -> list[Path]:
    """Write ``prediction-<image id>.png`` of ``count`` images of the set: ground truth left, predictions right.

    Drawn are detections of a score of 0.3 or more, and the best three in any case; older pictures in the folder are
    removed. Returns the files written.
    """
    for old in folder.glob("prediction-*.png"):
        old.unlink()
    records = list(truth.images.values())
    chosen = [records[index] for index in np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)]
    written = []
    for record in chosen:
        image = torch.from_numpy(np.array(load_rgb(images / record["file_name"]))).permute(2, 0, 1)
        mine = [entry for entry in truth.annotations if entry["image_id"] == record["id"]]
        ranked = sorted((r for r in results if r["image_id"] == record["id"]), key=lambda r: -r["score"])
        found = [r for place, r in enumerate(ranked) if r["score"] >= _LIKELY or place < _BEST]
        both = torch.cat([_drawn(image, part, truth) for part in (mine, found)], 2)
        path = folder / f"prediction-{record['id']}.png"
        with atomic(path) as temporary:
            Image.fromarray(both.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
        written.append(path)
    return written


def _drawn(image: Tensor, entries: list[Record], truth: Annotations) -> Tensor:
    """Return an image (3, height, width), 8-bit, with boxes, names and masks; whole times as large if it is small."""
    height, width = image.shape[1:]
    scale = math.ceil(_SIDE / max(height, width))
    boxes: list[list[float]] = []
    names, colours, masks = [], [], []
    order = sorted(truth.categories)
    for entry in entries:
        x, y, w, h = entry["bbox"]
        if w <= 0 or h <= 0:
            continue
        boxes.append([x, y, x + w, y + h])
        name = truth.categories[entry["category_id"]]
        names.append(f"{name} {entry['score']:.2f}" if "score" in entry else name)
        colours.append(_COLOURS[order.index(entry["category_id"]) % len(_COLOURS)])
        if entry.get("segmentation"):
            try:
                code = compress(entry["segmentation"], height, width)
            except ValueError:
                continue
            masks.append((torch.from_numpy(coco_mask.decode(code)).bool(), colours[-1]))
    if masks:
        stacked = torch.stack([mask for mask, _ in masks])
        image = draw_segmentation_masks(image, stacked, alpha=0.5, colors=[colour for _, colour in masks])
    image = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    if not boxes:
        return image
    corners = scale * torch.tensor(boxes)
    image = draw_bounding_boxes(image, corners, colors=colours, width=max(1, image.shape[2] // 400))
    return _named(image, corners, names, colours)


def _named(image: Tensor, corners: Tensor, names: list[str], colours: list[str]) -> Tensor:
    """Write each box's name at its upper left corner, or as far left and up of that as it takes to be on the image."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for (left, top, *_), name, colour in zip(corners.tolist(), names, colours, strict=True):
        _, _, width, height = pen.textbbox((0, 0), name, font)
        place = (max(0, min(left + 1, picture.width - width - 2)), max(0, min(top + 1, picture.height - height - 2)))
        pen.rectangle(pen.textbbox(place, name, font), fill="black")
        pen.text(place, name, colour, font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

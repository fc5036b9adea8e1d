"""Predictions beside ground truth, as images to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
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
    height, width = image.shape[1:]
    boxes, names, colours, masks = [], [], [], []
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
    if boxes:
        image = draw_bounding_boxes(image, torch.tensor(boxes), names, colors=colours, width=max(1, width // 400))
    return image

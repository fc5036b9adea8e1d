"""Predictions in COCO's result form, whichever engine makes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from flsl.config.detect import RecipeSettings
from flsl.detect.augment import fitted
from flsl.detect.coco_files import Annotations, Record
from flsl.detect.dataset import Sample, TestImages, check_files, loader
from flsl.model.pyramid import ViTPyramid
from flsl.runtime.distributed import Process
from flsl.runtime.outputs import write_text
from flsl.runtime.progress import bar

Predict = Callable[[list[Tensor]], list[dict[str, Tensor]]]
"""From uint8 images to ``boxes``, ``labels`` (from 1), ``scores`` and, with a mask head, ``masks`` (n, 1, 28, 28)."""


def predict(
    model: Predict,
    truth: Annotations,
    folder: Path,
    recipe: RecipeSettings,
    workers: int,
    process: Process,
) -> list[Record]:
    """Return COCO results for every image, in the images' order; of several processes each takes every so many-th.

    Args:
        model: maps a batch of images to its detections.
        truth: the images and the categories that the labels mean, in the order of their ids.
        folder: of the image files.
        recipe: sizes and batch size.
        workers: loading processes.
        process: this one, the model on its device; the first shows a progress bar.

    Raises:
        UserError: when an image is missing, unreadable or not of the listed size.
    """
    check_files(truth, folder)
    records = list(truth.images.values())[process.rank :: process.world_size]
    categories = sorted(truth.categories)
    results: list[Record] = []
    order = _alike(records, recipe)
    batches = loader(TestImages(records, folder, recipe), workers, process.device, batch_sampler=order)
    with bar("predicting (images)", len(records), enabled=process.is_main) as shown, torch.inference_mode():
        for samples in batches:
            for sample, found in zip(samples, model([sample.image for sample in samples]), strict=True):
                results += coco_results(sample, found, categories)
            shown.advance(len(samples))
    return merge([results], truth)


def _alike(records: list[Record], recipe: RecipeSettings) -> list[list[int]]:
    """Return batches of the images' places, each of images that the detector pads to one size.

    Padding to the size of another image shows at an image's border, and gives proposals from beyond it: what is found
    on an image would depend on the others of its batch, and so on the number of processes.
    """
    step, groups = ViTPyramid.size_divisibility, dict[tuple[int, ...], list[int]]()
    for place, record in enumerate(records):
        size = fitted(record["width"], record["height"], recipe.test_short_side, recipe.long_side)
        groups.setdefault(tuple(-(-side // step) for side in size), []).append(place)
    most = recipe.test_batch_size
    return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]


def coco_results(sample: Sample, found: dict[str, Tensor], categories: list[int]) -> list[Record]:
    """Return one image's detections as COCO results, in the pixels of its file.

    Args:
        sample: the image that was predicted on.
        found: detections in that image's pixels.
        categories: COCO's ids of the labels 1, 2, ….
    """
    height, width = sample.size
    scale = torch.tensor([width / sample.image.shape[2], height / sample.image.shape[1]] * 2)
    boxes = found["boxes"].float().cpu() * scale
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    codes = mask_codes(found["masks"], boxes, height, width) if "masks" in found else [None] * len(boxes)
    corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    results: list[Record] = []
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    for box, label, score, code in zip(corners, labels, scores, codes, strict=True):
        entry: Record = {
            "image_id": sample.image_id,
            "category_id": categories[label - 1],
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 6),
        }
        results.append(entry if code is None else {**entry, "segmentation": code})
    return results


def mask_codes(masks: Tensor, boxes: Tensor, height: int, width: int, chunk: int = 16) -> list[Any]:
    """Return run-length codes of masks (n, 1, 28, 28) pasted into their boxes, a few at a time to bound memory.

    They are those of torchvision's ``paste_masks_in_image`` from 0.5 on, which pastes into whole images of floats.

    Args:
        masks: probabilities.
        boxes: (n, 4) x0, y0, x1, y1 within the image.
        height: of the image.
        width: of the image.
        chunk: detections at a time.
    """
    masks, scale = expand_masks(masks.float().cpu(), 1)
    places = expand_boxes(boxes, scale).to(torch.int64).tolist()
    codes: list[Any] = []
    for start in range(0, len(places), chunk):
        own = places[start : start + chunk]
        # columns one after the other, as COCO's runs go
        canvas = np.zeros((len(own), width, height), dtype=np.uint8)
        for index, (x0, y0, x1, y1) in enumerate(own):
            size = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
            likely = F.interpolate(masks[start + index][None], size=size, mode="bilinear", align_corners=False)[0, 0]
            left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1 + 1, width), min(y1 + 1, height)
            part = likely[top - y0 : bottom - y0, left - x0 : right - x0] >= 0.5
            canvas[index, left:right, top:bottom] = part.numpy().T
        for code in coco_mask.encode(canvas.transpose(2, 1, 0)):
            counts = code["counts"]
            codes.append({"size": [height, width], "counts": counts.decode() if isinstance(counts, bytes) else counts})
    return codes


def merge(parts: Iterable[list[Record]], truth: Annotations) -> list[Record]:
    """Return the results of several processes in the images' order."""
    place = {number: index for index, number in enumerate(truth.images)}
    return sorted((entry for part in parts for entry in part), key=lambda entry: place[entry["image_id"]])


def write_results(path: Path, results: list[Record]) -> None:
    """Write COCO results, atomically and without blanks: a validation has half a million detections."""
    write_text(path, json.dumps(results, separators=(",", ":")) + "\n")

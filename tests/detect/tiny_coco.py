"""A made COCO data set that a detector of a few weights trains on in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.config.loading import set_overrides

COLOURS = {3: (220, 40, 40), 7: (40, 60, 220)}


def write_coco(root: Path, count: int = 6, seed: int = 0) -> dict[str, Any]:
    """Write ``count`` grey images with two red or blue rectangles each; category ids have a gap."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        width, height = (64, 56) if index % 2 else (56, 64)
        pixels = np.full((height, width, 3), 120, np.uint8) + rng.integers(-9, 9, (height, width, 3)).astype(np.uint8)
        for place in (0, 1):
            category = int(rng.choice([3, 7]))
            w, h = (int(v) for v in rng.integers(14, 24, 2))
            x, y = int(rng.integers(0, width // 2 - 24 + 4)) + place * (width // 2), int(rng.integers(0, height - h))
            w = min(w, width - x)
            pixels[y : y + h, x : x + w] = COLOURS[category]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        name = f"{index:03d}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco.json").write_text(json.dumps(data))
    return data


def write_uavdt(root: Path, train: list[str], test: list[str], frames: int) -> None:
    """Write sequences of 64×56 frames with one moving red vehicle, in UAVDT's layout."""
    (root / "gt").mkdir(parents=True)
    for name in (*train, *test):
        (root / "frames" / name).mkdir(parents=True)
        rows = []
        for frame in range(1, frames + 1):
            pixels = np.full((56, 64, 3), 120, np.uint8)
            x = 4 * frame
            pixels[20:36, x : x + 20] = COLOURS[3]
            Image.fromarray(pixels).save(root / "frames" / name / f"img{frame:06d}.jpg")
            rows.append(f"{frame},1,{x},20,20,16,1,1,1")
        (root / "gt" / f"{name}_gt_whole.txt").write_text("\n".join(rows))
        (root / "gt" / f"{name}_gt_ignore.txt").write_text("1,1,0,0,10,10,1,-1,-1\n")


def tiny_experiment(root: Path, *overrides: str) -> Experiment:
    """Return settings of a detector of a few weights on the made data."""
    sizes = {"short_sides": [48, 56], "long_side": 96, "crop_short_sides": [48], "crop_range": [32, 48]}
    recipe = {
        **sizes, "epochs": 2, "milestones": [1], "batch_size": 2, "learning_rate": 2e-3, "warmup_steps": 2,
        "precision": "float32", "test_short_side": 56, "test_batch_size": 2, "images_shown": 1, "clip": 1.0,
    }  # fmt: skip
    annotations = {"train_annotations": "coco.json", "val_annotations": "coco.json"}
    settings = {
        "project": "tiny",
        "data": {"coco": {"root": str(root), "train_images": "images", "val_images": "images", **annotations}},
        "pretrain": {
            "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "width": 32, "depth": 3, "heads": 4},
            "views": {"teacher_size": 48, "global_size": 48, "local_size": 24},
        },
        "detection": {
            "model": {
                "channels": 16, "anchor_sizes": [8, 16, 24, 32, 48], "box_hidden": 32, "mask_convs": 1,
                "regions": 16, "anchors": 32, "proposals_train": 50, "proposals_test": 30, "score_threshold": 0.01,
            },
            "coco": dict(recipe),
            "uavdt": dict(recipe),
        },
        "compute": {"workers": 0, "log_every": 2, "threads": 1, "device": "cpu", "checkpoint_steps": 2},
    }  # fmt: skip
    return check(Experiment, set_overrides(settings, overrides), "the test")

"""How much faster than pycocotools is the evaluation of COCO results, and does it give the same figures?

    [FLSL_REAL_DATA=DIR] python benchmarks/coco_eval.py [--copies 20]

DIR/coco has val2017's annotations of a few images; without it, those of made scenes are taken. That many copies, with
eight detections an object, are evaluated by both, from files to figures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import measure, options, report
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flsl.config.data import ScenesSettings
from flsl.data.rle import compress
from flsl.data.scenes.make import make_scenes
from flsl.detect.coco_eval import evaluate_files


def annotations(root: Path) -> dict[str, Any]:
    """Return the validation annotations of a COCO below a folder."""
    found: dict[str, Any] = json.loads((root / "coco/annotations/instances_val2017.json").read_text())
    return found


def scenes(folder: Path) -> Path:
    """Make a COCO of small scenes there; return the folder."""
    others = {"train_images": 10, "val_images": 10, "uavdt_sequences": 0, "davis_sequences": 0}
    make_scenes(ScenesSettings(coco_size=512, coco_train_images=1, coco_val_images=30, **others), folder)
    return folder


def make(data: dict[str, Any], copies: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    masks = [compress(entry["segmentation"], *sizes[entry["image_id"]]) for entry in data["annotations"]]
    classes = [category["id"] for category in data["categories"]]
    images, annotations, found = [], [], []
    for copy in range(copies):
        shift = copy * 10**7
        images += [{**image, "id": image["id"] + shift} for image in data["images"]]
        for entry, mask in zip(data["annotations"], masks, strict=True):
            image = entry["image_id"] + shift
            annotations.append({**entry, "id": len(annotations) + 1, "image_id": image})
            for number in range(8):
                box = np.abs(np.array(entry["bbox"]) + rng.normal(0, 3, 4)).round(1).tolist()
                category = entry["category_id"] if number < 2 else int(rng.choice(classes))
                score = round(float(rng.random()), 4)
                found.append(
                    {"image_id": image, "category_id": category, "bbox": box, "score": score, "segmentation": mask}
                )
    return {"images": images, "annotations": annotations, "categories": data["categories"]}, found


def official(truth: Path, found: Path) -> dict[str, NDArray[np.float64]]:
    """Return pycocotools' twelve figures of each kind."""
    stats = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for kind in ("bbox", "segm"):
            ground = COCO(str(truth))
            evaluator = COCOeval(ground, ground.loadRes(str(found)), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            stats[kind] = evaluator.stats
    return stats


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    real = os.environ.get("FLSL_REAL_DATA")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truth, found = make(annotations(Path(real) if real else scenes(folder)), args.copies)
        (folder / "truth.json").write_text(json.dumps(truth))
        (folder / "found.json").write_text(json.dumps(found))
        files = folder / "truth.json", folder / "found.json"
        ours, theirs = evaluate_files(*files, folder / "metrics.json")["stats"], official(*files)
        largest = max(float(np.abs(np.array(ours[kind]) - theirs[kind]).max()) for kind in theirs)
        candidates: dict[str, Callable[[], object]] = {
            "ours": lambda: evaluate_files(*files, folder / "metrics.json"),
            "pycocotools": lambda: official(*files),
        }
        seconds = measure(candidates, args.repeats)
    figures = {
        "seconds": seconds,
        "data": "real" if real else "made",
        "speed_ratio": seconds["pycocotools"] / seconds["ours"],
        "largest_difference": largest,
        "images": len(truth["images"]),
        "detections": len(found),
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

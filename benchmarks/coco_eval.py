"""How much faster than pycocotools is the evaluation of COCO results, and does it give the same figures?

    FLSL_REAL_DATA=DIR python benchmarks/coco_eval.py [COPIES]

DIR/coco has val2017's annotations of a few images; COPIES (20) copies of them, with eight detections an object, are
evaluated by both, from files to figures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flsl.detect.coco_eval import evaluate_files
from flsl.detect.rle import compress


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


def main() -> None:
    source = Path(os.environ["FLSL_REAL_DATA"]) / "coco/annotations/instances_val2017.json"
    truth, found = make(json.loads(source.read_text()), int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "truth.json").write_text(json.dumps(truth))
        (folder / "found.json").write_text(json.dumps(found))
        start = time.perf_counter()
        record = evaluate_files(folder / "truth.json", folder / "found.json", folder / "metrics.json")
        ours = time.perf_counter() - start
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            stats = {}
            for kind in ("bbox", "segm"):
                ground = COCO(str(folder / "truth.json"))
                evaluator = COCOeval(ground, ground.loadRes(str(folder / "found.json")), kind)
                evaluator.evaluate()
                evaluator.accumulate()
                evaluator.summarize()
                stats[kind] = evaluator.stats
        theirs = time.perf_counter() - start
    largest = max(np.abs(np.array(record["stats"][kind]) - stats[kind]).max() for kind in stats)
    print(
        f"{len(truth['images'])} images, {len(found)} detections, 24 figures: {ours:.1f} s, pycocotools {theirs:.1f} s"
    )
    print(f"{theirs / ours:.2f} times as fast; largest difference of the 24 figures {largest:.1e}")


if __name__ == "__main__":
    main()

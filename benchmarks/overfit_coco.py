"""Does the whole training path work? Overfit ten real COCO training images and evaluate on those same ten.

    FLSL_REAL_DATA=DIR python benchmarks/overfit_coco.py OUT [setting=value ...]

DIR/coco holds `train2017` and `annotations/instances_train2017.json`. A correct path reaches box AP50 above 60 and mask
AP50 above 50; an error in boxes, masks, labels, scaling or the schedule does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from flsl.config.experiment import Experiment
from flsl.config.loading import check, set_overrides
from flsl.detect.stage import run
from flsl.model.choice import EncoderChoice

IMAGES = 10
SETTINGS = {
    "project": "overfit",
    "pretrain": {
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 16, "depth": 6, "drop_path": 0.0},
    },
    "detection": {
        "model": {
            "drop_path": 0.0, "channels": 96, "box_hidden": 512, "mask_convs": 2, "regions": 128,
            "proposals_train": 300, "proposals_test": 300, "anchor_sizes": [16, 32, 64, 128, 256],
        },
        "coco": {
            "epochs": 40, "milestones": [32], "batch_size": 2, "learning_rate": 2e-3, "warmup_steps": 50, "clip": 1.0,
            "precision": "float32", "weight_decay": 0.0, "short_sides": [320], "test_short_side": 320, "long_side": 480,
            "crop_short_sides": [320], "crop": 0.0, "flip": 0.0, "evaluate_every": 20, "images_shown": 10,
        },
    },
    "compute": {"workers": 0, "log_every": 25},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    parser.add_argument("overrides", nargs="*", metavar="setting=value")
    args = parser.parse_args()
    if "FLSL_REAL_DATA" not in os.environ:
        parser.error("FLSL_REAL_DATA: this environment variable must name the folder with the real samples")
    root, out = Path(os.environ["FLSL_REAL_DATA"]).resolve() / "coco", args.out
    data = json.loads((root / "annotations/instances_train2017.json").read_text())
    data["images"] = data["images"][:IMAGES]
    ids = {image["id"] for image in data["images"]}
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] in ids]
    out.mkdir(parents=True, exist_ok=True)
    few = out.resolve() / "ten.json"
    few.write_text(json.dumps(data))
    images = str(root / "train2017")
    coco = {"root": str(root), "train_images": images, "val_images": images}
    settings = {**SETTINGS, "data": {"coco": {**coco, "train_annotations": str(few), "val_annotations": str(few)}}}
    experiment = check(Experiment, set_overrides(settings, args.overrides), "the command line")
    start = time.perf_counter()
    record = run("coco", experiment, EncoderChoice(random=True), out, "overfit")
    assert record is not None
    box, mask = (record["metrics"][f"coco/{kind}/AP50"] for kind in ("bbox", "segm"))
    seconds = time.perf_counter() - start
    print(f"{len(data['annotations'])} objects: box AP50 {box:.1f}, mask AP50 {mask:.1f}, {seconds:.0f} s")
    if box <= 60 or mask <= 50:
        sys.exit("the training path does not overfit: box AP50 must be above 60 and mask AP50 above 50")


if __name__ == "__main__":
    main()

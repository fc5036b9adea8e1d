"""Does FLSL learn? k-NN of the pretrained against the untrained encoder, seed by seed.

    python benchmarks/learning.py                                   the demo's made scenes, its own recipe
    python benchmarks/learning.py --images CIFAR --val test pretrain.epochs=80 …    an image folder of your own

Everything runs through the `flsl` command, as the workflow runs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


def flsl(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "flsl", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def top1(folder: Path, k: int) -> float:
    return float(json.loads((folder / "metrics.json").read_text())["metrics"][f"knn/top1@{k}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/demo.yaml"))
    parser.add_argument("--images", type=Path, help="image folder <split>/<class>/<image> (default: made scenes)")
    parser.add_argument("--train", default="train", help="its training split")
    parser.add_argument("--val", default="val", help="its validation split")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--k", type=int, default=20, help="neighbours")
    parser.add_argument("--folder", type=Path, default=Path("results/benchmarks/learning"))
    parser.add_argument("--out", type=Path, help="JSON to write (default: FOLDER/learning.json)")
    parser.add_argument("overrides", nargs="*", metavar="setting=value")
    args = parser.parse_args()

    images = args.images
    if images is None:
        images = args.folder / "scenes" / "images"
        others = [f"data.scenes.{name}=0" for name in ("coco_train_images", "uavdt_sequences", "davis_sequences")]
        flsl("data", "scenes", "--config", args.config, "--out", args.folder / "scenes", *others)
    manifest = args.folder / "manifest"
    splits = [f"data.images.train={args.train}", f"data.images.val={args.val}"]
    flsl("data", "check", "images", "--root", images, "--out", manifest, *splits)

    rows = []
    for seed in args.seeds:
        common = ["--config", args.config]
        settings = [f"seed={seed}", f"knn.k=[{args.k}]", "tracking.live=false", *args.overrides]
        run = args.folder / f"seed{seed}"
        started = time.perf_counter()
        flsl("pretrain", *common, "--images", manifest, "--out", run / "pretrain", *settings)
        minutes = (time.perf_counter() - started) / 60
        flsl("baseline", *common, "--name", "untrained", "--out", run / "baseline", *settings)
        for name in ("pretrain", "baseline"):
            backbone = run / name / "backbone.safetensors"
            flsl("knn", *common, "--backbone", backbone, "--images", manifest, "--out", run / f"knn_{name}", *settings)
        row = {
            "seed": seed,
            "minutes": round(minutes, 2),
            "untrained": top1(run / "knn_baseline", args.k),
            "pretrained": top1(run / "knn_pretrain", args.k),
        }
        row["gain"] = round(row["pretrained"] - row["untrained"], 2)
        rows.append(row)
        print(
            f"seed {seed}: untrained {row['untrained']:.1f}, pretrained {row['pretrained']:.1f}, "
            f"gain {row['gain']:+.1f} points, {row['minutes']:.1f} minutes of pretraining",
            flush=True,
        )
    out = args.out or args.folder / "learning.json"
    out.write_text(json.dumps({"k": args.k, "overrides": args.overrides, "runs": rows}, indent=2) + "\n")
    print(f"smallest gain: {min(row['gain'] for row in rows):+.1f} points; written: {out}")


if __name__ == "__main__":
    main()

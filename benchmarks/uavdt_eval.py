"""Do UAVDT's 40,000 test frames with a million detections evaluate in less than a minute?

    python benchmarks/uavdt_eval.py [--sequences 20]

Makes that many sequences of 2,000 frames with 9 boxes and 25 detections a frame, evaluates them, and compares COCO's
figures of two of them with those of the evaluation of COCO files (faster-coco-eval): the seconds, and the largest
difference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import measure, options, report

from flsl.detect.coco_eval import evaluate
from flsl.detect.coco_files import Annotations, Record
from flsl.detect.uavdt_eval import coco_figures, object_table, pool, sequence_table
from flsl.detect.uavdt_files import Rows, Sequence, image_id, read_detections, read_sequences

FRAMES, BOXES, DETECTIONS = 2000, 9, 25


def make(folder: Path, name: str, rng: np.random.Generator) -> None:
    frames = np.repeat(np.arange(1, FRAMES + 1), BOXES)
    corners = np.column_stack([rng.integers(0, 980, len(frames)), rng.integers(0, 500, len(frames))])
    sizes, codes = rng.integers(15, 90, (len(frames), 2)), rng.integers(1, [4, 5, 4], (len(frames), 3))
    truth = np.column_stack([frames, np.arange(len(frames)), corners, sizes, codes])
    np.savetxt(folder / f"{name}_gt_whole.txt", truth, fmt="%d", delimiter=",")
    ignore = "".join(f"{frame},1,5,5,200,60,1,-1,-1\n" for frame in range(1, FRAMES + 1))
    (folder / f"{name}_gt_ignore.txt").write_text(ignore)
    near = truth[rng.integers(0, len(truth), FRAMES * DETECTIONS)]
    boxes = near[:, 2:6] + rng.normal(0, 2, (len(near), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    rows = np.column_stack([near[:, 0], np.full(len(near), -1), boxes, rng.random(len(near))])
    np.savetxt(folder / f"{name}.txt", rows, fmt="%g", delimiter=",")


def from_dictionaries(truth: list[Sequence], found: dict[str, Rows]) -> dict[str, float]:
    annotations: list[Record] = []
    results: list[Record] = []
    for each in truth:
        for table, crowd in ((each.truth, 0), (each.ignore, 1)):
            for frame, *box in table[["frame", "left", "top", "width", "height"]].to_numpy().tolist():
                entry = {"image_id": image_id(each.name, int(frame)), "category_id": 1, "bbox": box, "iscrowd": crowd}
                annotations.append({**entry, "id": len(annotations) + 1, "area": box[2] * box[3]})
        results += [
            {"image_id": image_id(each.name, int(frame)), "category_id": 1, "bbox": box, "score": score}
            for frame, *box, score in found[each.name].tolist()
        ]
    images = {entry["image_id"]: {"id": entry["image_id"], "width": 1, "height": 1} for entry in annotations}
    source = Path("made")
    return evaluate(Annotations(source, images, {1: "x"}, annotations, {}), results, "bbox", source).metrics(
        "uavdt/coco"
    )


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--sequences", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    names = [f"M{5000 + number}" for number in range(args.sequences)]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            make(folder, name, rng)
        truth = read_sequences(folder, names)
        found, _ = read_detections(folder, truth)

        def official() -> None:
            pooled = pool(truth, found)
            sequence_table(pooled, truth)
            object_table(pooled)

        candidates: dict[str, Callable[[], object]] = {
            "reading": lambda: read_detections(folder, read_sequences(folder, names)),
            "official": official,
            "coco": lambda: coco_figures(truth, found),
        }
        seconds = measure(candidates, args.repeats)
        few = {name: found[name] for name in names[:2]}
        ours, theirs = coco_figures(truth[:2], few), from_dictionaries(truth[:2], few)
        two = measure(
            {"ours": lambda: coco_figures(truth[:2], few), "theirs": lambda: from_dictionaries(truth[:2], few)},
            args.repeats,
            warmup=0,
        )
    figures = {
        "seconds": {**seconds, "all": sum(seconds.values())},
        "speedup_over_coco_files": two["theirs"] / two["ours"],
        "largest_difference": max(abs(ours[name] - theirs[name]) for name in theirs),
        "frames": len(names) * FRAMES,
        "detections": sum(map(len, found.values())),
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

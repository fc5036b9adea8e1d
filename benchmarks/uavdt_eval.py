"""Do UAVDT's 40,000 test frames with a million detections evaluate in less than a minute?

    python benchmarks/uavdt_eval.py [--sequences 20]

Makes that many sequences of 2,000 frames with 9 boxes and 25 detections a frame, and compares the seconds of the
official figures with all attribute tables to those of COCO's figures over the same frames, on the same machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import measure, options, report

from flsl.detect.uavdt_eval import coco_figures, object_table, pool, sequence_table
from flsl.detect.uavdt_files import read_detections, read_sequences

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
            "coco": lambda: coco_figures(truth, found, folder),
        }
        seconds = measure(candidates, args.repeats)
    figures = {
        "seconds": {**seconds, "all": sum(seconds.values())},
        "coco_over_official": seconds["coco"] / seconds["official"],
        "frames": len(names) * FRAMES,
        "detections": sum(map(len, found.values())),
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

"""Do UAVDT's 40,000 test frames with a million detections evaluate in less than a minute?

    python benchmarks/uavdt_eval.py [SEQUENCES]

Makes SEQUENCES (20) sequences of 2,000 frames with 9 boxes and 25 detections a frame, and compares the seconds of the
official figures with all attribute tables to those of COCO's figures over the same frames, on the same machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

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
    names = [f"M{5000 + number}" for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 20)]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            make(folder, name, rng)
        clock = [time.perf_counter()]
        truth = read_sequences(folder, names)
        found, _ = read_detections(folder, truth)
        clock.append(time.perf_counter())
        pooled = pool(truth, found)
        sequence_table(pooled, truth)
        object_table(pooled)
        clock.append(time.perf_counter())
        coco_figures(truth, found, folder)
        clock.append(time.perf_counter())
    reading, official, coco = np.diff(clock)
    detections = sum(map(len, found.values()))
    print(f"{len(names) * FRAMES} frames, {detections} detections: {clock[-1] - clock[0]:.1f} s in all")
    print(
        f"reading {reading:.1f} s, official figures {official:.1f} s, COCO's {coco:.1f} s ({coco / official:.1f} times)"
    )


if __name__ == "__main__":
    main()

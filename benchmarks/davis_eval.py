"""How much faster is our DAVIS evaluation than a literal one, object by object and frame by frame?

Compares, in one run on made masks (PNG files of 854 × 480 pixels, two objects):
- ours: ``flsl.video.davis_eval.evaluate``, packed masks, processes over pieces of sequences;
- literal: one process reads a sequence's masks, splits them into objects, and measures each object in each frame on
  whole boolean images, dilating boundaries by a disk (OpenCV where it is installed, as davis2017-evaluation does,
  else SciPy's exact distance transform).

    python benchmarks/davis_eval.py --sequences 4 --frames 60 --out results/bench-davis-eval.json
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import measure, options, report
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from flsl.config.data import DavisDataSettings
from flsl.video.davis_eval import evaluate

try:
    import cv2
except ImportError:
    cv2 = None

HEIGHT, WIDTH, OBJECTS = 480, 854, 2


def make(root: Path, sequences: int, frames: int) -> tuple[Path, Path]:
    """Write ground truth and predictions: discs that wander, predicted a few pixels off."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    names = [f"video-{index}" for index in range(sequences)]
    for name in names:
        places = rng.uniform((100, 100), (HEIGHT - 100, WIDTH - 100), (OBJECTS, 2))
        speeds = rng.uniform(-3, 3, (OBJECTS, 2))
        for frame in range(frames):
            for kind, error in (("truth/Annotations/480p", 0.0), ("masks", 4.0)):
                labels = np.zeros((HEIGHT, WIDTH), np.uint8)
                for index in range(OBJECTS):
                    top, left = places[index] + frame * speeds[index] + rng.normal(0, error, 2)
                    labels[(y - top) ** 2 + (x - left) ** 2 < 90**2] = index + 1
                path = root / kind / name / f"{frame:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels).save(path)
    lists = root / "truth" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(names))
    return root / "truth", root / "masks"


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, ((0, 1), (0, 1)), "edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def near(edge: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    if cv2 is not None:
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        return cv2.dilate(edge.astype(np.uint8), (y**2 + x**2 <= radius**2).astype(np.uint8)).astype(bool)
    return ndimage.distance_transform_edt(~edge) <= radius if edge.any() else edge


def literal(truth: Path, masks: Path) -> float:
    """Return J&F-Mean, in percent."""
    means = []
    for folder in sorted((truth / "Annotations" / "480p").iterdir()):
        paths = sorted(folder.iterdir())
        expected = np.stack([np.asarray(Image.open(path)) for path in paths])
        found = np.stack([np.asarray(Image.open(masks / folder.name / path.name)) for path in paths[1:-1]])
        for identity in range(1, expected[0].max() + 1):
            true_masks, found_masks = expected[1:-1] == identity, found == identity
            scores = [frame_scores(*pair) for pair in zip(true_masks, found_masks, strict=True)]
            means.append(np.mean(scores, axis=0))
    return float(100 * np.mean(means))


def frame_scores(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[float, float]:
    union = (truth | found).sum()
    region = (truth & found).sum() / union if union else 1.0
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    true_edge, found_edge = boundary(truth), boundary(found)
    precision = (found_edge & near(true_edge, radius)).sum() / found_edge.sum() if found_edge.any() else 1.0
    recall = (true_edge & near(found_edge, radius)).sum() / true_edge.sum() if true_edge.any() else 1.0
    total = precision + recall
    return region, 2 * precision * recall / total if total else 0.0


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        truth, masks = make(Path(folder), args.sequences, args.frames)
        expected = literal(truth, masks)
        data = DavisDataSettings(root=str(truth))
        found = evaluate(data, "val", masks, processes=1).metrics["davis/J&F-Mean"]
        assert abs(found - expected) < 1e-6
        candidates: dict[str, Callable[[], object]] = {"literal": lambda: literal(truth, masks)}
        for processes in {1, args.processes}:
            name = f"ours, {processes} process{'es' * (processes > 1)}"
            candidates[name] = lambda count=processes: evaluate(data, "val", masks, processes=count)
        seconds = measure(candidates, args.repeats)
    figures = {
        "seconds": seconds,
        "speed_ratio": seconds["literal"] / min(value for name, value in seconds.items() if name != "literal"),
        "J&F-Mean": expected,
        "frames": args.sequences * args.frames,
        "literal_dilation": "OpenCV" if cv2 is not None else "SciPy distance transform",
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

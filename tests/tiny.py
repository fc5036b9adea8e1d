"""The settings and images of a pretraining that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PRETRAIN: dict[str, Any] = {
    "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "width": 16, "depth": 2, "heads": 2},
    "views": {"teacher_size": 32, "global_size": 32, "local_size": 16},
    "head": {"hidden": 16, "bottleneck": 8, "batch_norm": True},
    "prototypes": 8,
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.05,
    "precision": "float32",
    "online_knn_every": 0,
}
COMPUTE: dict[str, Any] = {"workers": 0, "threads": 1, "device": "cpu"}


def write_images(root: Path, val: int) -> None:
    """Write 8 training and ``val`` validation images of noise in two classes, each a pixel wider than the last."""
    rng = np.random.default_rng(0)
    for index in range(8 + val):
        path = root / ("train" if index < 8 else "val") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36 + index, 3), dtype=np.uint8)).save(path)

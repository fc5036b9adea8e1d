"""A small image folder, and its check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flsl.config.data import ImageFolderSettings
from flsl.data.check import check_data


def make_image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def check_images(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    changes = {name: options.pop(name) for name in ("train", "val", "boxes") if name in options}
    changes |= options.pop("settings", {})
    return check_data(ImageFolderSettings(root=str(root), **changes), out, **options)[0]


def quarantined(manifest: dict[str, Any]) -> dict[str, str]:
    assert manifest["quarantined"]["count"] == len(manifest["quarantined"]["first"])
    return {entry["path"]: entry["reason"] for entry in manifest["quarantined"]["first"]}

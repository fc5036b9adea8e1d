"""A small image folder, a small encoder, and settings that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.config.pretrain import EncoderSettings
from flsl.model.backbone import save_backbone
from flsl.model.vit import build_encoder, timm_arguments

CLASSES = ("ant", "bee", "cow", "dog", "elk", "fox")
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60], [60, 200, 200], [200, 60, 200]])
ENCODER = EncoderSettings(patch_size=8, width=32, depth=3, heads=2)


def write_split(folder: Path, images_a_class: int, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    """Write noisy images of various sizes whose mean colour tells their class, though not always."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(images_a_class):
            width, height = rng.integers(20, 45, 2)
            colour = COLOURS[number] * 0.4 + 80 + rng.normal(0, 25, 3)
            noise = rng.normal(0, 30, (height, width, 3))
            pixels = (colour + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_split(root / "train", 12, seed=1)
    write_split(root / "val", 5, seed=2)
    return root


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "backbone.safetensors"
    name, arguments = timm_arguments(ENCODER, 32)
    save_backbone(path, build_encoder(ENCODER, 32), name, arguments)
    return path


def settings(**changes: Any) -> Experiment:
    """Settings for images of 32 pixels on the CPU, with changes by section."""
    base: dict[str, Any] = {
        "project": "test",
        "features": {"resize": 36, "crop": 32, "batch_size": 7},
        "knn": {"k": [3, 10]},
        "aligned_knn": {"k": [5]},
        "linear": {"learning_rates": [0.01, 0.1, 1.0], "blocks": [1, 2], "epochs": 3, "batch_size": 16},
        "compute": {"device": "cpu", "workers": 0},
        "pretrain": {
            "encoder": {"patch_size": 8, "width": 32, "depth": 3, "heads": 2},
            "views": {"teacher_size": 32, "global_size": 32, "local_size": 16},
        },
    }
    for section, values in changes.items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
    return check(Experiment, base, "the test")


@pytest.fixture(scope="session")
def make_settings() -> Any:
    return settings


@pytest.fixture(scope="session")
def make_split() -> Any:
    return write_split

"""The probes on real CIFAR-10 images with an untrained encoder, against scikit-learn on the stored features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from flsl.cli import main

SETTINGS = [
    "features.resize=32",
    "features.crop=32",
    "features.blocks=2",
    "compute.device=cpu",
    "compute.workers=0",
    "pretrain.encoder.patch_size=8",
    "pretrain.encoder.width=64",
    "pretrain.encoder.depth=2",
    "pretrain.encoder.heads=2",
    "pretrain.views.teacher_size=32",
    "pretrain.views.global_size=32",
    "pretrain.views.local_size=16",
]


@pytest.fixture(scope="module")
def arguments(real_data: Path) -> list[str]:
    return ["--random-init", "--images", str(real_data / "cifar10"), "--val-split", "test"]


@pytest.fixture(scope="module")
def features(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    assert main(["features", *arguments, "--out", str(out), *SETTINGS]) == 0
    return out


def stored(features: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    tensors = safetensors.torch.load_file(features / f"{split}.safetensors")
    return tensors["features"][:, -1].double().numpy(), tensors["labels"].numpy()


@pytest.mark.real
def test_knn_equals_scikit_learn(features: Path, tmp_path: Path) -> None:
    assert main(["knn", "--features", str(features), "--out", str(tmp_path), "compute.device=cpu"]) == 0
    figures = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    (bank, labels), (queries, truth) = stored(features, "train"), stored(features, "val")
    assert (len(bank), len(queries)) == (1000, 400)
    for k in (10, 20, 100, 200):
        judge = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(bank, labels)
        predicted = judge.predict_proba(queries).argmax(1)
        # one image of 400 may stand on the edge between float32 and float64
        assert figures[f"knn/top1@{k}"] == pytest.approx(100 * (predicted == truth).mean(), abs=0.26)
    assert figures["knn/top1@20"] > 15  # colour alone beats chance, 10 %


@pytest.mark.real
@pytest.mark.slow
def test_linear_probe_on_fixed_crops_is_near_logistic_regression(
    arguments: list[str], features: Path, tmp_path: Path
) -> None:
    # the whole image at its own size, no flips: features are then those that scikit-learn sees
    linear = [
        "linear.crop_scale=[1.0,1.0]",
        "linear.flip=false",
        "linear.epochs=12",
        "linear.batch_size=100",
        "linear.blocks=[1]",
        "linear.learning_rates=[0.03,0.1,0.3,1.0]",
    ]
    assert main(["linear", *arguments, "--out", str(tmp_path), *SETTINGS, *linear]) == 0
    ours = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["linear/top1"]
    (train, labels), (test, truth) = stored(features, "train"), stored(features, "val")
    theirs = max(100 * LogisticRegression(C=c, max_iter=300).fit(train, labels).score(test, truth) for c in (0.1, 1.0))
    assert theirs > 20
    assert ours == pytest.approx(theirs, abs=6)

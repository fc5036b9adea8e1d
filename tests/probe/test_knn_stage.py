"""The k-NN stage against scikit-learn on the same features, and its tables."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

from flsl.model.choice import EncoderChoice
from flsl.probe.features import extract
from flsl.probe.images import ImageSource
from flsl.probe.knn import _write_confusion, classify
from flsl.runtime.errors import UserError


@pytest.fixture(scope="module")
def features(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("features")
    extract(make_settings(), EncoderChoice(backbone_file), ImageSource(image_folder), out, "wide")
    return out


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_figures_and_tables_equal_scikit_learns(features: Path, make_settings: Callable, tmp_path: Path) -> None:
    record = classify(make_settings(knn={"k": [10, 3]}), features, tmp_path)
    stored = {split: safetensors.torch.load_file(features / f"{split}.safetensors") for split in ("train", "val")}
    bank, queries = (stored[split]["features"][:, -1].double().numpy() for split in ("train", "val"))
    labels, truth = stored["train"]["labels"].numpy(), stored["val"]["labels"].numpy()
    predicted = {}
    for k in (3, 10):
        judge = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(bank, labels)
        shares = judge.predict_proba(queries)
        predicted[k] = shares.argmax(1)
        best = np.argsort(-shares, axis=1, kind="stable")[:, : min(5, k)]
        hits = best == truth[:, None]
        assert record["metrics"][f"knn/top1@{k}"] == pytest.approx(100 * (predicted[k] == truth).mean())
        assert record["metrics"][f"knn/top5@{k}"] == pytest.approx(100 * hits.any(1).mean())
    assert 17 < record["metrics"]["knn/top1@3"] < 100  # colours tell the classes, though not always
    assert list(record["metrics"]) == ["knn/top1@3", "knn/top5@3", "knn/top1@10", "knn/top5@10"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    assert record["params"] == make_settings(knn={"k": [10, 3]}).knn.plain()
    assert record["run"] == "wide"  # the features' run
    assert list(record["provenance"]["inputs"]) == [str(features / "metrics.json")]

    names = ["ant", "bee", "cow", "dog", "elk", "fox"]
    confusion = read_csv(tmp_path / "confusion.csv")
    assert record["confusion_k"] == 10
    assert confusion[0] == ["class", *names]
    assert [row[0] for row in confusion[1:]] == names
    expected = confusion_matrix(truth, predicted[10], labels=range(6))
    assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == expected.tolist()
    table = read_csv(tmp_path / "per_class.csv")
    assert table[0] == ["class", "images", "top1@3", "top1@10"]
    for number, row in enumerate(table[1:]):
        of_class = truth == number
        shares = [100 * (predicted[k][of_class] == number).mean() for k in (3, 10)]
        assert row[:2] == [names[number], "5"]
        assert [float(cell) for cell in row[2:]] == pytest.approx(shares, abs=1e-3)


def test_few_classes_have_no_top5(
    make_split: Callable, make_settings: Callable, backbone_file: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        make_split(tmp_path / "images" / split, 3, ("a", "b", "c"))
    settings = make_settings(knn={"k": [2]})
    extract(settings, EncoderChoice(backbone_file), ImageSource(tmp_path / "images"), tmp_path / "features", "base")
    record = classify(settings, tmp_path / "features", tmp_path / "knn")
    # train and val are equal here: the nearest neighbour is the image itself, and outvotes the second
    assert record["metrics"] == {"knn/top1@2": 100.0}


def test_more_neighbours_than_images_is_refused(features: Path, make_settings: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"knn\.k: 73 is more than the 72 training images"):
        classify(make_settings(knn={"k": [3, 73]}), features, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no such file; the record of frozen features"):
        classify(make_settings(), tmp_path / "nowhere", tmp_path / "out")


def test_the_features_record_is_not_overwritten(features: Path, make_settings: Callable) -> None:
    before = (features / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="is one of the files that are read"):
        classify(make_settings(knn={"k": [3]}), features, features)
    assert (features / "metrics.json").read_bytes() == before


def test_the_confusion_of_many_classes_is_written_in_little_memory(tmp_path: Path) -> None:
    classes = 1500
    labels = torch.arange(classes).repeat(2)
    names = [f"n{index:08d}" for index in range(classes)]
    tracemalloc.start()
    try:
        _write_confusion(tmp_path / "confusion.csv", labels.flip(0), labels, names)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20  # a list of all cells alone would take 17 MiB
    last = read_csv(tmp_path / "confusion.csv")[-1]
    assert last == [f"n{classes - 1:08d}", "2", *["0"] * (classes - 1)]

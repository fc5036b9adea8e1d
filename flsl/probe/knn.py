"""k-NN classification of frozen features, by DINO's protocol (arXiv 2104.14294)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flsl.config.experiment import Experiment
from flsl.model.neighbours import accuracies, knn_predictions
from flsl.probe.store import read_features
from flsl.runtime.distributed import choose_device, describe, fitting
from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import StageRecord, atomic, read_json

_USUAL_K = 20
# names of classes may hold bytes that are no text
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


@fitting("knn.memory_mb: more than the GPU has left beside the features; lower it")
def classify(experiment: Experiment, features: Path, out: Path, run: str | None = None) -> dict[str, Any]:
    """Classify the validation images by their neighbours among the training images.

    Cosine similarity of the last block's mean patch tokens, votes weighted exp(cosine / temperature). Ties are settled
    as :mod:`flsl.model.neighbours` says. Writes ``metrics.json``, ``per_class.csv`` (accuracy of each class at each k)
    and ``confusion.csv`` (rows are true classes, columns predicted ones; at k = 20 where that is asked for, else the
    first k).

    Args:
        experiment: its ``knn`` and ``compute`` settings are read.
        features: folder that `flsl features` wrote.
        out: folder to write to.
        run: the run's name for the record; None takes the features'.

    Returns:
        what ``metrics.json`` holds: ``knn/top1@<k>`` and, with five classes or more, ``knn/top5@<k>``, in percent.

    Raises:
        UserError: when the features are missing or not finite, or there are fewer than k.
    """
    settings, device = experiment.knn, choose_device(experiment.compute.device)
    made = require_file(features / "metrics.json", "the record of frozen features, made by `flsl features`,")
    if run is None:
        run = str(read_json(made, "the features' record").get("run", "base"))
    record = StageRecord("knn", run, settings.plain(), [made], describe(device))
    bank, queries = (read_features(features / f"{split}.safetensors") for split in ("train", "val"))
    if bank.classes != queries.classes or bank.features.shape[1] != queries.features.shape[1]:
        raise UserError(f"{features}: its train and val features are not of one encoder and data set; make them anew")
    classes = len(bank.classes)
    if max(settings.k) > len(bank.labels):
        raise UserError(
            f"knn.k: {max(settings.k)} is more than the {len(bank.labels)} training images; take smaller ones"
        )
    predictions = knn_predictions(
        queries.features,
        bank.features,
        bank.labels,
        classes,
        settings.k,
        settings.temperature,
        settings.memory_mb,
        device,
        progress=True,
    )
    figures = accuracies(predictions, queries.labels, classes)
    first = {k: predicted[:, 0] for k, predicted in predictions.items()}
    _write_per_class(out / "per_class.csv", first, queries.labels, bank.classes)
    chosen = _USUAL_K if _USUAL_K in first else settings.k[0]
    _write_confusion(out / "confusion.csv", first[chosen], queries.labels, bank.classes)
    counts = {"train": len(bank.labels), "val": len(queries.labels), "classes": classes}
    return record.write(
        out / "metrics.json",
        {f"knn/{name}": value for name, value in figures.items()},
        images=counts,
        confusion_k=chosen,
    )


def _write_per_class(path: Path, predictions: dict[int, Tensor], labels: Tensor, classes: list[str]) -> None:
    images = torch.bincount(labels, minlength=len(classes))
    right = {k: torch.bincount(labels[found == labels], minlength=len(classes)) for k, found in predictions.items()}
    with atomic(path) as temporary, temporary.open("w", newline="", **_TEXT) as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", *(f"top1@{k}" for k in right)])
        for index, name in enumerate(classes):
            count = int(images[index])
            shares = [f"{100 * int(hits[index]) / count:.4f}" if count else "" for hits in right.values()]
            writer.writerow([name, count, *shares])


def _write_confusion(path: Path, predicted: Tensor, labels: Tensor, classes: list[str]) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="", **_TEXT) as file:
        writer = csv.writer(file)
        writer.writerow(["class", *classes])
        # row by row: of ImageNet-21k's classes the whole table would be gigabytes
        for index, name in enumerate(classes):
            row = torch.bincount(predicted[labels == index], minlength=len(classes))
            writer.writerow([name, *row.tolist()])

"""A k-NN check of the teacher while it learns, on a small fixed part of the labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flsl.config.pretrain import PretrainSettings
from flsl.data.crops import resized
from flsl.data.images import ImageSet
from flsl.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from flsl.model.neighbours import knn_accuracy
from flsl.runtime.errors import UserError
from flsl.runtime.progress import say, warn
from flsl.runtime.signals import obey_parent

_K = 20
_TEMPERATURE = 0.07


class OnlineKnn:
    """k-NN accuracy (k = 20, DINO's votes) of mean patch tokens.

    Args:
        train: images whose labels vote; a fixed random choice of ``count`` of them is used.
        val: images that are classified; a tenth as many.
        count: of training images.
        size: side of the images that the encoder sees, in pixels.
        workers: loading processes.
    """

    def __init__(self, train: ImageSet, val: ImageSet, count: int, size: int, workers: int) -> None:
        self._sets = [_Small(train, count, size), _Small(val, max(1, count // 10), size)]
        self._workers = workers

    def figures(self, encoder: VisionTransformer, device: torch.device) -> dict[str, float]:
        """Return ``online_knn``, the accuracy; nothing where an image is gone or damaged, which ends no training."""
        try:
            return {"online_knn": self.accuracy(encoder, device)}
        except UserError as error:
            warn(f"the k-NN check of this epoch is left out: {error}")
            return {}

    def accuracy(self, encoder: VisionTransformer, device: torch.device) -> float:
        """Return the top-1 accuracy in percent; the encoder's mode (training or not) is as it was afterwards."""
        training = encoder.training
        encoder.eval()
        try:
            (bank, bank_labels), (queries, labels) = (self._features(small, encoder, device) for small in self._sets)
        finally:
            encoder.train(training)
        k = min(_K, len(bank))
        classes = int(torch.cat([bank_labels, labels]).max()) + 1
        figures = knn_accuracy(queries, labels, bank, bank_labels, classes, [k], _TEMPERATURE)
        return figures[f"top1@{k}"]

    @torch.no_grad()
    def _features(self, small: _Small, encoder: VisionTransformer, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        features, labels = [], []
        for images, own in self._batches(small):
            normalised = (images.to(device).float() / 255 - mean) / std
            features.append(encoder.forward_features(normalised).float().mean(1))
            labels.append(own)
        return torch.cat(features), torch.cat(labels).to(device)

    def _batches(self, small: _Small) -> Iterator[tuple[Tensor, Tensor]]:
        # a small set is decoded faster than worker processes start
        workers = self._workers if len(small) > 500 else 0
        yield from DataLoader(small, batch_size=250, num_workers=workers, worker_init_fn=obey_parent)


def build_online_knn(images: Path, settings: PretrainSettings, workers: int) -> OnlineKnn | None:
    """Return the check on the images of a manifest's folder, or None where it is off or labels are missing."""
    if not settings.online_knn_every:
        return None
    try:
        train, val = (ImageSet.from_manifest(images, split, labelled=True) for split in ("train", "val"))
    except UserError as error:
        # the check is a courtesy: data without labels or without a validation split are pretrained on all the same
        say(f"pretraining without the k-NN check of pretrain.online_knn_every: {error}")
        return None
    if len(train.class_names) < 2:
        say("pretraining without the k-NN check of pretrain.online_knn_every: the images are of a single class")
        return None
    return OnlineKnn(train, val, settings.online_knn_images, settings.views.teacher_size, workers)


class _Small(Dataset[tuple[Tensor, int]]):
    """A fixed choice of images: short side resized, centre cropped, uint8."""

    def __init__(self, images: ImageSet, count: int, size: int) -> None:
        self._images, self._size = images, size
        chosen = np.random.default_rng(0).permutation(len(images))[:count]
        self._indices = np.sort(chosen)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        index = int(self._indices[item])
        image = self._images.pixels(index)
        scale = self._size / min(image.shape[1:])
        height, width = (max(self._size, round(side * scale)) for side in image.shape[1:])
        left, top = (width - self._size) // 2, (height - self._size) // 2
        image = resized(image, height, width)
        return image[:, top : top + self._size, left : left + self._size], int(self._images.labels[index])

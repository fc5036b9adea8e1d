"""The labelled images that probes are trained and judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flsl.data.images import ImageSet
from flsl.data.manifest import MANIFEST, load_manifest
from flsl.runtime.errors import UserError


@dataclass(frozen=True)
class ImageSource:
    """Where the images are.

    Attributes:
        path: a folder with the ``manifest.json`` of `flsl data check`, or an image folder ``<split>/<class>/<image>``.
        train: folder of the training split below an image folder.
        val: likewise of the validation split.
    """

    path: Path
    train: str = "train"
    val: str = "val"

    @property
    def inputs(self) -> list[Path]:
        """The file to be hashed into a record: the manifest, if there is one."""
        return [self.path / MANIFEST] if (self.path / MANIFEST).exists() else []

    @property
    def boxes(self) -> str | None:
        """Where the manifest says that the images' boxes are, below their root."""
        boxes = load_manifest(self.path)["settings"].get("boxes") if self.inputs else None
        return str(boxes) if boxes else None

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the validation set.

        Raises:
            UserError: when a split is missing.
        """
        if self.inputs:
            return ImageSet.from_manifest(self.path, "train"), ImageSet.from_manifest(self.path, "val")
        return ImageSet.scan(self.path, self.train), ImageSet.scan(self.path, self.val)


def check_labels(train: ImageSet, val: ImageSet) -> tuple[Tensor, Tensor]:
    """Check that two sets can train and judge a classifier.

    Returns:
        the labels (n,) of both, int64, as indices into the classes of ``train``.

    Raises:
        UserError: when a set is empty or an image has no label, there is one class only, or a class that is to be
            judged has no training images.
    """
    for images in (train, val):
        place = images.root / images.split
        if not len(images):
            raise UserError(f"{place}: there is no usable image; a probe needs some in both splits")
        without = np.flatnonzero(images.labels < 0)
        if len(without):
            raise UserError(
                f"{place}: {len(without)} of {len(images)} images have no label, e.g. {images.paths[int(without[0])]}; "
                f"a probe needs <split>/<class>/<image>"
            )
    trained = set(np.unique(train.labels).tolist())
    if len(trained) < 2:
        raise UserError(f"{train.root / train.split}: holds one class only; a classifier needs two or more")
    numbers = {name: number for number, name in enumerate(train.class_names)}
    in_train = np.array([numbers.get(name, -1) for name in val.class_names])
    labels = in_train[val.labels]
    for row in np.flatnonzero(~np.isin(labels, list(trained)))[:1].tolist():
        name = val.class_names[int(val.labels[row])]
        raise UserError(
            f"{val.root / val.split}: class '{name}' has no training images; both splits need the same classes"
        )
    return torch.from_numpy(train.labels.copy()), torch.from_numpy(labels)

"""What probes refuse about their images, and how labels of two splits are brought together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flsl.data.images import ImageSet
from flsl.probe.images import ImageSource, check_labels
from flsl.runtime.errors import UserError


def build(root: Path, make_split: Callable, train: dict[str, int], val: dict[str, int]) -> Path:
    for split, classes in (("train", train), ("val", val)):
        for name, count in classes.items():
            make_split(root / split, count, (name,))
    return root


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ({"": 3}, {"a": 1}, r"train: 3 of 3 images have no label, e\.g\. train/000\.png"),
        ({"a": 3, "b": 1}, {"a": 1, "": 2}, r"val: 2 of 3 images have no label"),
        ({"a": 3}, {"a": 1}, r"train: holds one class only"),
        ({"a": 3, "b": 1}, {"a": 1, "c": 1}, r"val: class 'c' has no training images"),
        ({"a": 3, "b": 1}, {}, r"val: no such folder"),
        ({}, {"a": 1}, r"train: no such folder"),
    ],
)
def test_bad_sets_are_refused_in_one_line(
    tmp_path: Path, make_split: Callable, train: dict[str, int], val: dict[str, int], message: str
) -> None:
    root = build(tmp_path, make_split, train, val)
    with pytest.raises(UserError, match=message):
        check_labels(*ImageSource(root).load())


def test_an_empty_split_is_refused(image_folder: Path) -> None:
    images = ImageSet.scan(image_folder, "train")
    empty = ImageSet._of(image_folder, "val", [], set())
    with pytest.raises(UserError, match=r"val: there is no usable image"):
        check_labels(images, empty)


def test_labels_mean_the_training_sets_classes_where_validation_lacks_some(
    tmp_path: Path, make_split: Callable
) -> None:
    root = build(tmp_path, make_split, {"a": 1, "b": 2, "c": 1}, {"c": 2, "b": 1})
    train, val = ImageSource(root).load()
    train_labels, val_labels = check_labels(train, val)
    assert train_labels.tolist() == [0, 1, 1, 2]
    assert val_labels.tolist() == [1, 2, 2]


def test_other_split_names(tmp_path: Path, make_split: Callable) -> None:
    for split in ("fit", "judge"):
        make_split(tmp_path / split, 2)
    train, val = ImageSource(tmp_path, "fit", "judge").load()
    assert len(train) == len(val) == 12
    assert ImageSource(tmp_path, "fit", "judge").inputs == []

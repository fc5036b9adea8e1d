"""ImageSet: the images that training reads, cheap to hold, in torchvision's order and with its labels."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folder import check_images, make_image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from flsl.data.files import FILES, Row, read_rows, write_rows
from flsl.data.images import ImageSet
from flsl.data.strings import Strings
from flsl.runtime.errors import UserError


def test_scan_is_torchvisions_image_folder(root: Path) -> None:
    (root / "train" / "cat" / "notes.txt").write_text("x")
    make_image(root / "train" / "dog" / "deeper" / "z.png", 5)
    theirs = ImageFolder(str(root / "train"))
    ours = ImageSet.scan(root, "train")
    assert list(ours.class_names) == theirs.classes
    assert {str(ours.path(i)): label for i, label in enumerate(ours.labels.tolist())} == dict(theirs.samples)
    assert ours.labels.dtype == np.int64
    with pytest.raises(UserError, match="no such folder"):
        ImageSet.scan(root, "nothing")
    (root / "void").mkdir()
    with pytest.raises(UserError, match="void: holds no images"):
        ImageSet.scan(root, "void")


def test_manifest_and_scan_agree_and_labels_mean_the_same_in_both_splits(root: Path, tmp_path: Path) -> None:
    (root / "val" / "cat" / "v.JPEG").unlink()
    (root / "val" / "cat").rmdir()
    check_images(root, tmp_path / "out")
    train, val = (ImageSet.from_manifest(tmp_path / "out", split) for split in ("train", "val"))
    scanned = ImageSet.scan(root, "train")
    assert list(train.paths) == list(scanned.paths)
    assert train.labels.tolist() == scanned.labels.tolist()
    assert val.class_names == train.class_names == ("cat", "dog")
    assert val.labels.tolist() == [1]
    with pytest.raises(UserError, match=r"has no split 'tests'; there are train, val"):
        ImageSet.from_manifest(tmp_path / "out", "tests")


def test_images_are_loaded_by_index(root: Path) -> None:
    images = ImageSet.scan(root, "train")
    assert images.load(4).tobytes() == default_loader(str(root / "train" / "dog" / "1.JPEG")).tobytes()


def test_a_split_may_be_named_by_its_folder(root: Path, tmp_path: Path) -> None:
    (root / "val").rename(root / "test")
    check_images(root, tmp_path / "out", val="test")
    by_role, by_folder = (ImageSet.from_manifest(tmp_path / "out", name) for name in ("val", "test"))
    assert list(by_role.paths) == list(by_folder.paths) == ["test/cat/v.JPEG", "test/dog/v.JPEG"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
@settings(max_examples=100)
def test_strings_are_a_list_of_strings(strings: list[str]) -> None:
    ours = Strings(strings)
    assert list(ours) == strings
    assert len(ours) == len(strings)
    assert [ours[i] for i in range(-len(strings), 0)] == strings
    assert ours[1:] == strings[1:]
    assert list(pickle.loads(pickle.dumps(ours))) == strings  # noqa: S301
    with pytest.raises(IndexError):
        ours[len(strings)]


def test_strings_cost_little_more_than_their_characters() -> None:
    paths = [f"train/n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in range(100_000)]
    assert len(pickle.dumps(Strings(paths))) < sum(map(len, paths)) + 9 * len(paths)


_NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1).map(
    lambda text: os.fsdecode(text.encode("utf-8", "ignore"))
)


def _stays(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/")


@given(st.lists(st.tuples(_NAMES.filter(_stays), _NAMES, st.integers(0, 2**63)), max_size=5))
@settings(max_examples=100)
def test_files_csv_gives_back_any_name(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    made = [Row(path, "train", name, 1, 2, "RGB", "JPEG", 3, time, "0" * 16, "ok", "") for path, name, time in rows]
    write_rows(folder, made)
    assert list(read_rows(folder / FILES)) == made


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "train/../../secret.png"])
def test_files_csv_names_nothing_outside_the_data_set(tmp_path: Path, path: str) -> None:
    write_rows(tmp_path, [Row(path, "train", "", 1, 2, "RGB", "PNG", 3, 4, "0" * 16, "ok", "")])
    with pytest.raises(UserError, match="leaves the data set"):
        list(read_rows(tmp_path / FILES))


def test_manifest_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, flsl.data.manifest; print({'torch', 'pandas', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

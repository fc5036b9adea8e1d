"""`flsl data check davis`: frames, masks and lists that belong together, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flsl.config.data import DavisDataSettings
from flsl.data.check import check_data
from flsl.data.davis import read_lists
from flsl.runtime.errors import UserError

FRAMES, MASKS, LISTS = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017"


def _mask(path: Path, ids: list[int], size: tuple[int, int] = (30, 20)) -> None:
    labels = np.zeros((size[1], size[0]), np.uint8)
    labels[0, : len(ids)] = ids
    image = Image.fromarray(labels, "P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 0)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sequences of val with three frames, the first with two objects."""
    root = tmp_path / "davis"
    for name, ids in (("bear", [1, 2]), ("camel", [1])):
        for number in range(3):
            frame = root / FRAMES / name / f"{number:05d}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20), (number, len(ids), 0)).save(frame)
            _mask(root / MASKS / name / f"{number:05d}.png", ids[: 2 - number // 2])
    (root / LISTS).mkdir(parents=True)
    (root / LISTS / "val.txt").write_text("bear\ncamel\n")
    return root


def _check(root: Path, **changes: Any) -> dict[str, Any]:
    return check_data(DavisDataSettings(root=str(root), **changes), root.parent / "out")[0]


def test_a_consistent_copy(root: Path) -> None:
    manifest = _check(root)
    assert manifest["inconsistencies"]["count"] == manifest["quarantined"]["count"] == 0
    assert manifest["splits"]["val"] == {
        "files": 12, "ok": 12, "images": 12, "sequences": 2, "frames": 6, "masks": 6, "objects": 3
    }  # fmt: skip
    assert read_lists(DavisDataSettings(root=str(root))) == {"val": ["bear", "camel"]}


def test_masks_of_one_bit_name_one_object(root: Path) -> None:
    for path in (root / MASKS / "camel").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) == 1).save(path)
    manifest = _check(root)
    assert manifest["inconsistencies"]["first"] == []
    assert manifest["splits"]["val"]["objects"] == 3


def _number_without_zeros(root: Path) -> None:
    for path in (root / FRAMES / "bear").iterdir():
        path.unlink()
    for number in range(11):
        Image.new("RGB", (30, 20)).save(root / FRAMES / "bear" / f"{number}.jpg")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda d: (d / MASKS / "bear" / "00001.png").unlink(),
            "val: bear: 1 frame(s) without mask, e.g. 00001",
        ),
        (
            lambda d: (d / FRAMES / "bear" / "00002.jpg").unlink(),
            "val: bear: 1 mask(s) without frame, e.g. 00002",
        ),
        (
            lambda d: [(d / f / "bear" / f"00001.{e}").unlink() for f, e in ((FRAMES, "jpg"), (MASKS, "png"))],
            "val: bear: frames are not numbered 00000, 00001, …",
        ),
        (
            lambda d: (d / FRAMES / "bear" / "00001.jpg").rename(d / FRAMES / "bear" / "00001.JPG"),
            "val: bear: 1 frame(s) whose names do not end in .jpg, e.g. JPEGImages/480p/bear/00001.JPG",
        ),
        (
            lambda d: [path.rename(path.with_suffix(".bmp")) for path in (d / MASKS / "bear").iterdir()],
            "val: bear: 3 mask(s) whose names do not end in .png, e.g. Annotations/480p/bear/00000.bmp",
        ),
        (
            lambda d: [(d / f / "bear" / f"00002.{e}").unlink() for f, e in ((FRAMES, "jpg"), (MASKS, "png"))],
            "val: bear: 2 frames; with fewer than 3 it cannot be evaluated",
        ),
        (_number_without_zeros, "val: bear: frames are not numbered 00000, 00001, …"),
        (lambda d: (d / FRAMES / "bear").rename(d / "away"), "val: bear: has no frames"),
        (lambda d: (d / MASKS / "bear").rename(d / "away"), "val: bear: has no masks"),
        (
            lambda d: _mask(d / MASKS / "bear" / "00000.png", [1, 3]),
            "val: bear: the object ids of the first mask are 1, 3; 1…2 are expected",
        ),
        (lambda d: _mask(d / MASKS / "bear" / "00000.png", []), "00000.png, is empty"),
        (
            lambda d: _mask(d / MASKS / "bear" / "00000.png", [255]),
            "00000.png, is empty but for 255, which is void (objects are numbered from 1)",
        ),
        (
            lambda d: _mask(d / MASKS / "bear" / "00001.png", [1, 2, 3]),
            "val: bear: object id(s) 3 are in later masks but not in the first",
        ),
        (
            lambda d: _mask(d / MASKS / "bear" / "00001.png", [1, 2], (31, 20)),
            "val: bear: frames and masks of several sizes: 30×20, 31×20",
        ),
        (
            lambda d: Image.new("RGB", (30, 20)).save(d / MASKS / "bear" / "00001.png"),
            "val: bear: 1 quarantined file(s), e.g. Annotations/480p/bear/00001.png (cannot be decoded (a mask is an",
        ),
        (lambda d: (d / LISTS / "val.txt").write_text("bear\ncamel\nbear"), "val.txt: bear is listed twice"),
    ],
)
def test_each_inconsistency_is_one_line(root: Path, spoil: Callable[[Path], object], line: str) -> None:
    spoil(root)
    told = _check(root)["inconsistencies"]["first"]
    assert any(line in text for text in told), told


def test_names_of_sequences_may_hold_spaces(root: Path) -> None:
    for folder in (FRAMES, MASKS):
        (root / folder / "bear").rename(root / folder / "a bear")
    (root / LISTS / "val.txt").write_bytes(b"a bear \r\n\r\ncamel")
    assert _check(root)["inconsistencies"]["count"] == 0
    assert read_lists(DavisDataSettings(root=str(root))) == {"val": ["a bear", "camel"]}


def test_year_and_resolution_name_the_folders(root: Path) -> None:
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p").rename(root / kind / "Full-Resolution")
    (root / LISTS).rename(root / "ImageSets/2019")
    first = _check(root, year=2019, resolution="Full-Resolution")
    assert first["inconsistencies"]["count"] == 0
    assert first["splits"]["val"]["frames"] == 6
    Image.new("RGB", (30, 20)).save(root / "JPEGImages/Full-Resolution/bear/00001.jpg")
    assert _check(root, year=2019, resolution="Full-Resolution")["content_sha256"] != first["content_sha256"]
    with pytest.raises(UserError, match=r"ImageSets/2017: no such folder; data\.davis\.year needs it"):
        _check(root, resolution="Full-Resolution")


def test_void_is_no_object(root: Path) -> None:
    for number in range(3):
        _mask(root / MASKS / "bear" / f"{number:05d}.png", [1, 2, 255])
    manifest = _check(root)
    assert manifest["inconsistencies"]["count"] == 0
    assert manifest["splits"]["val"]["objects"] == 3


def test_test_sets_have_only_first_masks(root: Path) -> None:
    (root / LISTS / "val.txt").write_text("camel\n")
    (root / LISTS / "test-dev.txt").write_text("bear\n")
    for number in (1, 2):
        (root / MASKS / "bear" / f"{number:05d}.png").unlink()
    manifest = _check(root)
    assert manifest["inconsistencies"]["count"] == 0
    assert manifest["splits"]["test-dev"]["masks"] == 1


def test_unlisted_sequences_are_noted(root: Path) -> None:
    (root / LISTS / "val.txt").write_text("camel\n")
    assert "1 sequence(s) are in no list, e.g. bear" in _check(root)["notes"]["first"]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda d: (d / LISTS / "val.txt").unlink(), r"2017: lists no sequences; DAVIS' ImageSets/2017/val\.txt"),
        (lambda d: (d / LISTS / "val.txt").write_text("\n"), "lists no sequences"),
        (lambda d: (d / LISTS / "val.txt").write_text("../../x\n"), r"val\.txt: '\.\./\.\./x' is no plain name"),
        (lambda d: (d / LISTS / "val.txt").write_bytes(b"\xff\xfe"), "cannot be read as a list of sequences"),
        (lambda d: (d / LISTS / "val.txt").write_text("other\n"), "holds no frame of a listed sequence"),
        (
            lambda d: (d / "JPEGImages").rename(d / "x"),
            r"JPEGImages/480p: no such folder; data\.davis\.resolution needs it",
        ),
    ],
)
def test_data_sets_that_cannot_be_used_are_one_line(root: Path, spoil: Callable[[Path], object], line: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=line):
        _check(root)


@pytest.mark.real
def test_real_sample(real_data: Path, tmp_path: Path) -> None:
    manifest = check_data(DavisDataSettings(root=str(real_data / "davis")), tmp_path / "out")[0]
    assert manifest["inconsistencies"]["count"] == manifest["quarantined"]["count"] == 0
    assert manifest["splits"]["val"] == {
        "files": 278, "ok": 278, "images": 278, "sequences": 3, "frames": 139, "masks": 139, "objects": 3
    }  # fmt: skip

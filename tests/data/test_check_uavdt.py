"""UAVDT: the official lists, the rows' readers, and `flsl data check uavdt`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flsl.config.data import UavdtSettings
from flsl.data.check import check_data
from flsl.data.uavdt import (
    COLUMNS,
    TEST_LENGTHS,
    TEST_SEQUENCES,
    TRAIN_SEQUENCES,
    read_ground_truth,
    read_ignore,
    split_of,
)
from flsl.runtime.errors import UserError

GT = "UAV-benchmark-MOTD_v1.0/GT"
FRAMES = "UAV-benchmark-M"


def test_the_official_lists_split_50_sequences() -> None:
    assert len(TRAIN_SEQUENCES) == 30
    assert len(TEST_SEQUENCES) == 20
    assert len({*TRAIN_SEQUENCES, *TEST_SEQUENCES}) == 50
    # the benchmark numbers its sequences M<place><take> without gaps
    takes = {1: 1, 2: 10, 3: 1, 4: 3, 5: 1, 6: 6, 7: 4, 8: 2, 9: 2, 10: 9, 11: 2, 12: 2, 13: 6, 14: 1}
    every = {f"M{place:02d}{take:02d}" for place, last in takes.items() for take in range(1, last + 1)}
    assert {*TRAIN_SEQUENCES, *TEST_SEQUENCES} == every
    assert sum(TEST_LENGTHS.values()) == 16592
    assert (split_of("M0205"), split_of("M0207"), split_of("M9999")) == ("test", "train", "")


def test_rows_are_read_as_pandas_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.integers(1, 5, 200) for _ in COLUMNS], 1)
    values[:, -1] = rng.integers(1, 4, 200)
    values[:, 6] = rng.integers(1, 4, 200)
    text = "\r\n".join(",".join(map(str, row)) for row in values) + "\r\n\n"
    (tmp_path / "a_gt_whole.txt").write_bytes(text.encode())
    table = read_ground_truth(tmp_path / "a_gt_whole.txt")
    theirs = pd.read_csv(tmp_path / "a_gt_whole.txt", header=None, names=list(COLUMNS))
    pd.testing.assert_frame_equal(table, theirs.astype(table.dtypes.to_dict()))
    assert table["frame"].dtype == np.int64
    assert table["left"].dtype == np.float64
    (tmp_path / "fraction.txt").write_text("1,1,10.5,-3,20.25,30,1,1,1,\n")
    assert read_ground_truth(tmp_path / "fraction.txt")["width"].tolist() == [20.25]


def test_an_ignore_file_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "x_gt_ignore.txt").write_text("")
    table = read_ignore(tmp_path / "x_gt_ignore.txt")
    assert table.shape == (0, 9)
    assert table["frame"].dtype == np.int64
    (tmp_path / "x_gt_ignore.txt").write_text("3,28,637,1,248,25,1,-1,-1\n")
    assert read_ignore(tmp_path / "x_gt_ignore.txt")["category"].tolist() == [-1]


GOOD = "1,1,10,10,5,5,1,1,1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{GOOD}\n1,2,3\n", r"line 2: nine numbers separated by commas are expected, not '1,2,3'"),
        (f"{GOOD},7\n", "line 1: nine numbers"),
        (f"{GOOD}\n\n{GOOD}\n", "line 2: nine numbers"),
        ("frame,target,left,top,width,height,out,occlusion,category\n", "line 1: nine numbers"),
        (f"{GOOD}\n1,1,nan,10,5,5,1,1,1\n", "line 2: nine numbers"),
        ("1,1,1e999,10,5,5,1,1,1\n", "line 1: nine numbers"),
        ("0,1,10,10,5,5,1,1,1\n", r"line 1: a frame number below 1 \(1 such line\)"),
        ("1.5,1,10,10,5,5,1,1,1\n", "line 1: a frame that is no whole number"),
        ("1,1,10,10,5,5,4,1,1\n", "line 1: an out-of-view code other than 1, 2, 3"),
        ("1,1,10,10,5,5,1,0,1\n", "line 1: an occlusion code other than 1, 2, 3, 4"),
        (f"{GOOD}\n1,1,10,10,5,5,1,1,-1\n1,1,10,10,5,5,1,1,4\n", r"line 2: a category other than .* \(2 such lines\)"),
    ],
)
def test_malformed_rows_are_named_by_their_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "x_gt_whole.txt").write_text(text)
    with pytest.raises(UserError, match=line) as caught:
        read_ground_truth(tmp_path / "x_gt_whole.txt")
    assert str(caught.value).startswith(str(tmp_path / "x_gt_whole.txt"))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        read_ground_truth(tmp_path / "x.txt")
    with pytest.raises(UserError, match="no such file"):
        read_ignore(tmp_path / "gone.txt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A training sequence of four frames and a test sequence of three, the latter with an ignore region."""
    root = tmp_path / "uavdt"
    (root / GT).mkdir(parents=True)
    for name, count in (("M0101", 4), ("M0208", 3)):
        (root / FRAMES / name).mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("RGB", (64, 32), (20 * number, 40 * count, 0)).save(root / FRAMES / name / f"img{number:06d}.jpg")
        rows = [f"{number},1,10,10,5,5,1,1,{1 + (number == 2)}" for number in range(1, count + 1)]
        (root / GT / f"{name}_gt_whole.txt").write_text("\n".join(rows) + "\n")
        (root / GT / f"{name}_gt_ignore.txt").write_text("1,9,0,0,4,4,1,-1,-1\n" * (count == 3))
    return root


def _check(root: Path) -> dict[str, Any]:
    return check_data(UavdtSettings(root=str(root)), root.parent / "out")[0]


def test_a_consistent_copy(root: Path) -> None:
    manifest = _check(root)
    assert manifest["inconsistencies"]["count"] == manifest["quarantined"]["count"] == 0
    train, test = ({"sequences": 1, "frames": n, "boxes": n, "ignore_boxes": n == 3} for n in (4, 3))
    assert manifest["splits"]["train"] == {"files": 6, "ok": 6, "images": 4} | train
    assert manifest["splits"]["test"] == {"files": 5, "ok": 5, "images": 3} | test
    assert manifest["classes"]["listed"] == {
        "car": {"train": 3, "test": 2},
        "truck": {"train": 1, "test": 1},
        "bus": {},
    }
    assert manifest["notes"]["first"] == [
        "M0208: 3 frames, the official test sequence has 265",
        "train: 1 of the 30 official sequences",
        "test: 1 of the 20 official sequences",
    ]


def _append(text: str) -> Callable[[Path], None]:
    def append(root: Path) -> None:
        path = root / GT / "M0101_gt_whole.txt"
        path.write_text(path.read_text() + text + "\n")

    return append


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda d: (d / GT / "M0101_gt_whole.txt").unlink(), "M0101: has frames but no M0101_gt_whole.txt"),
        (lambda d: (d / GT / "M0101_gt_ignore.txt").unlink(), "M0101: has no M0101_gt_ignore.txt"),
        (lambda d: (d / FRAMES / "M0101").rename(d / "away"), "M0101: has ground truth but no frames"),
        (
            lambda d: (d / FRAMES / "M0101" / "img000002.jpg").unlink(),
            "M0101: frames are not named img000001.jpg … without gaps, e.g. img000002.jpg",
        ),
        (
            lambda d: (d / FRAMES / "M0101" / "img000004.jpg").unlink(),
            "M0101: ground truth up to frame 4, but 3 frames",
        ),
        (lambda d: (d / FRAMES / "M0101" / "img000004.jpg").write_bytes(b""), "M0101: 1 quarantined frame(s), e.g."),
        (
            lambda d: Image.new("RGB", (60, 32)).save(d / FRAMES / "M0101" / "img000004.jpg"),
            "M0101: frames of several sizes: 60×32, 64×32",
        ),
        (_append("1,2,3"), "M0101_gt_whole.txt: line 5: nine numbers"),
        (_append("1,2,10,10,0,5,1,1,1"), "M0101: 1 box(es) without area"),
        (_append("1,1,10,10,5,5,1,1,1"), "M0101: 1 row(s) repeat a target in a frame"),
        (_append("1,2,64,10,5,5,1,1,1"), "M0101: 1 box(es) lie outside the 64×32 frame"),
        (
            lambda d: (d / GT / "M0208_gt_whole.txt").write_text("266,1,1,1,5,5,1,1,1\n"),
            "M0208: 266 frames, the official test sequence has 265",
        ),
    ],
)
def test_each_inconsistency_is_one_line(root: Path, spoil: Callable[[Path], object], line: str) -> None:
    spoil(root)
    assert any(line in told for told in _check(root)["inconsistencies"]["first"])


def test_ground_truth_alone_can_be_checked(root: Path) -> None:
    (root / FRAMES).rename(root.parent / "away")
    manifest = _check(root)
    assert manifest["inconsistencies"]["first"] == [
        f"{root / FRAMES}: no frames; only detections made elsewhere can be evaluated"
    ]
    assert manifest["splits"]["test"]["boxes"] == 3


def test_unknown_sequences_are_noted(root: Path) -> None:
    for path in (root / GT).glob("M0101*"):
        path.rename(path.with_name(path.name.replace("M0101", "mine")))
    (root / FRAMES / "M0101").rename(root / FRAMES / "mine")
    manifest = _check(root)
    assert manifest["inconsistencies"]["count"] == 0
    assert "mine: not one of the 50 official sequences" in manifest["notes"]["first"]
    assert manifest["splits"][""]["frames"] == 4


def test_missing_ground_truth_is_refused(root: Path) -> None:
    for path in (root / GT).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"GT: holds no <sequence>_gt_whole\.txt"):
        _check(root)
    (root / GT).rmdir()
    with pytest.raises(UserError, match=r"GT: no such folder; data\.uavdt\.ground_truth needs it"):
        _check(root)


@pytest.mark.real
def test_real_sample(real_data: Path, tmp_path: Path) -> None:
    manifest = check_data(UavdtSettings(root=str(real_data / "uavdt")), tmp_path / "out")[0]
    assert [line.partition(": ")[2] for line in manifest["inconsistencies"]["first"]] == [
        "no frames; only detections made elsewhere can be evaluated"
    ]
    test, train = manifest["splits"]["test"], manifest["splits"]["train"]
    # wc -l of the files
    assert (test["sequences"], test["boxes"], test["ignore_boxes"]) == (2, 5458 + 790, 94 + 265)
    assert (train["sequences"], train["boxes"], train["ignore_boxes"]) == (1, 1062, 0)
    folder = real_data / "uavdt" / GT
    for name in ("M0205", "M0208"):
        table = read_ground_truth(folder / f"{name}_gt_whole.txt")
        assert table["frame"].max() == TEST_LENGTHS[name]
        theirs = pd.read_csv(folder / f"{name}_gt_whole.txt", header=None, names=list(COLUMNS))
        np.testing.assert_array_equal(table.to_numpy(), theirs.to_numpy())

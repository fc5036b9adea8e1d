"""manifest.revision: the check's rule runs again exactly when the content changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flsl.config.data import DavisDataSettings, ImageFolderSettings
from flsl.data import files
from flsl.data.check import check_data
from flsl.data.integrity import Inspection
from flsl.data.manifest import load_manifest
from flsl.data.revision import revision


def _image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


def _settings(root: Path, watch: str = "files") -> ImageFolderSettings:
    return ImageFolderSettings(root=str(root), watch=watch)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        _image(tmp_path / "data" / ("train", "val")[index % 2] / "cat" / f"{index}.png", index)
    return tmp_path / "data"


@pytest.fixture
def out(root: Path, tmp_path: Path) -> Path:
    """A folder with the manifest of a first check, as the workflow makes it."""
    out = tmp_path / "out"
    check_data(_settings(root), out, revision(_settings(root), out))
    return out


def _state(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def _flip(path: Path) -> None:
    """Change a byte, not the size."""
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)


def test_first_without_a_manifest_and_with_an_unchanged_one(
    root: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert revision(_settings(root), out) == "first"
    assert not out.exists()
    check_data(_settings(root), out, "first")
    reads.clear()
    state = _state(out)
    # of a million unchanged files not even the table's rows are read
    monkeypatch.setattr("flsl.data.revision.read_table", None)
    for watch in ("files", "folders", "off"):
        assert revision(_settings(root, watch), out) == "first"
    assert reads == []
    assert _state(out) == state


def test_touched_files_keep_the_revision_and_are_read_once(root: Path, out: Path, reads: list[str]) -> None:
    manifest = (out / "manifest.json").stat().st_mtime_ns
    os.utime(root / "train" / "cat" / "0.png")
    reads.clear()
    for _ in range(3):
        assert revision(_settings(root), out) == "first"
    assert reads == ["0.png"]
    assert (out / "manifest.json").stat().st_mtime_ns == manifest
    check_data(_settings(root), out)
    assert reads == ["0.png"]


def test_reading_many_files_is_shown(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(root.rglob("*.png"))
    monkeypatch.setattr("flsl.data.revision._MANY", 3)
    for count, told in ((2, ""), (3, f"{root}: reading what has changed: 6/6")):
        for path in paths[:count]:
            os.utime(path)
        capfd.readouterr()
        assert revision(_settings(root), out) == "first"
        err = capfd.readouterr().err
        assert err.startswith(told) if told else err == ""


@pytest.mark.parametrize("change", ["bytes", "delete", "add", "rename"])
def test_changed_content_is_a_new_revision_once(root: Path, out: Path, reads: list[str], change: str) -> None:
    victim = root / "val" / "cat" / "3.png"
    if change == "bytes":
        _flip(victim)
    elif change == "delete":
        victim.unlink()
    elif change == "add":
        _image(victim.with_name("new.png"), 50)
    else:
        victim.rename(victim.with_name("other.png"))
    reads.clear()
    new = revision(_settings(root), out)
    assert new != "first"
    assert revision(_settings(root), out) == new  # also before the check has run: every job asks
    assert len(reads) <= 1  # what the first look read, the others and the check know
    manifest, written = check_data(_settings(root), out, new)
    assert written
    assert manifest["revision"] == new == manifest["content_sha256"][:16]
    assert len(reads) <= 1
    for watch in ("files", "folders", "off"):
        assert revision(_settings(root, watch), out) == new
    # a check by hand keeps it
    check_data(_settings(root), out)
    assert load_manifest(out)["revision"] == new


def test_going_back_is_a_change_too(root: Path, out: Path) -> None:
    victim = root / "train" / "cat" / "0.png"
    _flip(victim)
    second = revision(_settings(root), out)
    check_data(_settings(root), out, second)
    _flip(victim)
    third = revision(_settings(root), out)
    assert len({"first", second, third}) == 3


def test_reverting_before_the_check_ran_changes_nothing(root: Path, out: Path) -> None:
    _flip(root / "train" / "cat" / "0.png")
    assert revision(_settings(root), out) != "first"
    _flip(root / "train" / "cat" / "0.png")
    assert revision(_settings(root), out) == "first"


def test_content_that_returns_to_the_stored_revisions_own_is_still_told(root: Path, out: Path) -> None:
    victim = root / "train" / "cat" / "0.png"
    _flip(victim)
    stored = revision(_settings(root), out)
    check_data(_settings(root), out, stored)
    _flip(victim)
    check_data(_settings(root), out)  # by hand: other content under the old revision
    _flip(victim)
    assert revision(_settings(root), out) != stored


def test_watching_folders_sees_names_not_bytes(root: Path, out: Path, reads: list[str]) -> None:
    reads.clear()
    _flip(root / "train" / "cat" / "0.png")
    assert revision(_settings(root, "folders"), out) == "first"
    assert reads == []
    _image(root / "train" / "cat" / "new.png", 9)
    assert revision(_settings(root, "folders"), out) not in ("first", "")
    (root / "train" / "cat" / "new.png").unlink()
    _flip(root / "train" / "cat" / "0.png")
    assert revision(_settings(root, "folders"), out) == "first"  # looked at, found equal, and remembered
    reads.clear()
    assert revision(_settings(root, "folders"), out) == "first"
    assert reads == []


def test_what_could_not_be_read_is_tried_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", files.inspect

    def inspect(path: Path, *args: Any) -> Inspection:
        found = real(path, *args)
        return found._replace(digest="", status="cannot be read (Permission denied)") if path.name == "0.png" else found

    with monkeypatch.context() as patch:
        patch.setattr(files, "inspect", inspect)
        check_data(_settings(root), out, "first")
        state = _state(out)
        assert revision(_settings(root), out) == "first"
        assert _state(out) == state
    # permissions are no part of a file's size and time
    allowed = revision(_settings(root), out)
    assert allowed != "first"
    assert check_data(_settings(root), out, allowed)[0]["quarantined"]["count"] == 0
    assert revision(_settings(root), out) == allowed


def test_watching_is_off_when_it_is_off(root: Path, out: Path) -> None:
    (root / "train" / "cat" / "0.png").unlink()
    assert revision(_settings(root, "off"), out) == "first"


def test_a_missing_root_keeps_the_revision_a_missing_split_does_not(root: Path, out: Path) -> None:
    root.rename(root.with_name("unmounted"))
    assert revision(_settings(root), out) == "first"
    root.with_name("unmounted").rename(root)
    (root / "val").rename(root / "gone")
    assert revision(_settings(root), out) != "first"


def test_another_root_is_left_to_the_check(root: Path, out: Path, reads: list[str]) -> None:
    other = root.rename(root.with_name("other"))
    os.utime(other / "train" / "cat" / "0.png")
    reads.clear()
    assert revision(_settings(other), out) == "first"
    assert reads == []
    check_data(_settings(other), out, "first")
    assert len(reads) == 6


@pytest.mark.parametrize("name", ["manifest.json", "files.csv"])
@pytest.mark.parametrize("damage", ["remove", "garble"])
def test_a_damaged_check_runs_again_or_costs_nothing(root: Path, out: Path, name: str, damage: str) -> None:
    (out / name).unlink() if damage == "remove" else (out / name).write_text("{garbage")
    os.utime(root / "train" / "cat" / "0.png")
    asked = revision(_settings(root), out)
    # without a manifest it is as before the first check: the rule's output is missing, so that it runs
    assert (asked == "first") == (name == "manifest.json" and damage == "remove")
    assert revision(_settings(root), out) == asked
    check_data(_settings(root), out, asked)
    assert revision(_settings(root), out) == asked


def test_a_missing_files_csv_is_noticed_without_any_other_change(root: Path, out: Path) -> None:
    (out / "files.csv").unlink()
    assert revision(_settings(root), out) != "first"


def test_a_folder_that_cannot_be_written_costs_no_more_than_time(
    root: Path, out: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    os.utime(root / "train" / "cat" / "0.png")
    reads.clear()
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    for _ in range(2):
        assert revision(_settings(root), out) == "first"
    assert reads == ["0.png"]  # noted in the part file


def test_touching_keeps_splits_that_only_the_check_knows(tmp_path: Path) -> None:
    root, out = tmp_path / "davis", tmp_path / "out"
    for number in range(3):
        for folder, name in (("JPEGImages", f"{number:05d}.jpg"), ("Annotations", f"{number:05d}.png")):
            path = root / folder / "480p" / "bear" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(9, dtype=np.uint8), "L" if folder == "JPEGImages" else "P").save(path)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("bear\n")
    settings = DavisDataSettings(root=str(root))
    check_data(settings, out)
    before = [row._replace(mtime_ns=0) for row in files.read_rows(out / "files.csv")]
    assert {row.split for row in before} == {"val", ""}
    os.utime(root / "Annotations" / "480p" / "bear" / "00001.png")
    assert revision(settings, out) == "first"
    assert [row._replace(mtime_ns=0) for row in files.read_rows(out / "files.csv")] == before

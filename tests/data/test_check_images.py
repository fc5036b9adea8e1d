"""`flsl data check images`: what is listed, what is quarantined, what is refused, and what a second check reads."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from flsl.cli import main
from flsl.config.data import ImageFolderSettings
from flsl.data import files, integrity, listing
from flsl.data.check import check_data
from flsl.data.files import FILES, Row, read_rows, write_rows
from flsl.data.images import ImageSet, Strings
from flsl.data.manifest import load_manifest
from flsl.runtime.errors import UserError


def _image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three training images and a validation image each."""
    root = tmp_path / "data"
    for index, name in enumerate(("cat", "dog")):
        for number in range(3):
            _image(root / "train" / name / f"{number}.JPEG", 10 * index + number)
        _image(root / "val" / name / "v.JPEG", 10 * index + 9)
    return root


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened since the list was last cleared."""
    opened: list[str] = []
    real = integrity.inspect

    def noted(path: Path, *args: Any) -> integrity.Inspection:
        opened.append(path.name)
        return real(path, *args)

    monkeypatch.setattr(files, "inspect", noted)
    return opened


def _check(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    changes = {name: options.pop(name) for name in ("train", "val", "boxes") if name in options}
    return check_data(ImageFolderSettings(root=str(root), **changes), out, **options)[0]


def _quarantined(manifest: dict[str, Any]) -> dict[str, str]:
    assert manifest["quarantined"]["count"] == len(manifest["quarantined"]["first"])
    return {entry["path"]: entry["reason"] for entry in manifest["quarantined"]["first"]}


def test_manifest_says_what_there_is(root: Path, tmp_path: Path) -> None:
    _image(root / "train" / "dog" / "wide.JPEG", 77, (100, 16))
    manifest = _check(root, tmp_path / "out")
    assert manifest == load_manifest(tmp_path / "out")
    assert manifest["kind"] == "images"
    assert manifest["root"] == str(root)
    assert manifest["revision"] == "first"
    assert manifest["files"] == 9
    assert manifest["bytes"] == sum(path.stat().st_size for path in root.rglob("*.JPEG"))
    assert manifest["splits"]["train"] == {"files": 7, "ok": 7, "images": 7, "folder": "train", "classes": 2}
    assert manifest["classes"] == {"count": 2, "listed": {"cat": {"train": 3, "val": 1}, "dog": {"train": 4, "val": 1}}}
    assert manifest["image_sizes"]["min"] == [20, 16]
    assert manifest["image_sizes"]["max"] == [100, 16]
    assert manifest["image_sizes"]["most_common"][0] == {"size": [20, 16], "images": 8}
    with (tmp_path / "out" / "files.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.JPEG"))
    assert [row["path"] for row in rows] == expected
    first = root / rows[0]["path"]
    assert rows[0]["digest"] == hashlib.blake2b(first.read_bytes(), digest_size=8).hexdigest()
    assert int(rows[0]["mtime_ns"]) == first.stat().st_mtime_ns
    # the content hash, written the slow way
    text = b"".join(f"{row['path']}\0{row['digest']}\n".encode() for row in rows)
    assert manifest["content_sha256"] == hashlib.sha256(text).hexdigest()


def test_bad_files_are_quarantined_and_left_out_of_the_image_set(root: Path, tmp_path: Path) -> None:
    cat = root / "train" / "cat"
    (cat / "empty.JPEG").touch()
    (cat / "text.JPEG").write_text("hello")
    (cat / "cut.JPEG").write_bytes((cat / "0.JPEG").read_bytes()[:-100])
    (cat / "readme.txt").write_text("a note")
    (cat / "archive").write_text("x")
    (cat / "lost.JPEG").symlink_to(tmp_path / "nowhere.JPEG")
    (cat / "loop.JPEG").symlink_to(cat / "loop.JPEG")
    (cat / "unreadable.JPEG").symlink_to("/proc/self/mem")  # a file that opens and refuses to be read, also to root
    (cat / "round").symlink_to(root / "train", target_is_directory=True)
    os.mkfifo(cat / "pipe.JPEG")
    # ignored: hidden, and what desktops leave behind
    for name in (".DS_Store", "Thumbs.db", "._0.JPEG", "desktop.ini"):
        (cat / name).write_text("x")
    (cat / ".cache").mkdir()
    (cat / ".cache" / "x.JPEG").write_text("x")
    manifest = _check(root, tmp_path / "out")
    found = {path.removeprefix("train/cat/"): reason for path, reason in _quarantined(manifest).items()}
    assert found == {
        "empty.JPEG": "empty file",
        "text.JPEG": "not an image of a known kind",
        "cut.JPEG": "truncated (no end-of-image marker)",
        "readme.txt": "not an image (its name ends in .txt)",
        "archive": "not an image (its name has no ending)",
        "lost.JPEG": "a link to nothing",
        "loop.JPEG": "cannot be read (Too many levels of symbolic links)",
        "unreadable.JPEG": "cannot be read (Input/output error)",
        "round": "a link to a folder around it",
        "pipe.JPEG": "not a regular file",
    }
    assert manifest["links"] == 4
    assert manifest["splits"]["train"]["ok"] == 6
    assert list(ImageSet.from_manifest(tmp_path / "out", "train").paths) == [
        f"train/{name}/{number}.JPEG" for name in ("cat", "dog") for number in range(3)
    ]


def test_a_folder_that_cannot_be_listed_is_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: Path) -> Any:
        if path == root / "train" / "dog":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    manifest = _check(root, tmp_path / "out")
    assert _quarantined(manifest) == {"train/dog": "folder cannot be listed (Permission denied)"}
    assert manifest["splits"]["train"]["ok"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_permissions_are_quarantined(root: Path, tmp_path: Path) -> None:
    (root / "train" / "cat" / "0.JPEG").chmod(0)
    (root / "train" / "dog").chmod(0)
    manifest = _check(root, tmp_path / "out")
    assert _quarantined(manifest) == {
        "train/cat/0.JPEG": "cannot be read (Permission denied)",
        "train/dog": "folder cannot be listed (Permission denied)",
    }
    (root / "train" / "dog").chmod(0o755)


def test_odd_names_survive(root: Path, tmp_path: Path) -> None:
    names = [
        "a b.JPEG",
        "carpenter's kit.JPEG",
        'say "hi", ok.JPEG',
        "Übung 画像 🐶.JPEG",
        "two\nlines\r.JPEG",
        " x.JPEG",
    ]
    for seed, name in enumerate(names):
        _image(root / "train" / "a, class" / name, 50 + seed)
    undecodable = os.fsencode(root / "train" / "a, class") + b"/\xff\xfe.JPEG"
    Path(os.fsdecode(undecodable)).write_bytes((root / "train" / "cat" / "0.JPEG").read_bytes())
    (root / "train" / "a, class" / "bad\n.JPEG").touch()
    _check(root, tmp_path / "out")
    manifest = _check(root, tmp_path / "out")  # the second time out of files.csv
    assert _quarantined(manifest) == {"train/a, class/bad\\n.JPEG": "empty file"}
    images = ImageSet.from_manifest(tmp_path / "out", "train")
    found = {Path(path).name for path in images.paths if "a, class" in path}
    assert found == {*names, os.fsdecode(b"\xff\xfe.JPEG")}
    assert all(images.path(i).is_file() for i in range(len(images)))
    assert any("\\xff\\xfe" in note for note in manifest["notes"]["first"])  # it is a duplicate, told printably


def test_wrongly_named_formats_and_duplicates_are_notes(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(root / "train" / "cat" / "png.JPEG", "PNG")
    (root / "train" / "dog" / "twin.JPEG").write_bytes((root / "train" / "cat" / "0.JPEG").read_bytes())
    (root / "val" / "dog" / "leak.JPEG").write_bytes((root / "train" / "cat" / "1.JPEG").read_bytes())
    manifest = _check(root, tmp_path / "out")
    assert manifest["quarantined"]["count"] == manifest["inconsistencies"]["count"] == 0
    named, across, within = manifest["notes"]["first"]
    assert named.startswith("1 file(s) are named as another format") and "png.JPEG is a PNG" in named  # noqa: PT018
    assert across.startswith("1 image(s) have the same bytes as another of another split")
    assert within.startswith("1 image(s) have the same bytes as another of their split")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda d: (d / "train" / "owl").mkdir(), "1 class(es) of train have no readable image: owl"),
        (
            lambda d: (d / "train" / "cat" / "0.JPEG").rename(d / "train" / "0.JPEG"),
            "1 image(s) of train lie in no class folder",
        ),
        (lambda d: (d / "val" / "dog").rename(d / "val" / "owl"), "1 class(es) of val have no image in train: owl"),
        (lambda d: (d / "val" / "dog").rename(d / "val" / "owl"), "1 class(es) of train have no image in val: dog"),
        (lambda d: (d / "val" / "dog" / "v.JPEG").write_bytes(b""), "1 class(es) of val have no readable image: dog"),
    ],
)
def test_inconsistent_folders_are_told(root: Path, tmp_path: Path, spoil: Callable[[Path], object], line: str) -> None:
    spoil(root)
    assert any(line in told for told in _check(root, tmp_path / "out")["inconsistencies"]["first"])


def test_labels_are_refused_where_they_mislead(root: Path, tmp_path: Path) -> None:
    _image(root / "val" / "owl" / "v.JPEG", 1)
    _check(root, tmp_path / "out")
    assert len(ImageSet.from_manifest(tmp_path / "out", "train")) == 6
    with pytest.raises(UserError, match=r"val has 1 class\(es\) without a readable training image \(owl\)"):
        ImageSet.from_manifest(tmp_path / "out", "train", labelled=True)
    (root / "val" / "owl" / "v.JPEG").rename(root / "val" / "v.JPEG")
    (root / "val" / "owl").rmdir()
    _check(root, tmp_path / "out")
    assert ImageSet.from_manifest(tmp_path / "out", "val").labels.tolist() == [0, 1, -1]
    with pytest.raises(UserError, match="images of val lie in no class folder"):
        ImageSet.from_manifest(tmp_path / "out", "val", labelled=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"val": "validation"}, "validation: no such folder; data.images.val needs it; set data.images.val=null if"),
        ({"train": "nothing"}, "nothing: no such folder; data.images.train needs it"),
        ({"train": "../x"}, "data.images.train: the path '../x' leaves"),
        ({"train": "void"}, "void: holds no images; data.images.train is expected to hold <class>/<image>"),
        ({"train": "rotten"}, "rotten: none of its 2 file(s) is a readable image; rotten/x/a.jpg: empty file"),
        ({"boxes": "boxes.csv"}, "boxes.csv: no such file; data.images.boxes needs it"),
    ],
)
def test_data_sets_that_cannot_be_used_are_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], line: str
) -> None:
    (root / "void").mkdir()
    (root / "rotten" / "x").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (root / "rotten" / "x" / name).touch()
    out = tmp_path / "out"
    overrides = [f"data.images.{name}={value}" for name, value in change.items()]
    assert main(["data", "check", "images", "--out", str(out), "--root", str(root), *overrides]) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("flsl: error")]
    assert len(errors) == 1
    assert line in errors[0]
    assert not (out / "manifest.json").exists()


def test_a_missing_root_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such folder; data\.images\.root"):
        _check(tmp_path / "gone", tmp_path / "out")


def test_command_line_prints_a_summary_and_says_whether_anything_changed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train" / "cat" / "empty.JPEG").touch()
    command = ["data", "check", "images", "--out", str(tmp_path / "out"), "--root", str(root), "--jobs", "1"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "train: 7 files, 6 ok" in printed.out
    assert printed.out.endswith("manifest.json: written\n")
    assert "quarantined train/cat/empty.JPEG: empty file" in printed.err
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("manifest.json: unchanged\n")
    assert main([*command, "--jobs", "0"]) == 2
    config = tmp_path / "c.yaml"
    config.write_text(f"project: p\ndata: {{images: {{root: {json.dumps(str(root))}, val: null}}}}\n")
    assert main(["data", "check", "images", "--out", str(tmp_path / "o2"), "--config", str(config)]) == 0
    assert main(["data", "check", "coco", "--out", str(tmp_path / "o3"), "--config", str(config)]) == 2
    assert "data.coco: not set; give --root DIR" in capsys.readouterr().err


def test_a_second_check_reads_nothing_and_rewrites_nothing(root: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "out"
    _check(root, out)
    assert len(reads) == 8
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert before.keys() == {"manifest.json", "files.csv", "folders.json"}
    reads.clear()
    _check(root, out)
    assert reads == []
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_touched_files_are_read_again_but_the_manifest_stays(root: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "out"
    _check(root, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    os.utime(root / "train" / "cat" / "1.JPEG")
    reads.clear()
    _check(root, out)
    assert reads == ["1.JPEG"]
    assert (out / "manifest.json").stat().st_mtime_ns == before
    reads.clear()
    _check(root, out)
    assert reads == []  # files.csv has learnt the new time


@pytest.mark.parametrize("change", ["bytes", "delete", "rename", "add", "other class"])
def test_content_hash_sees_every_change(root: Path, tmp_path: Path, reads: list[str], change: str) -> None:
    out = tmp_path / "out"
    old = _check(root, out)
    victim = root / "train" / "cat" / "1.JPEG"
    reads.clear()
    if change == "bytes":  # of equal number
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif change == "delete":
        victim.unlink()
    elif change == "rename":
        victim.rename(victim.with_name("other.JPEG"))
    elif change == "add":
        _image(victim.with_name("new.JPEG"), 99)
    else:
        victim.rename(root / "train" / "dog" / "moved.JPEG")
    new = _check(root, out)
    assert new["content_sha256"] != old["content_sha256"]
    assert reads == {"bytes": ["1.JPEG"], "delete": [], "rename": ["other.JPEG"], "add": ["new.JPEG"]}.get(
        change, ["moved.JPEG"]
    )
    assert load_manifest(out)["content_sha256"] == new["content_sha256"]
    # and it is that of a check from nothing
    assert _check(root, tmp_path / "fresh")["content_sha256"] == new["content_sha256"]


def test_fresh_and_decode_read_every_file(root: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "out"
    _check(root, out)
    for option in ("fresh", "decode"):
        reads.clear()
        _check(root, out, **{option: True})
        assert len(reads) == 8


def test_what_decoding_found_is_kept_until_the_bytes_change(root: Path, tmp_path: Path) -> None:
    victim = root / "train" / "cat" / "1.JPEG"
    data = victim.read_bytes()
    table = data.index(b"\xff\xc4")
    # a Huffman table that claims more codes than there are: the end is whole, yet nothing can be decoded
    victim.write_bytes(data[: table + 5] + b"\xff" * 16 + data[table + 21 :])
    out = tmp_path / "out"
    assert _check(root, out)["quarantined"]["count"] == 0
    found = _quarantined(_check(root, out, decode=True))
    assert list(found) == ["train/cat/1.JPEG"]
    assert "cannot be decoded" in found["train/cat/1.JPEG"]
    os.utime(victim)
    assert _quarantined(_check(root, out)) == found
    victim.write_bytes(data)
    assert _quarantined(_check(root, out)) == {}


def test_another_root_is_not_taken_for_the_old_one(root: Path, tmp_path: Path, reads: list[str]) -> None:
    _check(root, tmp_path / "out")
    other = tmp_path / "other"
    root.rename(other)
    reads.clear()
    assert _check(other, tmp_path / "out")["root"] == str(other)
    assert len(reads) == 8


def test_a_killed_check_goes_on_where_it_was(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, opened = tmp_path / "out", integrity.inspect, []

    def dies(path: Path, *args: Any) -> integrity.Inspection:
        if len(opened) == 5:
            raise KeyboardInterrupt
        opened.append(path.name)
        return real(path, *args)

    monkeypatch.setattr(files, "_CHUNK", 2)
    monkeypatch.setattr(files, "inspect", dies)
    with pytest.raises(KeyboardInterrupt):
        _check(root, out, jobs=1)
    (part,) = out.glob("files.part.*.csv")
    with part.open("a") as stream:
        stream.write("train/cat/half a li")
    opened.clear()
    opened.extend([""] * 6)
    manifest = _check(root, out, jobs=1)
    assert len(opened) == 6 + 4  # two chunks of two were finished before
    assert not list(out.glob("files.part.*"))
    assert manifest["content_sha256"] == _check(root, tmp_path / "fresh")["content_sha256"]


@pytest.mark.parametrize("damage", [b"", b"\xff\x00rubbish", b"path,split\r\na,b\r\n"])
def test_a_damaged_files_csv_is_made_anew(root: Path, tmp_path: Path, damage: bytes) -> None:
    out = tmp_path / "out"
    _check(root, out)
    whole = (out / FILES).read_bytes()
    (out / FILES).write_bytes(damage)
    with pytest.raises(UserError, match=r"files\.csv: damaged"):
        ImageSet.from_manifest(out, "train")
    _check(root, out)
    assert (out / FILES).read_bytes() == whole


def test_files_csv_that_is_not_the_manifests_is_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _check(root, out)
    write_rows(out, list(read_rows(out / FILES))[:-1])
    with pytest.raises(UserError, match=r"7 files, but manifest\.json says 8"):
        ImageSet.from_manifest(out, "val")


def test_processes_and_threads_find_the_same(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "train" / "cat" / "empty.JPEG").touch()
    one = _check(root, tmp_path / "one", jobs=1)
    threads = _check(root, tmp_path / "threads", jobs=3)
    monkeypatch.setattr(files, "_WORTH_PROCESSES", 1)
    processes = _check(root, tmp_path / "processes", jobs=2)
    assert one == threads == processes


def test_a_read_only_data_set_stays_untouched(root: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode) for path in [root, *root.rglob("*")]}

    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    _check(root, tmp_path / "out")
    assert state() == before
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_the_manifest_stays_small(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number in range(2000):
        folder = root / "train" / f"a class with quite a long name, number {number:07d}"
        folder.mkdir(parents=True)
        (folder / ("x" * 200 + ".JPEG")).touch()
    _image(root / "train" / "a" / "ok.JPEG")
    manifest = _check(root, tmp_path / "out", val=None)
    assert manifest["quarantined"]["count"] == 2000
    assert len(manifest["quarantined"]["first"]) == 100
    assert (tmp_path / "out" / "manifest.json").stat().st_size < 500_000


# ---- ImageSet


def test_scan_is_torchvisions_image_folder(root: Path) -> None:
    (root / "train" / "cat" / "notes.txt").write_text("x")
    _image(root / "train" / "dog" / "deeper" / "z.png", 5)
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
    _check(root, tmp_path / "out")
    train, val = (ImageSet.from_manifest(tmp_path / "out", split) for split in ("train", "val"))
    scanned = ImageSet.scan(root, "train")
    assert list(train.paths) == list(scanned.paths)
    assert train.labels.tolist() == scanned.labels.tolist()
    assert val.class_names == train.class_names == ("cat", "dog")
    assert val.labels.tolist() == [1]
    with pytest.raises(UserError, match=r"has no split 'tests'; there are train, val"):
        ImageSet.from_manifest(tmp_path / "out", "tests")


def test_a_split_may_be_named_by_its_folder(root: Path, tmp_path: Path) -> None:
    (root / "val").rename(root / "test")
    _check(root, tmp_path / "out", val="test")
    by_role, by_folder = (ImageSet.from_manifest(tmp_path / "out", name) for name in ("val", "test"))
    assert list(by_role.paths) == list(by_folder.paths) == ["test/cat/v.JPEG", "test/dog/v.JPEG"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
@settings(max_examples=100, deadline=None)
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


@given(st.lists(st.tuples(_NAMES, _NAMES, st.integers(0, 2**63)), max_size=5))
@settings(max_examples=100, deadline=None)
def test_files_csv_gives_back_any_name(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    made = [Row(path, "train", name, 1, 2, "RGB", "JPEG", 3, time, "0" * 16, "ok", "") for path, name, time in rows]
    write_rows(folder, made)
    assert list(read_rows(folder / FILES)) == made


def test_manifest_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, flsl.data.manifest; print({'torch', 'pandas', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- real samples


@pytest.mark.real
def test_real_imagenet_sample_has_no_val(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "imagenet"
    with pytest.raises(UserError, match=r"val: no such folder; .*set data\.images\.val=null"):
        _check(root, tmp_path / "out")
    manifest = _check(root, tmp_path / "out", val=None, decode=True)
    assert manifest["quarantined"]["count"] == manifest["inconsistencies"]["count"] == 0
    assert manifest["classes"]["count"] == manifest["files"] == 110
    assert manifest["modes"] == {"L": 4, "RGB": 106}
    assert "train/n02966687/n02966687_carpenter's_kit.JPEG" in ImageSet.from_manifest(tmp_path / "out", "train").paths


@pytest.mark.real
def test_real_cifar_sample(real_data: Path, tmp_path: Path) -> None:
    manifest = _check(real_data / "cifar10", tmp_path / "out", val="test", decode=True)
    assert manifest["quarantined"]["count"] == manifest["inconsistencies"]["count"] == 0
    assert {name: split["ok"] for name, split in manifest["splits"].items()} == {"train": 1000, "val": 400}
    assert all(counts == {"train": 100, "val": 40} for counts in manifest["classes"]["listed"].values())
    for split, folder in (("train", "train"), ("val", "test")):
        ours, theirs = ImageSet.from_manifest(tmp_path / "out", split), ImageFolder(str(real_data / "cifar10" / folder))
        assert list(zip(map(str, map(ours.path, range(len(ours)))), ours.labels, strict=True)) == theirs.samples

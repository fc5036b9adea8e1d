"""`flsl data check images`: what is listed, what is quarantined, what is refused, and what a second check reads."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_folder import check_images, make_image, quarantined
from PIL import Image
from torchvision.datasets import ImageFolder

from flsl.cli import main
from flsl.config.data import ImageFolderSettings
from flsl.data import files, listing
from flsl.data.check import check_data
from flsl.data.images import ImageSet
from flsl.data.manifest import load_manifest
from flsl.data.pixels import decode_pixels
from flsl.data.revision import revision
from flsl.runtime.errors import UserError


def test_manifest_says_what_there_is(root: Path, tmp_path: Path) -> None:
    make_image(root / "train" / "dog" / "wide.JPEG", 77, (100, 16))
    manifest = check_images(root, tmp_path / "out")
    assert manifest == load_manifest(tmp_path / "out")
    assert manifest["kind"] == "images"
    assert manifest["root"] == str(root)
    assert manifest["revision"] == "first"
    assert manifest["files"] == 9
    assert manifest["bytes"] == sum(path.stat().st_size for path in root.rglob("*.JPEG"))
    train = manifest["splits"]["train"]
    trained_on = train.pop("content_sha256")
    assert train == {"files": 7, "ok": 7, "images": 7, "folder": "train", "classes": 2}
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
    text = b"".join(f"{row['path']}\0{row['digest']}\n".encode() for row in rows if row["split"] == "train")
    assert trained_on == hashlib.sha256(text).hexdigest()


def _damage(path: Path) -> None:
    """Overwrite a part in the middle of a JPEG's pixels."""
    make_image(path, 5, (200, 160))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 512] = bytes(range(256)) * 2
    path.write_bytes(data)
    with pytest.raises(UserError):
        decode_pixels(bytes(data), path)


def test_damage_in_the_middle_is_found_where_every_image_is_decoded(root: Path, tmp_path: Path) -> None:
    _damage(root / "train/cat/damaged.JPEG")
    out = tmp_path / "out"
    assert quarantined(check_images(root, out)) == {}
    # also after a check that did not look so closely, and from then on without reading the files again
    for _ in range(2):
        found = quarantined(check_data(ImageFolderSettings(root=str(root), decode=True), out)[0])
        assert list(found) == ["train/cat/damaged.JPEG"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a full disk needs root")
def test_a_full_disk_is_one_line(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small-disk"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", out], check=False).returncode:
        pytest.skip("this sandbox does not mount file systems")
    try:
        (out / "filling").write_bytes(bytes(4096))
        assert main(["data", "check", "images", "--root", str(root), "--out", str(out)]) == 2
        error = capfd.readouterr().err
        assert "cannot be written: the disk is full; free some space" in error.splitlines()[-1]
        assert "Traceback" not in error
        assert not (out / "manifest.json").exists()
    finally:
        subprocess.run(["umount", out], check=True)


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
    for name in (".cache", "@eaDir"):  # the latter of a network storage, with a thumbnail of each image
        (cat / name / "0.JPEG").mkdir(parents=True)
        make_image(cat / name / "0.JPEG" / "SYNOPHOTO_THUMB_M.jpg")
    manifest = check_images(root, tmp_path / "out")
    found = {path.removeprefix("train/cat/"): reason for path, reason in quarantined(manifest).items()}
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
    manifest = check_images(root, tmp_path / "out")
    assert quarantined(manifest) == {"train/dog": "folder cannot be listed (Permission denied)"}
    assert manifest["splits"]["train"]["ok"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_permissions_are_quarantined(root: Path, tmp_path: Path) -> None:
    (root / "train" / "cat" / "0.JPEG").chmod(0)
    (root / "train" / "dog").chmod(0)
    manifest = check_images(root, tmp_path / "out")
    assert quarantined(manifest) == {
        "train/cat/0.JPEG": "cannot be read (Permission denied)",
        "train/dog": "folder cannot be listed (Permission denied)",
    }
    (root / "train" / "dog").chmod(0o755)


@pytest.mark.parametrize("closed", ["data", "data/train"])
def test_a_folder_that_may_not_be_entered_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    check_images(root, tmp_path / "out")
    real = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if path.is_relative_to(tmp_path / closed):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match=rf"{closed}: cannot be read \(Permission denied\); .*data.images"):
        check_images(root, tmp_path / "new")
    # the workflow's look leaves it to the check
    assert revision(ImageFolderSettings(root=str(root)), tmp_path / "out") == "first"


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
        make_image(root / "train" / "a, class" / name, 50 + seed)
    undecodable = os.fsencode(root / "train" / "a, class") + b"/\xff\xfe.JPEG"
    Path(os.fsdecode(undecodable)).write_bytes((root / "train" / "cat" / "0.JPEG").read_bytes())
    (root / "train" / "a, class" / "bad\n.JPEG").touch()
    check_images(root, tmp_path / "out")
    manifest = check_images(root, tmp_path / "out")  # the second time out of files.csv
    assert quarantined(manifest) == {"train/a, class/bad\\n.JPEG": "empty file"}
    images = ImageSet.from_manifest(tmp_path / "out", "train")
    found = {Path(path).name for path in images.paths if "a, class" in path}
    assert found == {*names, os.fsdecode(b"\xff\xfe.JPEG")}
    assert all(images.path(i).is_file() for i in range(len(images)))
    assert any("\\xff\\xfe" in note for note in manifest["notes"]["first"])  # it is a duplicate, told printably


def test_wrongly_named_formats_and_duplicates_are_notes(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(root / "train" / "cat" / "png.JPEG", "PNG")
    (root / "train" / "dog" / "twin.JPEG").write_bytes((root / "train" / "cat" / "0.JPEG").read_bytes())
    (root / "val" / "dog" / "leak.JPEG").write_bytes((root / "train" / "cat" / "1.JPEG").read_bytes())
    manifest = check_images(root, tmp_path / "out")
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
    assert any(line in told for told in check_images(root, tmp_path / "out")["inconsistencies"]["first"])


def test_labels_are_refused_where_they_mislead(root: Path, tmp_path: Path) -> None:
    make_image(root / "val" / "owl" / "v.JPEG", 1)
    check_images(root, tmp_path / "out")
    assert len(ImageSet.from_manifest(tmp_path / "out", "train")) == 6
    with pytest.raises(UserError, match=r"val has 1 class\(es\) without a readable training image \(owl\)"):
        ImageSet.from_manifest(tmp_path / "out", "train", labelled=True)
    (root / "val" / "owl" / "v.JPEG").rename(root / "val" / "v.JPEG")
    (root / "val" / "owl").rmdir()
    check_images(root, tmp_path / "out")
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
        check_images(tmp_path / "gone", tmp_path / "out")


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


def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file: cannot be written: a file stands where a folder is needed"):
        check_images(root, tmp_path / "file")
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(files, "inspect", lambda *_: pytest.fail("a file was read"))
    with pytest.raises(UserError, match=r"out: no permission to write there"):
        check_images(root, tmp_path / "out")


def test_a_read_only_data_set_stays_untouched(root: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode) for path in [root, *root.rglob("*")]}

    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    check_images(root, tmp_path / "out")
    assert state() == before
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_the_manifest_stays_small(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number in range(2000):
        folder = root / "train" / f"a class with quite a long name, number {number:07d}"
        folder.mkdir(parents=True)
        (folder / ("x" * 200 + ".JPEG")).touch()
    make_image(root / "train" / "a" / "ok.JPEG")
    manifest = check_images(root, tmp_path / "out", val=None)
    assert manifest["quarantined"]["count"] == 2000
    assert len(manifest["quarantined"]["first"]) == 100
    assert (tmp_path / "out" / "manifest.json").stat().st_size < 500_000


# ---- real samples


@pytest.mark.real
def test_real_imagenet_sample_has_no_val(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "imagenet"
    with pytest.raises(UserError, match=r"val: no such folder; .*set data\.images\.val=null"):
        check_images(root, tmp_path / "out")
    manifest = check_images(root, tmp_path / "out", val=None, decode=True)
    assert manifest["quarantined"]["count"] == manifest["inconsistencies"]["count"] == 0
    assert manifest["classes"]["count"] == manifest["files"] == 110
    assert manifest["modes"] == {"L": 4, "RGB": 106}
    assert "train/n02966687/n02966687_carpenter's_kit.JPEG" in ImageSet.from_manifest(tmp_path / "out", "train").paths


@pytest.mark.real
def test_real_cifar_sample(real_data: Path, tmp_path: Path) -> None:
    manifest = check_images(real_data / "cifar10", tmp_path / "out", val="test", decode=True)
    assert manifest["quarantined"]["count"] == manifest["inconsistencies"]["count"] == 0
    assert {name: split["ok"] for name, split in manifest["splits"].items()} == {"train": 1000, "val": 400}
    assert all(counts == {"train": 100, "val": 40} for counts in manifest["classes"]["listed"].values())
    for split, folder in (("train", "train"), ("val", "test")):
        ours, theirs = ImageSet.from_manifest(tmp_path / "out", split), ImageFolder(str(real_data / "cifar10" / folder))
        assert list(zip(map(str, map(ours.path, range(len(ours)))), ours.labels, strict=True)) == theirs.samples

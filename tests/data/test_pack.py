"""The packed form: the folder's images in the folder's order, whatever happened to whoever packed or reads."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flsl.cli import main
from flsl.config.data import ImageFolderSettings
from flsl.data import packing
from flsl.data.check import check_data
from flsl.data.images import ImageSet
from flsl.data.pack import PACK
from flsl.data.packing import pack_images
from flsl.runtime.errors import UserError

LONG = "n" * 120  # longer than a plain tar header holds


def _check(place: Path) -> Path:
    check_data(ImageFolderSettings(root=str(place / "images")), place / "manifest")
    return place / "manifest"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checked folder: 14 training images of about 0.25 MB, one of which is damaged, and two others."""
    rng = np.random.default_rng(0)
    names = [f"{kind}/{number}.jpg" for kind in ("cat", "dög") for number in range(6)]
    names += [f"dög/{LONG}.jpg", os.fsdecode(b"cat/\xff.jpg")]
    for split, own in (("train", names), ("val", ["cat/v.png", "dög/v.jpg"])):
        for name in own:
            path = tmp_path / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (480, 330, 3), dtype=np.uint8)).save(path, quality=97)
    (tmp_path / "images" / "train" / "cat" / "3.jpg").write_bytes(b"damaged")
    _check(tmp_path)
    return tmp_path


def _pixels(images: ImageSet) -> list[torch.Tensor]:
    return [images.pixels(index) for index in range(len(images))]


def test_packed_images_are_the_folders_in_its_order(place: Path) -> None:
    manifest = place / "manifest"
    before = {split: ImageSet.from_manifest(manifest, split) for split in ("train", "val")}
    pixels = {split: _pixels(images) for split, images in before.items()}
    description = pack_images(manifest, place / "pack", shard_mb=1)
    assert len(description["splits"]["train"]["shards"]) > 1
    (place / "images").rename(place / "elsewhere")
    for split, images in before.items():
        packed = ImageSet.from_manifest(manifest, split)
        assert len(packed) == len(images) == len(pixels[split]) > 0
        assert list(packed.paths) == list(images.paths)
        assert packed.labels.tolist() == images.labels.tolist()
        for index, wanted in enumerate(pixels[split]):
            assert torch.equal(packed.pixels(index), wanted)
            assert torch.equal(torch.from_numpy(np.array(packed.load(index))).permute(2, 0, 1), wanted)


def test_tar_gives_the_files_back(place: Path) -> None:
    pack_images(place / "manifest", place / "pack", shard_mb=1)
    for shard in sorted((place / "pack").glob("*.tar")):
        with tarfile.open(shard) as archive:
            archive.extractall(place / "back", filter="data")
    back = {path.relative_to(place / "back"): path.read_bytes() for path in (place / "back").rglob("*.*")}
    images = {path.relative_to(place / "images"): path.read_bytes() for path in (place / "images").rglob("*.*")}
    assert images.pop(Path("train/cat/3.jpg")) == b"damaged"
    assert back == images


def test_a_killed_pack_goes_on_where_it_was(place: Path) -> None:
    pack_images(place / "manifest", place / "pack", shard_mb=1)
    files = {path.name: path.read_bytes() for path in (place / "pack").iterdir()}
    shards = sorted((place / "pack").glob("train-*.tar"))
    assert len(shards) > 2
    # killed while the third was written: no description, and half a shard under a name of its own
    (place / "pack" / PACK).unlink()
    shards[2].rename(place / "pack" / f".{shards[2].name}.abc.tmp")
    stamps = [shard.stat().st_mtime_ns for shard in shards[:2]]
    pack_images(place / "manifest", place / "pack", shard_mb=1)
    assert [shard.stat().st_mtime_ns for shard in shards[:2]] == stamps
    assert {path.name: path.read_bytes() for path in (place / "pack").iterdir()} == files


def test_a_disk_without_the_space_is_told_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"pack: the images of train need 2\.8 MiB where 1\.9 MiB are free; free some"):
        pack_images(place / "manifest", place / "pack", shard_mb=1)
    assert not list((place / "pack").glob("*.tar"))
    # what a killed call has written needs no more
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
        pack_images(place / "manifest", place / "pack", shard_mb=1)
    (place / "pack" / PACK).unlink()
    next((place / "pack").glob("train-*0.tar")).unlink()
    pack_images(place / "manifest", place / "pack", shard_mb=1)


def test_what_a_killed_pack_of_other_images_left_is_removed(place: Path) -> None:
    pack_images(place / "manifest", place / "pack", shard_mb=1)
    (place / "pack" / PACK).unlink()  # which is written last
    half = place / "pack" / ".train-00000000-1-00007.tar.abc.tmp"
    for path in (half, place / "pack" / "train-notes.txt", place / "pack" / "mine.tar"):
        path.touch()
    description = pack_images(place / "manifest", place / "pack", shard_mb=2)
    named = {shard["file"] for split in description["splits"].values() for shard in split["shards"]}
    named |= {split["index"] for split in description["splits"].values()}
    assert {path.name for path in (place / "pack").iterdir()} == named | {
        *(PACK, ".pack.lock", "train-notes.txt", "mine.tar")
    }


def test_a_pack_that_is_up_to_date_is_left_alone(place: Path) -> None:
    pack_images(place / "manifest", place / "pack")
    stamps = {path: path.stat().st_mtime_ns for path in (place / "pack").iterdir()}
    pack_images(place / "manifest", place / "pack")
    assert {path: path.stat().st_mtime_ns for path in (place / "pack").iterdir()} == stamps


def test_other_content_is_noticed_and_packed_anew(place: Path) -> None:
    pack_images(place / "manifest", place / "pack")
    old = set((place / "pack").glob("train-*"))
    kept = set((place / "pack").glob("val-*"))
    Image.new("RGB", (30, 20)).save(place / "images" / "train" / "cat" / "new.png")
    _check(place)
    with pytest.raises(UserError, match=r"holds other images of train than the manifest names; run `flsl data pack`"):
        ImageSet.from_manifest(place / "manifest", "train")
    assert len(ImageSet.from_manifest(place / "manifest", "val")) == 2
    pack_images(place / "manifest", place / "pack")
    images = ImageSet.from_manifest(place / "manifest", "train")
    assert images.pixels(list(images.paths).index("train/cat/new.png")).shape == (3, 20, 30)
    assert not any(path.exists() for path in old)
    assert set((place / "pack").glob("val-*")) == kept


def test_a_file_that_changed_since_the_check_is_not_packed(place: Path) -> None:
    path = place / "images" / "train" / "dög" / "5.jpg"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"5\.jpg: has changed since it was checked; run `flsl data check`"):
        pack_images(place / "manifest", place / "pack")
    path.unlink()
    with pytest.raises(UserError, match=r"5\.jpg: cannot be read \(No such file"):
        pack_images(place / "manifest", place / "pack")
    assert not list((place / "pack").glob("[!.]*"))
    assert not (place / "manifest" / PACK).exists()


def test_one_folder_holds_one_data_sets_pack(place: Path, tmp_path: Path) -> None:
    pack_images(place / "manifest", place / "pack")
    (place / "images").rename(place / "others")
    check_data(ImageFolderSettings(root=str(place / "others")), place / "others-manifest")
    with pytest.raises(UserError, match=r"holds a pack of .*images, not of .*others; choose another folder"):
        pack_images(place / "others-manifest", place / "pack")


def _damage(place: Path, what: str) -> None:
    pack = place / "pack"
    shard, index = next(pack.glob("train-*.tar")), next(pack.glob("train-*.npy"))
    match what:
        case "truncated shard":
            os.truncate(shard, shard.stat().st_size - 1)
        case "no shard":
            shard.unlink()
        case "no index":
            index.unlink()
        case "truncated index":
            index.write_bytes(index.read_bytes()[:40])
        case "other index":
            np.save(index, np.zeros((3, 3), np.int64))
        case "wild index":
            np.save(index, np.load(index) + np.array([0, 2**40, 0]))
        case "shard beyond":
            np.save(index, np.load(index) + np.array([99, 0, 0]))
        case "pickled index":
            np.save(index, np.array([{}]), allow_pickle=True)
        case "no pack":
            (pack / PACK).unlink()
        case "not json":
            (pack / PACK).write_text("{")
        case "no splits":
            (pack / PACK).write_text("[]")
        case "a path":
            description = json.loads((pack / PACK).read_text())
            description["splits"]["train"]["shards"][0]["file"] = "../images/train/cat/0.jpg"
            (pack / PACK).write_text(json.dumps(description))
        case "no name":
            (place / "manifest" / PACK).write_text("{}")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("truncated shard", r"\.tar: has \d+ bytes where the pack has \d+; run `flsl data pack` again"),
        ("no shard", r"\.tar: cannot be read \(No such file or directory\); run `flsl data pack` again"),
        ("no index", r"\.npy: cannot be read as the pack's index"),
        ("truncated index", r"\.npy: cannot be read as the pack's index"),
        ("other index", r"\.npy: not the index of 13 images"),
        ("wild index", r"\.npy: names places that the pack's files do not have"),
        ("shard beyond", r"\.npy: names places that the pack's files do not have"),
        ("pickled index", r"\.npy: cannot be read as the pack's index"),
        ("no pack", r"pack\.json: no such file; the pack that `flsl data pack` writes is expected there"),
        ("not json", r"pack\.json: not valid JSON"),
        ("no splits", r"pack\.json: does not describe a pack"),
        ("a path", r"'\.\./images/train/cat/0\.jpg' is no plain name of something right in"),
        ("no name", r"manifest/pack\.json: names no pack"),
    ],
)
def test_damaged_packs_are_one_line(place: Path, what: str, words: str) -> None:
    pack_images(place / "manifest", place / "pack")
    _damage(place, what)
    with pytest.raises(UserError, match=words + ".*or remove .* to read the images from their folder"):
        ImageSet.from_manifest(place / "manifest", "train")


@pytest.mark.parametrize(
    "what", ["truncated shard", "no shard", "no index", "truncated index", "other index", "wild index", "pickled index"]
)
def test_packing_again_repairs(place: Path, what: str) -> None:
    wanted = _pixels(ImageSet.from_manifest(place / "manifest", "train"))
    pack_images(place / "manifest", place / "pack", shard_mb=1)
    _damage(place, what)
    pack_images(place / "manifest", place / "pack", shard_mb=1)
    for made, pixels in zip(_pixels(ImageSet.from_manifest(place / "manifest", "train")), wanted, strict=True):
        assert torch.equal(made, pixels)


@pytest.mark.parametrize("what", ["not json", "no splits"])
def test_a_description_that_is_none_is_not_overwritten(place: Path, what: str) -> None:
    pack_images(place / "manifest", place / "pack")
    _damage(place, what)
    with pytest.raises(UserError, match=r"pack/pack\.json: does not describe a pack; remove it, or choose another"):
        pack_images(place / "manifest", place / "pack")
    (place / "pack" / PACK).unlink()
    pack_images(place / "manifest", place / "pack")
    assert len(ImageSet.from_manifest(place / "manifest", "train")) == 13


def test_the_manifests_own_folder_holds_no_pack(place: Path) -> None:
    (place / "link").symlink_to(place / "manifest")
    for folder in (place / "manifest", place / "link"):
        with pytest.raises(UserError, match=r"holds the manifest, whose pack\.json names the pack; choose another"):
            pack_images(place / "manifest", folder)
    assert ImageSet.from_manifest(place / "manifest", "train").pack is None


def test_two_that_pack_at_once_take_turns(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, said, others = packing._read, threading.Event(), []

    def second() -> None:
        others.append(pack_images(place / "manifest", place / "pack"))

    def read_late(*args: Any) -> bytes:
        """Read a file, the first one not before the second call waits."""
        if not thread.ident:
            thread.start()
            assert said.wait(30)
        return read(*args)

    thread = threading.Thread(target=second)
    monkeypatch.setattr(packing, "_READERS", 1)
    monkeypatch.setattr(packing, "_read", read_late)
    monkeypatch.setattr("flsl.runtime.lock.say", lambda line: said.set())
    description = pack_images(place / "manifest", place / "pack")
    thread.join()
    assert others == [description]
    assert len(ImageSet.from_manifest(place / "manifest", "train")) == 13


def test_a_shard_that_ends_while_it_is_read_is_one_line(place: Path) -> None:
    pack_images(place / "manifest", place / "pack")
    images = ImageSet.from_manifest(place / "manifest", "train")
    images.pixels(0)
    os.truncate(next((place / "pack").glob("train-*.tar")), 2048)
    with pytest.raises(UserError, match=r"\.tar: ends within image 5; run `flsl data pack` again"):
        images.pixels(5)


def test_an_image_set_travels_to_another_process(place: Path) -> None:
    pack_images(place / "manifest", place / "pack")
    images = ImageSet.from_manifest(place / "manifest", "train")
    wanted = images.pixels(4)
    assert torch.equal(pickle.loads(pickle.dumps(images)).pixels(4), wanted)  # noqa: S301 -- its own


def test_the_check_packs_and_goes_back_to_the_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["data", "check", "images", "--root", str(place / "images"), "--out", str(place / "manifest")]
    manifest = (place / "manifest" / "manifest.json").read_bytes()
    assert main([*check, f"data.images.pack={place / 'pack'}"]) == 0
    assert "13 images of train in 1 file(s)" in capsys.readouterr().out
    assert ImageSet.from_manifest(place / "manifest", "train").pack is not None
    assert main(check) == 0
    assert ImageSet.from_manifest(place / "manifest", "train").pack is None
    # where images are read from is no part of what they are
    assert (place / "manifest" / "manifest.json").read_bytes() == manifest


def test_bad_arguments_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = ["data", "pack", "--images", str(place / "manifest"), "--out", str(place / "pack")]
    assert main([*pack, "--shard-mb", "0"]) == 2
    assert "--shard-mb: 0; a number of megabytes from 1 on" in capsys.readouterr().err
    (place / "file").touch()
    assert main([*pack[:-1], str(place / "file")]) == 2
    assert "a file stands where a folder is needed" in capsys.readouterr().err
    assert main(["data", "pack", "--images", str(place), "--out", str(place / "pack")]) == 2
    assert "no such file; the manifest" in capsys.readouterr().err

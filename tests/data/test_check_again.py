"""A second `flsl data check`: it reads only what changed, goes on where a killed one was, and says what is new."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from image_folder import check_images, make_image, quarantined
from processes import alive, wait_for

from flsl.config.data import ImageFolderSettings
from flsl.data import files, integrity
from flsl.data.check import check_data
from flsl.data.files import FILES, Row, read_parts, read_rows, write_rows
from flsl.data.images import ImageSet
from flsl.data.manifest import load_manifest
from flsl.data.revision import revision
from flsl.runtime.errors import UserError


def test_a_second_check_reads_nothing_and_rewrites_nothing(root: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "out"
    check_images(root, out)
    assert len(reads) == 8
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert before.keys() == {"manifest.json", "files.csv", "folders.json"}
    reads.clear()
    check_images(root, out)
    assert reads == []
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_touched_files_are_read_again_but_the_manifest_stays(root: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "out"
    check_images(root, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    os.utime(root / "train" / "cat" / "1.JPEG")
    reads.clear()
    check_images(root, out)
    assert reads == ["1.JPEG"]
    assert (out / "manifest.json").stat().st_mtime_ns == before
    reads.clear()
    check_images(root, out)
    assert reads == []  # files.csv has learnt the new time


@pytest.mark.parametrize("change", ["bytes", "delete", "rename", "add", "other class"])
def test_content_hash_sees_every_change(root: Path, tmp_path: Path, reads: list[str], change: str) -> None:
    out = tmp_path / "out"
    old = check_images(root, out)
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
        make_image(victim.with_name("new.JPEG"), 99)
    else:
        victim.rename(root / "train" / "dog" / "moved.JPEG")
    new = check_images(root, out)
    assert new["content_sha256"] != old["content_sha256"]
    assert reads == {"bytes": ["1.JPEG"], "delete": [], "rename": ["other.JPEG"], "add": ["new.JPEG"]}.get(
        change, ["moved.JPEG"]
    )
    assert load_manifest(out)["content_sha256"] == new["content_sha256"]
    # and it is that of a check from nothing
    assert check_images(root, tmp_path / "fresh")["content_sha256"] == new["content_sha256"]


def test_fresh_and_decode_read_every_file(root: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "out"
    check_images(root, out)
    for option in ("fresh", "decode"):
        reads.clear()
        check_images(root, out, **{option: True})
        assert len(reads) == 8


def _spoil(path: Path) -> bytes:
    """Make an image's Huffman table claim more codes than there are: its end is whole, yet nothing can be decoded."""
    data = path.read_bytes()
    table = data.index(b"\xff\xc4")
    path.write_bytes(data[: table + 5] + b"\xff" * 16 + data[table + 21 :])
    return data


def test_what_decoding_found_is_kept_until_the_bytes_change(root: Path, tmp_path: Path) -> None:
    victim = root / "train" / "cat" / "1.JPEG"
    data = _spoil(victim)
    out = tmp_path / "out"
    assert check_images(root, out)["quarantined"]["count"] == 0
    found = quarantined(check_images(root, out, decode=True))
    assert list(found) == ["train/cat/1.JPEG"]
    assert "cannot be decoded" in found["train/cat/1.JPEG"]
    os.utime(victim)
    assert quarantined(check_images(root, out)) == found
    victim.write_bytes(data)
    assert quarantined(check_images(root, out)) == {}


@pytest.mark.parametrize("workflow", [False, True])
def test_another_root_is_not_taken_for_the_old_one(
    root: Path, tmp_path: Path, reads: list[str], workflow: bool
) -> None:
    check_images(root, tmp_path / "out")
    other = tmp_path / "other"
    root.rename(other)
    if workflow:  # snakemake removes what a rule is to make
        (tmp_path / "out" / "manifest.json").unlink()
    reads.clear()
    assert check_images(other, tmp_path / "out")["root"] == str(other)
    assert len(reads) == 8
    reads.clear()
    check_images(other, tmp_path / "out")
    assert reads == []


@pytest.mark.parametrize("decode", [False, True])
def test_an_earlier_versions_check_is_known_by_its_manifest(
    root: Path, tmp_path: Path, reads: list[str], decode: bool
) -> None:
    out = tmp_path / "out"
    other = shutil.copytree(root, tmp_path / "other")  # with its times
    for place, expected in ((root, 0), (other, 8)):
        check_images(root, out, settings={"decode": decode})
        seen = json.loads((out / "folders.json").read_text())
        (out / "folders.json").write_text(json.dumps({key: seen[key] for key in seen if key not in ("root", "decode")}))
        reads.clear()
        check_images(place, out, settings={"decode": decode})
        assert len(reads) == expected


def test_what_was_decoded_is_not_decoded_again(root: Path, tmp_path: Path, reads: list[str]) -> None:
    out = tmp_path / "out"
    check_images(root, out, settings={"decode": True})
    os.utime(root / "train" / "cat" / "1.JPEG")
    (out / "manifest.json").unlink()  # as snakemake does before it runs the check
    reads.clear()
    check_images(root, out, settings={"decode": True})
    assert reads == ["1.JPEG"]


def test_what_was_only_looked_at_is_decoded_where_that_is_asked_for(root: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", ImageFolderSettings(root=str(root), decode=True)
    check_images(root, out, settings={"decode": True})
    _spoil(root / "train" / "cat" / "1.JPEG")
    asked = revision(settings, out)  # the workflow's look at what has changed notes what it reads
    assert asked != "first"
    assert list(quarantined(check_data(settings, out, asked)[0])) == ["train/cat/1.JPEG"]


@pytest.mark.parametrize("decode", [False, True])
def test_a_killed_check_goes_on_where_it_was(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: bool
) -> None:
    out, real, opened = tmp_path / "out", integrity.inspect, []

    def dies(path: Path, *args: Any) -> integrity.Inspection:
        if len(opened) == 5:
            raise KeyboardInterrupt
        opened.append(path.name)
        return real(path, *args)

    monkeypatch.setattr(files, "_CHUNK", 2)
    monkeypatch.setattr(files, "inspect", dies)
    with pytest.raises(KeyboardInterrupt):
        check_images(root, out, settings={"decode": decode}, jobs=1)
    (part,) = out.glob("files.part.*.csv")
    with part.open("a") as stream:
        stream.write("train/cat/half a li")
    opened.clear()
    opened.extend([""] * 6)
    manifest = check_images(root, out, settings={"decode": decode}, jobs=1)
    assert len(opened) == 6 + 4  # two chunks of two were finished before
    assert not list(out.glob("files.part.*"))
    assert manifest["content_sha256"] == check_images(root, tmp_path / "fresh")["content_sha256"]


def test_a_row_that_a_killed_check_has_cut_off_is_not_known(tmp_path: Path) -> None:
    rows = [Row(f"{name}.png", "", "", 9, 9, "P", "PNG", 80, 1, "0" * 16, "ok", "0 1 23") for name in "ab"]
    with files._Part(tmp_path, tmp_path, decode=False) as part:
        part.add(rows)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])  # it would seem to be a mask of object 2
    assert read_parts(tmp_path, tmp_path, False, {}) == {"a.png": rows[0]}


def test_a_killed_check_leaves_no_process_behind(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from flsl.data import files\n"
        "from flsl.data.files import inspect_all\n"
        "from flsl.data.listing import list_files\n"
        "from flsl.config.data import ImageFolderSettings\n"
        "from pathlib import Path\n"
        "def die(count):\n"
        "    if count:\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    files._WORTH_PROCESSES = files._CHUNK = 1\n"
        f"    root = {str(root)!r}\n"
        "    entries = list_files(ImageFolderSettings(root=root)).entries\n"
        "    inspect_all(Path(root), entries, {}, jobs=2, progress=die)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert workers
    wait_for(lambda: not any(alive(pid) for pid in workers))


@pytest.mark.parametrize("damage", [b"", b"\xff\x00rubbish", b"path,split\r\na,b\r\n"])
def test_a_damaged_files_csv_is_made_anew(root: Path, tmp_path: Path, damage: bytes) -> None:
    out = tmp_path / "out"
    check_images(root, out)
    whole = (out / FILES).read_bytes()
    (out / FILES).write_bytes(damage)
    with pytest.raises(UserError, match=r"files\.csv: damaged"):
        ImageSet.from_manifest(out, "train")
    check_images(root, out)
    assert (out / FILES).read_bytes() == whole


def test_files_csv_that_is_not_the_manifests_is_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_images(root, out)
    write_rows(out, list(read_rows(out / FILES))[:-1])
    with pytest.raises(UserError, match=r"7 files, but manifest\.json says 8"):
        ImageSet.from_manifest(out, "val")


def test_processes_and_threads_find_the_same(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "train" / "cat" / "empty.JPEG").touch()
    one = check_images(root, tmp_path / "one", jobs=1)
    threads = check_images(root, tmp_path / "threads", jobs=3)
    monkeypatch.setattr(files, "_WORTH_PROCESSES", 1)
    processes = check_images(root, tmp_path / "processes", jobs=2)
    assert one == threads == processes

"""Making the scenes: the same bytes from the same seed, and never a half-made set under its final name."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import alive, wait_for

from flsl.config.checking import check
from flsl.config.data import ScenesSettings
from flsl.data.scenes import images
from flsl.data.scenes.make import DATA_SETS, make_scenes
from flsl.runtime.errors import UserError

SETTINGS = ScenesSettings(
    train_images=120,
    val_images=10,
    coco_train_images=12,
    coco_val_images=3,
    uavdt_size=128,
    uavdt_sequences=2,
    uavdt_frames=12,
    davis_size=64,
    davis_sequences=2,
    davis_frames=11,
)
ONLY_IMAGES = SETTINGS.model_copy(update={"coco_train_images": 0, "uavdt_sequences": 0, "davis_sequences": 0})


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    make_scenes(SETTINGS, out, processes=1)
    return out


def test_the_number_of_processes_changes_no_byte(made: Path, tmp_path: Path) -> None:
    make_scenes(SETTINGS, tmp_path, processes=3)
    assert contents(tmp_path) == contents(made)
    assert not hidden(made)


def test_another_seed_changes_every_image(made: Path, tmp_path: Path) -> None:
    make_scenes(SETTINGS.model_copy(update={"seed": 1}), tmp_path, processes=1)
    other, first = contents(tmp_path), contents(made)
    pictures = {name for name in first if name.endswith(".jpg")}
    assert len(pictures) > 150
    # COCO's names and all others do not depend on the seed
    assert pictures == {name for name in other if name.endswith(".jpg")}
    assert all(first[name] != other[name] for name in pictures)


def test_an_image_depends_on_its_place_only(made: Path, tmp_path: Path) -> None:
    fewer = SETTINGS.model_copy(update={"train_images": 50, "coco_train_images": 5})
    make_scenes(fewer, tmp_path, processes=1)
    some, more = contents(tmp_path), contents(made)
    shared = [name for name in some if name.endswith((".jpg", ".png"))]
    assert len(shared) > 60
    assert all(some[name] == more[name] for name in shared)


def test_made_from_equal_settings_stays_as_it_is(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file() and path.name[0] != "."}
    record = make_scenes(SETTINGS.model_copy(update={"root": "elsewhere"}), made)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert capsys.readouterr().err.count("nothing to do") == len(DATA_SETS)
    assert record == json.loads((made / "scenes.json").read_text())
    assert record["sets"]["images"] == {"train": 120, "val": 10}


def test_other_settings_make_only_what_they_change(tmp_path: Path) -> None:
    make_scenes(SETTINGS, tmp_path, processes=1)
    before = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*")}
    make_scenes(SETTINGS.model_copy(update={"davis_frames": 7}), tmp_path, processes=1)
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    after = contents(tmp_path)
    changed = {name.split("/")[0] for name in before.keys() ^ after.keys()}
    assert changed == {"davis"}
    assert len([name for name in after if name.startswith("davis/JPEGImages")]) == 2 * 7
    assert json.loads(after["scenes.json"])["settings"]["davis_frames"] == 7
    assert not hidden(tmp_path)


def test_a_folder_that_was_not_made_here_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match=r"coco: exists and was not made by flsl data scenes.*--out"):
        make_scenes(SETTINGS, tmp_path, processes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scenes.lock", "coco"]
    assert (tmp_path / "coco" / "precious.txt").read_text() == "mine"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/scenes: cannot be written: a file stands where a folder is needed"):
        make_scenes(SETTINGS, tmp_path / "file" / "scenes", processes=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission to write there"):
        make_scenes(SETTINGS, tmp_path / "scenes", processes=1)


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission")])
def test_a_refusal_by_the_system_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, reason: str
) -> None:
    saved = []

    def refuse(path: Path, image: object) -> None:
        saved.append(path)
        if len(saved) > 20:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(images, "save_jpeg", refuse)
    with pytest.raises(UserError, match=reason):
        make_scenes(SETTINGS, tmp_path, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == [".scenes.lock"]


def test_two_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    with (tmp_path / ".scenes.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another flsl data scenes is at work"):
            make_scenes(ONLY_IMAGES, tmp_path, processes=1)


def test_a_file_system_without_locks_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert make_scenes(ONLY_IMAGES, tmp_path, processes=1)["sets"] == {"images": {"train": 120, "val": 10}}


def test_killed_in_the_middle_nothing_looks_whole_and_the_next_run_makes_it(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    settings = ONLY_IMAGES.model_copy(update={"train_images": 3000})
    overrides = [f"data.scenes.{name}={value}" for name, value in settings.plain().items() if name != "root"]
    start = "import sys; from flsl.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "data", "scenes", "--out", str(out), "--jobs", "2", *overrides]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 200
            while sum(1 for _ in out.glob(".images.*.tmp/train/*/*.jpg")) < 50:
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            helpers = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal.SIGKILL)
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tmp") == [".scenes.lock"]
    assert len(hidden(out)) == 1
    # its helpers end with it: nobody draws on
    assert len(helpers) >= 2
    wait_for(lambda: not any(alive(helper.pid) for helper in helpers))
    assert sum(1 for _ in out.rglob("*.jpg")) < 3010
    make_scenes(ONLY_IMAGES, out, processes=1)
    assert not hidden(out)
    assert sum(1 for _ in (out / "images").rglob("*.jpg")) == 130


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": 5}, r"scenes: train_images: at least one image per class \(10\), not 5"),
        ({"uavdt_sequences": 1}, "uavdt_sequences: at least 2"),
        ({"image_size": 8}, "image_size: input should be greater than or equal to 32"),
        ({"clases": 3}, r"clases: unknown setting \(did you mean 'classes'\?\)"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
    ],
)
def test_bad_settings_are_named(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(ScenesSettings, change, "scenes")


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_and_the_least_sizes_work(tmp_path: Path, classes: int) -> None:
    least = {"image_size": 32, "train_images": classes, "val_images": classes, "classes": classes}
    least |= {"coco_size": 64, "davis_frames": 3, "uavdt_frames": 2}
    make_scenes(SETTINGS.model_copy(update=least), tmp_path, processes=1)
    assert len(list((tmp_path / "images/train").iterdir())) == classes

"""Files that are whole when they exist, records, checkpoints and histories."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from flsl.runtime import checkpoint
from flsl.runtime.errors import UserError, inside, nearest
from flsl.runtime.history import History, read_history
from flsl.runtime.outputs import StageRecord, atomic, read_json, sha256_json, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="in the middle"), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission to write there"),
    ],
)
def test_the_systems_refusals_are_one_line(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(UserError, match=words), atomic(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("file")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        write_json(tmp_path / "a" / "b.json", {})


@pytest.mark.parametrize(("name", "words"), [(".", "a folder stands"), ("..", "a folder"), ("a" * 300, "is too long")])
def test_a_name_that_no_file_can_have_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        write_text(name, "")
    assert list(tmp_path.iterdir()) == []


def test_written_files_are_readable_by_the_group(tmp_path: Path) -> None:
    before = os.umask(0o022)
    os.umask(before)
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~before


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", None])
def test_unreadable_json_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: .*a list of figures is expected"):
        read_json(tmp_path / "a.json", "a list of figures")


def test_record_has_provenance_and_refuses_what_is_not_finite(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"abc")
    record = StageRecord("knn", "base", {"k": [20]}, [tmp_path / "input"])
    with pytest.raises(ValueError, match="metric a is nan"):
        record.write(tmp_path / "metrics.json", {"a": float("nan")})
    assert not (tmp_path / "metrics.json").exists()
    record.write(tmp_path / "metrics.json", {"knn/top1@20": 63.25}, per_class=[1, 2])
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (written["stage"], written["run"], written["params"]) == ("knn", "base", {"k": [20]})
    assert (written["metrics"], written["per_class"]) == ({"knn/top1@20": 63.25}, [1, 2])
    provenance = written["provenance"]
    assert provenance["config_sha256"] == sha256_json({"k": [20]})
    # SHA-256 of "abc", from FIPS 180-2
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert provenance["inputs"] == {str(tmp_path / "input"): known}
    assert {"git", "packages", "host", "device", "started", "seconds"} <= provenance.keys()


def test_equal_settings_have_equal_digests() -> None:
    assert sha256_json({"a": 1, "b": [1.5]}) == sha256_json({"b": [1.5], "a": 1}) != sha256_json({"a": 1, "b": [1.6]})


@pytest.mark.parametrize("relative", ["../x", "a/../../x", "/etc/passwd"])
def test_paths_from_data_files_stay_below_their_root(relative: str) -> None:
    with pytest.raises(UserError, match=r"boxes\.csv: the path .* leaves"):
        inside(Path("root"), relative, "boxes.csv")
    assert inside(Path("root"), "a/b..c.png", "boxes.csv") == Path("root/a/b..c.png")


def test_nearest_name() -> None:
    assert nearest("temprature", ["temperature", "k"]) == " (did you mean 'temperature'?)"
    assert nearest("zzz", ["temperature", "k"]) == ""


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        checkpoint.save_step(tmp_path, step, {"step": step, "x": torch.ones(2)}, kept=2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step-000000002.pth", "step-000000030.pth"]
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 30


def test_an_older_checkpoint_stands_in_for_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    for step in (1, 2):
        path = checkpoint.save_step(tmp_path, step, {"step": step}, kept=2)
    path.write_bytes(path.read_bytes()[:-20])
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found[1] == {"step": 1}
    checkpoint.steps(tmp_path)[0].write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 checkpoints can be read; remove the folder to start anew"):
        checkpoint.load_newest(tmp_path)


def test_a_damaged_checkpoint_takes_no_place_of_those_that_are_kept(tmp_path: Path) -> None:
    for step in (80, 100):
        checkpoint.save_step(tmp_path, step, {"step": step}, kept=2)
    (tmp_path / "step-000000100.pth").write_bytes(b"cut off by a full disk")
    # to save space, one is kept from here on: the training goes on after step 80
    for step in (85, 90):
        checkpoint.save_step(tmp_path, step, {"step": step}, kept=1)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found[1] == {"step": 90}
    assert [path.stem for path in checkpoint.steps(tmp_path)] == ["step-000000090", "step-000000100"]


def test_what_is_set_aside_never_replaces_what_was(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "history.jsonl").write_text(content)
        checkpoint.set_aside(tmp_path, ["history.jsonl", "missing"], "superseded-a")
    kept = sorted(path.read_text() for path in tmp_path.glob("superseded-a*/history.jsonl"))
    assert kept == ["one", "two"]


def test_history_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    for step in (2, 4, 6):
        history.write({"kind": "step", "step": step, "loss": 1 / step})
    with path.open("a") as stream:
        stream.write('{"kind": "step", "ste')
    assert [line["step"] for line in read_history(path)] == [2, 4, 6]
    resumed = History(path, step=4)
    resumed.write({"kind": "step", "step": 6, "loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read_history(path)] == [(2, 0.5), (4, 0.25), (6, 9.0)]

"""A stage that runs have in common: the same files, under each run's own name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import write_json
from flsl.runtime.sharing import share_stage


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "project/runs"
    (folder / "base/pretrain").mkdir(parents=True)
    (folder / "base/pretrain/backbone.safetensors").write_bytes(b"weights")
    write_json(folder / "base/pretrain/metrics.json", {"run": "base", "metrics": {"pretrain/loss": 1.5}})
    return folder


def test_the_record_is_the_runs_own_and_large_files_are_links(runs: Path) -> None:
    share_stage(runs / "base/pretrain", runs / "other/pretrain", "other")
    record = json.loads((runs / "other/pretrain/metrics.json").read_text())
    assert record == {"run": "other", "metrics": {"pretrain/loss": 1.5}, "shared_from": "base"}
    assert json.loads((runs / "base/pretrain/metrics.json").read_text())["run"] == "base"
    link = runs / "other/pretrain/backbone.safetensors"
    assert link.is_symlink()
    assert link.read_bytes() == b"weights"
    # the folder may be moved as a whole
    moved = shutil.move(runs.parent, runs.parent.with_name("moved"))
    assert (Path(moved) / "runs/other/pretrain/backbone.safetensors").read_bytes() == b"weights"


def test_sharing_again_takes_what_is_there_now(runs: Path) -> None:
    for weights in (b"one", b"two"):
        (runs / "base/pretrain/backbone.safetensors").write_bytes(weights)
        share_stage(runs / "base/pretrain", runs / "other/pretrain", "other")
        assert (runs / "other/pretrain/backbone.safetensors").read_bytes() == weights
    assert sorted(path.name for path in (runs / "other/pretrain").iterdir()) == ["backbone.safetensors", "metrics.json"]


def test_what_the_run_made_itself_before_does_not_stay(runs: Path) -> None:
    own = runs / "other/pretrain"
    (own / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/step-1.pth", "checkpoint.pth", "history.jsonl", "metrics.json"):
        (own / name).write_text("its own")
    share_stage(runs / "base/pretrain", own, "other")
    assert sorted(path.name for path in own.iterdir()) == ["backbone.safetensors", "metrics.json"]


def test_mistakes_leave_nothing_behind(runs: Path) -> None:
    (runs / "base/pretrain/backbone.safetensors").unlink()
    with pytest.raises(UserError, match=r"backbone.safetensors: no such file"):
        share_stage(runs / "base/pretrain", runs / "other/pretrain", "other")
    with pytest.raises(UserError, match="no stage's folder; one of pretrain, features"):
        share_stage(runs / "base", runs / "other", "other")
    with pytest.raises(UserError, match="is the folder to share"):
        share_stage(runs / "base/pretrain", runs / "base/pretrain", "base")
    assert not (runs / "other").exists()

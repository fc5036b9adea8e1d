"""What a waiting command says of a job's progress."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flsl.launch.live import Live
from flsl.launch.queue import JobState

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def write_step(history: Path, epoch: float, minutes: float) -> None:
    line = {"kind": "step", "step": 1, "epoch": epoch, "loss": 3.25, "images_per_second": 412.0}
    line["time"] = (BEGUN + timedelta(minutes=minutes)).isoformat()
    with history.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def test_state_reason_and_progress_with_the_time_that_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flsl.launch.live._SECONDS_BETWEEN_LINES", 0.0)
    history = tmp_path / "history.jsonl"
    with Live("base/pretrain: job 7", history, epochs=10) as live:
        live.update(JobState("PENDING", "Priority"))
        live.update(JobState("RUNNING", nodes="node[1-2]"))
        write_step(history, epoch=1.0, minutes=5)
        live.update(JobState("RUNNING", nodes="node[1-2]"))
        write_step(history, epoch=4.0, minutes=11)
        live.update(JobState("RUNNING", nodes="node[1-2]"))
        # requeued: what passed in between says nothing about the speed
        live.update(JobState("PENDING", "BeginTime"))
        live.update(JobState("RUNNING", nodes="node3"))
        live.update(JobState("RUNNING", nodes="node3"))
    said = " ".join("".join(capsys.readouterr()).split())
    assert "job 7: PENDING (Priority)" in said
    assert "job 7: RUNNING on node[1-2]" in said
    assert "epoch 1.00/10, loss 3.25, 412 images/s base/pretrain" in said  # one point tells no speed
    # three epochs took six minutes, and six are left
    assert "epoch 4.00/10, loss 3.25, 412 images/s, 0:12:00 left" in said
    assert said.index("PENDING (BeginTime)") > said.index("0:12:00 left")


def test_what_an_earlier_training_left_is_not_the_progress_of_a_new_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = tmp_path / "history.jsonl"
    write_step(history, epoch=10.0, minutes=5)
    with Live("base/pretrain: job 7", history, epochs=10, fresh=True) as live:
        live.update(JobState("PENDING", "Priority"))
        assert "epoch" not in "".join(capsys.readouterr())
        write_step(history, epoch=1.0, minutes=9)
        live.update(JobState("RUNNING", nodes="node3"))
    assert "epoch 1.00/10" in "".join(capsys.readouterr())
    with Live("base/pretrain: job 7", history, epochs=10) as live:
        live.update(JobState("RUNNING", nodes="node3"))
    assert "epoch 1.00/10" in "".join(capsys.readouterr())

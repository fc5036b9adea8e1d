"""Waiting for a job: what counts as its end, its success and its failure, without a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import command

from flsl.config.cluster import ClusterSettings
from flsl.config.experiment import Experiment
from flsl.launch import queue, submit, wait
from flsl.launch.live import Live
from flsl.launch.queue import JobState, SharedQueue
from flsl.launch.record import JobRecord
from flsl.launch.task import Task
from flsl.launch.work import Work
from flsl.runtime.attempts import note_attempt
from flsl.runtime.errors import UserError

RECORD = JobRecord("x", "slurm", "digest", "flsl-x", tasks=2, job_id="7")


def left(folder: Path, rank: int, kind: str, value: object) -> None:
    """What submitit leaves of a rank that has ended."""
    (folder / f"7_{rank}_result.pkl").write_bytes(pickle.dumps((kind, value)))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let the scheduler say these states, one a look, the last one for ever."""
    monkeypatch.setattr(wait, "_TICK", 0.001)

    def says(*states: JobState | Callable[[], JobState]) -> list[str]:
        asked: list[str] = []

        @contextlib.contextmanager
        def watching(*_: object) -> Iterator[Callable[[], JobState]]:
            def look() -> JobState:
                state = states[min(len(asked), len(states) - 1)]
                state = state if isinstance(state, JobState) else state()
                asked.append(state.state)
                return state

            yield look

        monkeypatch.setattr(wait, "_watching", watching)
        return asked

    return says


def waited(folder: Path, **settings: Any) -> Any:
    note_attempt(folder.parent, "x", "7", "slurm", ["node1"])
    with Live("base/pretrain", folder / "history.jsonl", 3) as live:
        return wait.wait(RECORD, folder, ClusterSettings(latency_seconds=0, **settings), live, fresh=False)


def test_a_job_that_the_scheduler_does_not_know_yet_is_waited_for(tmp_path: Path, seen: Any) -> None:
    def done() -> JobState:
        for rank in range(2):
            left(tmp_path, rank, "success", None)
        return JobState("RUNNING")

    asked = seen(JobState("UNKNOWN"), JobState("UNKNOWN"), JobState("PENDING"), done)
    assert waited(tmp_path).kind == "complete"
    assert asked == ["UNKNOWN", "UNKNOWN", "PENDING", "RUNNING"]


def test_a_job_that_stays_unknown_has_ended(tmp_path: Path, seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_UNKNOWN_FOR", 0.05)
    seen(JobState("UNKNOWN"))
    assert waited(tmp_path).kind != "complete"


def test_success_is_a_result_of_every_rank_and_an_error_of_none(tmp_path: Path) -> None:
    left(tmp_path, 0, "success", {"loss": 1.0})
    assert not wait._complete(RECORD, tmp_path)
    left(tmp_path, 1, "error", "Traceback: no luck")
    assert not wait._complete(RECORD, tmp_path)
    left(tmp_path, 1, "success", None)
    assert wait._complete(RECORD, tmp_path)


def test_an_error_of_a_rank_ends_the_waiting_only_when_the_job_has_ended(tmp_path: Path, seen: Any) -> None:
    left(tmp_path, 0, "success", None)
    left(tmp_path, 1, "error", "Traceback: no luck")
    asked = seen(JobState("RUNNING"), JobState("REQUEUED"), JobState("FAILED"))
    assert waited(tmp_path).kind == "lost"  # it left no word of its own, see flsl.launch.outcome
    assert asked[:3] == ["RUNNING", "REQUEUED", "FAILED"]


def test_a_failed_job_of_this_machine_is_told_without_waiting_for_a_network(
    tmp_path: Path, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "_LAST", 0.1)
    seen(JobState("ENDED"))
    began = time.monotonic()
    with Live("base/pretrain", tmp_path / "history.jsonl", 3) as live:
        assert wait.wait(RECORD, tmp_path, ClusterSettings(latency_seconds=60), live, fresh=False).kind == "lost"
    assert time.monotonic() - began < 20


def test_a_controller_that_is_silent_says_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[dict[str, JobState] | None] = [{"7": JobState("RUNNING")}, None]
    monkeypatch.setattr(queue, "ask", lambda jobs: answers.pop(0))
    shared = SharedQueue(0.0, tmp_path)
    assert shared.look("7") == JobState("RUNNING")
    assert shared.look("7") == JobState("RUNNING")
    assert answers == []


def test_an_answer_that_another_version_shared_is_understood(tmp_path: Path) -> None:
    told = {"state": "RUNNING", "reason": "", "nodes": "node1", "left": "9:58"}
    (tmp_path / "answer.json").write_text(json.dumps({"jobs": {"7": told}}))
    assert SharedQueue(600.0, tmp_path).look("7") == JobState("RUNNING", nodes="node1")


def test_jobs_that_nobody_waits_for_any_more_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(queue, "ask", lambda jobs: asked.append(list(jobs)) or {})
    shared = SharedQueue(0.0, tmp_path)
    (tmp_path / "wanted/5").touch()
    os.utime(tmp_path / "wanted/5", (time.time() - 1000,) * 2)
    shared.look("7")
    shared.look("7")
    assert asked == [["7"], ["7"]]
    assert [path.name for path in (tmp_path / "wanted").iterdir()] == ["7"]
    assert json.loads((tmp_path / "answer.json").read_text()) == {"jobs": {}}


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_more_signals_do_not_cut_the_cancelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    gone: list[str | None] = []

    def waiting(*_: object) -> None:
        RECORD.write(tmp_path)
        signal.raise_signal(first)

    def cancelling(record: JobRecord, settings: ClusterSettings) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.raise_signal(number)
        gone.append(record.job_id)

    monkeypatch.setattr(submit, "_have_done", waiting)
    monkeypatch.setattr(submit, "end_job", cancelling)
    settings = {"project": "p", "cluster": {"cancel_on_interrupt": True}}
    with pytest.raises(wait.Interrupted, match="interrupted: job 7 is cancelled") as stop:
        submit.submit_work(Work("pretrain", settings, {}, str(tmp_path), "base", "digest", 1))
    assert (stop.value.signum, gone) == (first, ["7"])


def work(out: Path) -> Work:
    settings = {"project": "p", "cluster": {"kind": "slurm", "poll_seconds": 0.5}}
    return Work("pretrain", settings, {}, str(out), "base", "other", 1)


@pytest.fixture
def queue_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_own_folder", lambda: tmp_path / "queue")
    monkeypatch.setattr(wait, "_UNKNOWN_FOR", 0.0)
    monkeypatch.setattr(wait, "_ENDING", 0.0)


@pytest.mark.usefixtures("queue_of_its_own")
def test_nothing_is_submitted_while_slurm_does_not_say_whether_the_job_runs(slurm: Path, tmp_path: Path) -> None:
    for name in ("squeue", "scancel"):
        command(slurm, name, code=1, error="Unable to contact slurm controller\n")
    RECORD.write(tmp_path)
    with pytest.raises(UserError, match="does not say whether job 7, which has other settings or data, still runs"):
        submit.submit_work(work(tmp_path))
    with pytest.raises(UserError, match="job 7: is not cancelled: Unable to contact"):
        wait.end_job(RECORD, ClusterSettings(poll_seconds=0.5))
    # killed between sbatch and the record of its answer
    unknown = JobRecord.new("x", "slurm", "digest", "flsl-x", 2).write(tmp_path)
    with pytest.raises(UserError, match="does not say whether job 'flsl-x' is queued"):
        submit.submit_work(work(tmp_path))
    assert JobRecord.read(tmp_path) == unknown


@pytest.mark.usefixtures("queue_of_its_own")
def test_a_job_of_somebody_else_is_not_waited_for_until_it_is_cancelled(slurm: Path) -> None:
    command(slurm, "squeue", "7|RUNNING|None|node1\n")
    command(slurm, "scancel", code=1, error="scancel: error: Kill job error on job id 7: Access/permission denied\n")
    with pytest.raises(UserError, match=r"job 7: is not cancelled: .*Access/permission denied"):
        wait.end_job(RECORD, ClusterSettings(poll_seconds=0.5))
    # one that was ending anyway
    command(slurm, "squeue", "7|COMPLETED|None|node1\n")
    time.sleep(0.5)
    wait.end_job(RECORD, ClusterSettings(poll_seconds=0.5))


def test_what_an_earlier_job_of_the_same_number_left_is_not_this_ones_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job").mkdir()
    for rank in range(2):
        left(tmp_path / "job", rank, "success", {})
    monkeypatch.setattr(submit.request, "submit", lambda *_: "7")
    task = Task(work(tmp_path), "y", requeues=0)
    record = submit._submit(Experiment(project="p", cluster=ClusterSettings(kind="slurm", nodes=2)), task)
    assert record.tasks == 2
    assert not wait._complete(record, tmp_path / "job")


def test_a_clock_that_is_set_makes_no_process_another() -> None:
    began = wait.process_started(os.getpid())
    assert began is not None
    record = JobRecord("x", "local", "digest", "flsl-x", 1, job_id=str(os.getpid()), process_started=began)
    assert wait.alive(record, ClusterSettings())
    # the beginning is counted from the machine's, whose time changes with the clock
    assert wait.alive(replace(record, process_started=began - 1), ClusterSettings())
    assert not wait.alive(replace(record, process_started=began - 3600), ClusterSettings())


def test_a_job_on_another_machine_says_what_to_do(tmp_path: Path) -> None:
    JobRecord("x", "local", "other", "flsl-x", 1, host="gone", job_id="7").write(tmp_path)
    with pytest.raises(UserError, match=r"was started on gone, .*remove .*/job\.json"):
        submit.submit_work(work(tmp_path))


def test_a_retry_that_is_refused_says_where_the_first_failure_is_told(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(slurm, "scontrol", "PartitionName=gpu Default=YES MaxTime=UNLIMITED State=DOWN TotalNodes=8\n")
    failed = replace(RECORD, state="failed", told=True).write(tmp_path)
    with pytest.raises(UserError, match=r"cluster\.partition: 'gpu' takes no jobs now"):
        submit.submit_work(work(tmp_path))
    assert f"job 7 failed before; its logs are in {tmp_path}/job" in capsys.readouterr().err
    assert JobRecord.read(tmp_path) == failed

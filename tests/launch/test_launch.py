"""Submitted jobs without a cluster: SLURM's words, what a job's end means, results that are given back."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_slurm import command

from flsl.config.cluster import ClusterSettings
from flsl.config.compute import ComputeSettings
from flsl.config.experiment import Experiment
from flsl.launch.live import last_step, tail
from flsl.launch.outcome import judge
from flsl.launch.queue import JobState, SharedQueue, ask
from flsl.launch.record import JobRecord, only_one
from flsl.launch.request import arguments, check_request, executor_parameters, minutes_of, submit
from flsl.launch.task import Task, deliver_result, error_path, keep_result
from flsl.launch.work import Work
from flsl.runtime.attempts import note_attempt, read_attempts
from flsl.runtime.errors import Stopped, UserError
from flsl.track.start import start_following

PARTITIONS = """\
PartitionName=main Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalNodes=3 TRES=cpu=12
PartitionName=short Default=NO MaxNodes=1 MaxTime=1-00:30:00 State=UP TotalNodes=3 TRES=cpu=12
PartitionName=old Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN TotalNodes=3 TRES=cpu=12
"""


def test_squeue_knows_the_live_and_sacct_the_forgotten(slurm: Path) -> None:
    command(slurm, "squeue", "7|RUNNING|None|node[1-2]\n8|PENDING|Resources|\n")
    command(slurm, "sacct", "5|CANCELLED by 1000|node3\n")
    assert ask(["5", "7", "8", "9"]) == {
        "5": JobState("CANCELLED", "", "node3"),
        "7": JobState("RUNNING", "", "node[1-2]"),
        "8": JobState("PENDING", "Resources"),
        "9": JobState("UNKNOWN"),
    }
    assert (slurm / "calls").read_text().splitlines()[1].startswith("sacct -X -n -P -j 5,9 ")
    command(slurm, "squeue", "", code=1)
    assert ask(["7"]) is None


def test_states() -> None:
    over = ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"]
    assert all(JobState(state).over for state in [*over, "PREEMPTED", "ENDED"])
    assert not any(JobState(state).over for state in ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "UNKNOWN"])


def _watch(folder: Path, job: str, seconds: float) -> None:
    queue = SharedQueue(0.5, folder)
    end = time.monotonic() + seconds
    seen = set()
    while time.monotonic() < end:
        seen.add(queue.look(job))
        time.sleep(0.02)
    assert JobState("RUNNING") in seen


def test_all_that_wait_ask_together(slurm: Path, tmp_path: Path) -> None:
    jobs = [str(number) for number in range(1, 7)]
    command(slurm, "squeue", "".join(f"{job}|RUNNING|None|\n" for job in jobs))
    waiting = [multiprocessing.Process(target=_watch, args=(tmp_path / "queue", job, 3.0)) for job in jobs]
    began = time.monotonic()
    for process in waiting:
        process.start()
    for process in waiting:
        process.join()
    halves = (time.monotonic() - began) / 0.5
    assert [process.exitcode for process in waiting] == [0] * len(jobs)
    calls = (slurm / "calls").read_text().splitlines()
    assert 2 <= len(calls) <= halves + 2  # one in half a second, however many wait
    assert "--jobs=1,2,3,4,5,6" in calls[-1]
    queue = SharedQueue(0.0, tmp_path / "queue")
    for job in jobs[1:]:
        queue.forget(job)
    queue.look("1")
    assert "--jobs=1 " in (slurm / "calls").read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 4}, "cluster.nodes: 4 are more than the 3 of partition 'main'"),
        ({"partition": "shrot"}, "there is no partition 'shrot' (did you mean 'short'?); there are main, short, old"),
        ({"partition": "short", "nodes": 2}, "cluster.nodes: 2 are more than the 1 of partition 'short'"),
        ({"partition": "short", "minutes": 1471}, "cluster.minutes: 1471 are more than the 1470"),
        ({"partition": "old"}, "cluster.partition: 'old' takes no jobs now"),
    ],
)
def test_what_could_never_be_granted_is_refused(slurm: Path, changes: dict[str, object], message: str) -> None:
    command(slurm, "scontrol", PARTITIONS)
    with pytest.raises(UserError) as error:
        check_request(Experiment(project="p", cluster=ClusterSettings(**changes)))  # type: ignore[arg-type]
    assert message in str(error.value)
    check_request(Experiment(project="p", cluster=ClusterSettings(nodes=3, minutes=9999)))
    # one of several partitions is enough
    check_request(Experiment(project="p", cluster=ClusterSettings(partition="short,main", nodes=2)))


def test_times_of_slurm() -> None:
    assert minutes_of("UNLIMITED") is None
    assert minutes_of("00:30:00") == 30
    assert minutes_of("2-01:05:00") == 2945


def test_what_is_asked_for() -> None:
    cluster = ClusterSettings(nodes=2, gpus_per_node=4, extra={"exclusive": True}, memory_gb=0.5, qos="fast")
    experiment = Experiment(project="p", cluster=cluster)
    asked = executor_parameters("slurm", experiment, "name")
    assert (asked["nodes"], asked["tasks_per_node"], asked["gpus_per_node"]) == (2, 4, 4)
    assert asked["slurm_additional_parameters"] == {"requeue": True, "exclusive": True}
    assert (asked["slurm_mem"], asked["slurm_qos"], asked["slurm_account"]) == ("512MB", "fast", None)
    # doctor asks SLURM for the same
    assert arguments(experiment, "name") == [
        "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=2880", "--job-name=name",
        "--cpus-per-task=8", "--mem=512MB", "--qos=fast", "--requeue", "--exclusive",
    ]  # fmt: skip
    assert arguments(experiment, "name", tiny=True) == [
        "--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=4", "--time=2", "--job-name=name",
        "--cpus-per-task=1", "--mem=2G", "--qos=fast", "--exclusive",
    ]  # fmt: skip
    free = Experiment(project="p", cluster=ClusterSettings(memory_gb=None))
    assert not [one for one in arguments(free, "name", tiny=True) if one.startswith("--mem")]
    here = executor_parameters("local", experiment, "name")
    assert (here["nodes"], here["tasks_per_node"], here["gpus_per_node"]) == (1, 8, 8)
    cpu = Experiment(project="p", cluster=ClusterSettings(), compute=ComputeSettings(device="cpu"))
    assert executor_parameters("slurm", cpu, "name")["gpus_per_node"] is None
    assert executor_parameters("slurm", cpu, "name")["tasks_per_node"] == 1


@pytest.mark.parametrize(("here", "gpus"), [(True, 2), (False, 0)])
def test_a_laptop_without_gpus_is_asked_for_none(here: bool, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flsl.launch.request._gpus_here", lambda: here)
    experiment = Experiment(project="p", cluster=ClusterSettings(nodes=2))
    asked = executor_parameters("local", experiment, "name")
    assert (asked["tasks_per_node"], asked["gpus_per_node"]) == (2, gpus)
    # a cluster's nodes may have what its head node has not
    assert executor_parameters("slurm", experiment, "name")["gpus_per_node"] == 1
    cuda = Experiment(project="p", cluster=ClusterSettings(), compute=ComputeSettings(device="cuda"))
    assert executor_parameters("local", cuda, "name")["gpus_per_node"] == 1


def work(out: Path) -> Work:
    return Work("pretrain", {}, {}, str(out), "run", "0" * 64, 1)


def _error(folder: Path, rank: int, when: float, message: str, **more: object) -> None:
    told = {"rank": rank, "host": f"node{rank}", "time": when, "kind": "ValueError", "message": message}
    error_path(folder, "7", rank).write_text(json.dumps(told | {"user": False, "lost_peer": False} | more))


def test_how_a_job_ended(tmp_path: Path, slurm: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()

    def end(state: str, reason: str = "") -> tuple[str, str]:
        outcome = judge(folder, "7", 3, JobState(state, reason), ClusterSettings(memory_gb=4))
        return outcome.kind, outcome.message

    command(slurm, "sacct", "CANCELLED by 1000\n")
    assert end("CANCELLED") == ("failed", "job 7 was cancelled from outside by user 1000")
    assert end("NODE_FAIL") == ("lost", "job 7 ended without a result (NODE_FAIL)")
    # another job would fail in the same way
    kind, message = end("FAILED")
    assert kind == "failed"
    assert message.startswith("job 7 failed before it began: do the commands of cluster.setup work there")
    note_attempt(tmp_path, "one", "7", "slurm", ["node1"])
    assert end("FAILED") == ("lost", "job 7 ended without a result (FAILED)")
    assert end("TIMEOUT")[0] == "lost"
    assert end("OUT_OF_MEMORY") == (
        "failed",
        "job 7 ran out of memory; raise cluster.memory_gb (asked for: 4 GB a node)",
    )
    # the others' complaints that one is gone come first or later; either way it is the one that is gone
    _error(folder, 0, 1.0, "Connection closed by peer", lost_peer=True)
    _error(folder, 2, 3.0, "Connection closed by peer", lost_peer=True)
    assert end("FAILED") == ("lost", "job 7 lost rank 1 (FAILED)")
    _error(folder, 1, 2.0, "no such thing")
    assert end("FAILED") == ("failed", "job 7: rank 1 on node1: ValueError: no such thing")
    _error(folder, 1, 2.0, "pretrain.x: wrong", user=True)
    assert end("FAILED") == ("failed", "job 7: rank 1 on node1: pretrain.x: wrong")
    # another job meets at another port
    _error(folder, 1, 2.0, "port: 20007, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use")
    assert end("FAILED")[0] == "lost"
    for rank in range(3):
        error_path(folder, "7", rank).unlink()
    (folder / "7_1_log.err").write_text("slurmstepd: error: Exceeded job memory limit\n")
    assert "ran out of memory" in end("FAILED")[1]


def test_finished_files_get_their_names_back(tmp_path: Path) -> None:
    names = ("checkpoint.pth", "backbone.safetensors", "metrics.json")
    for name in names:
        (tmp_path / name).write_text(name)
    assert not deliver_result(tmp_path / "nothing", names)
    keep_result(tmp_path, names)
    (tmp_path / names[0]).unlink()
    (tmp_path / names[2]).write_text("newer")
    assert deliver_result(tmp_path, names)
    assert [(tmp_path / name).read_text() for name in names] == [*names[:2], "newer"]
    keep_result(tmp_path, names)
    (tmp_path / names[2]).unlink()
    assert deliver_result(tmp_path, names)
    assert (tmp_path / names[2]).read_text() == "newer"
    assert not list(tmp_path.rglob("*.tmp"))


def test_restarts_are_counted_by_submission(tmp_path: Path) -> None:
    assert note_attempt(tmp_path, "one", "7", "slurm", ["node1"]) == 1
    with (tmp_path / "attempts.jsonl").open("a") as stream:
        stream.write('{"launch": "one", "job_')  # killed while it wrote
    assert note_attempt(tmp_path, "two", "8", "slurm", ["node1"]) == 1
    assert note_attempt(tmp_path, "one", "9", "slurm", ["node1"]) == 2
    assert [attempt["job_id"] for attempt in read_attempts(tmp_path)] == ["7", "8", "9"]
    assert Task(work(tmp_path), "one", requeues=2).checkpoint() is not None
    assert Task(work(tmp_path), "one", requeues=1).checkpoint() is None


@pytest.mark.parametrize("silent", ["squeue", "scontrol"])
def test_a_job_that_has_saved_ends_well_where_slurm_does_not_answer(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    def wait_in_vain(command: object, *_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired(str(command), 60)

    command(slurm, "squeue", "RUNNING\n")
    if silent == "squeue":
        monkeypatch.setattr(subprocess, "run", wait_in_vain)
    job = SimpleNamespace(cluster="slurm", global_rank=0, job_id="7")
    with pytest.raises(SystemExit) as end:
        Task(work(tmp_path), "one", requeues=2)._end_stopped(job, Stopped("saved", signal.SIGUSR2), wait_in_vain)
    assert end.value.code == 0


def test_record_of_a_job(tmp_path: Path) -> None:
    assert JobRecord.read(tmp_path) is None
    record = JobRecord.new("abc", "slurm", "0" * 64, "flsl-abc", 4).write(tmp_path, job_id="7", lost=("5", "6"))
    assert JobRecord.read(tmp_path) == record
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(UserError, match=r"job\.json: is not a record of a submitted job"):
        JobRecord.read(tmp_path)


def test_set_up_that_fails_is_told(tmp_path: Path) -> None:
    experiment = Experiment(project="p", cluster=ClusterSettings(kind="local", setup=["true", "echo no; exit 7"]))
    task = Task(work(tmp_path), "one", requeues=0)
    with pytest.raises(UserError, match=r"exit code 7\); do the commands of cluster.setup work\?"):
        submit("local", experiment, task, "name", tmp_path / "job")


def test_one_at_a_time(tmp_path: Path) -> None:
    code = "import sys, pathlib, flsl.launch.record as r\nwith r.only_one(pathlib.Path(sys.argv[1])): print('mine')"
    with only_one(tmp_path):
        other = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert "another `flsl submit` waits" in other.stderr.readline()  # type: ignore[union-attr]
        assert other.poll() is None
    assert other.communicate(timeout=100)[0] == "mine\n"


def test_the_end_of_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert last_step(path) is None
    lines = [{"kind": "step", "step": step} for step in range(5000)] + [{"kind": "epoch", "step": 4999}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')
    assert last_step(path) == {"kind": "step", "step": 4999}
    assert len(tail(path, 3)) == 3
    # what cannot be read, as a file that a network file system has lost meanwhile
    assert tail(tmp_path, 3) == []


def test_nodes_do_not_write_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stage = tmp_path / "p" / "runs" / "base" / "pretrain"
    assert start_following(stage, Experiment(project="p")).pid is None
    following = start_following(stage, Experiment(project="p"), head=True)
    assert following.pid is not None
    following.stop()


def test_what_waits_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, flsl.cli, flsl.launch.submit, flsl.launch.request, submitit;"
        "flsl.cli.build_parser();"
        "sys.exit(bool({'torch', 'pandas', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""`flsl submit pretrain`: the job's shape, waiting, finding the job again."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import torch
from on_slurm import STEPS, Stage, shell, state_of, until

SHAPE = ["cluster.nodes=2", "cluster.tasks_per_node=2", "cluster.gpus_per_node=2"]


def places(stage: Stage) -> dict[int, tuple[str, ...]]:
    """Host, local rank, master and visible GPUs by rank, from the ranks' own logs."""
    pattern = re.compile(r"rank (\d+) of 4 on (\S+): local rank (\d), master (\S+), CUDA_VISIBLE_DEVICES=(\S*)")
    return {int(found[0]): found[1:] for found in pattern.findall(stage.log())}


def assert_close(stage: Stage, other: Stage) -> None:
    ours, theirs = stage.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def test_two_nodes_with_two_tasks(stage: Stage, alone: Stage) -> None:
    asked = ["cluster.partition=high", "cluster.account=root", "cluster.constraint=virtual"]
    process = stage.start(*SHAPE, *asked, 'cluster.extra={"comment": "from the settings", "exclude": "node1"}')
    job = stage.job()
    facts = until(lambda: shell("scontrol", "show", "job", job, check=False), "SLURM knows the job")
    for fact in (
        "Partition=high",
        "Account=root",
        "Features=virtual",
        "Comment=from the settings",
        "ExcNodeList=node1",
    ):
        assert fact in facts
    assert "TimeLimit=00:10:00" in facts
    assert "NumNodes=2" in facts
    assert "Requeue=1" in facts
    out = stage.finish(process)
    assert f"submitted job {job}: 4 processes on 2 nodes" in out
    assert re.search(rf"job {job}: RUNNING on node\[2-3\]", out)
    assert re.search(r"epoch [\d.]+/4, loss [\d.]+, [\d.]+ images/s", out)

    seen = places(stage)
    assert [seen[rank][:2] for rank in range(4)] == [("node2", "0"), ("node2", "1"), ("node3", "0"), ("node3", "1")]
    assert {seen[rank][2] for rank in range(4)} == {seen[0][2]}
    assert seen[0][2].startswith("node2:")
    assert [seen[rank][3] for rank in range(4)] == ["0,1"] * 4
    assert_close(stage, alone)


def test_this_machine_with_four_tasks(stage: Stage, alone: Stage) -> None:
    out = stage.run("cluster.kind=local", *SHAPE)
    assert "4 processes on this machine" in out
    seen = places(stage)
    assert [seen[rank][1] for rank in range(4)] == ["0", "1", "2", "3"]
    assert_close(stage, alone)


def spent_seconds(pid: int) -> float:
    """Seconds of CPU time of a process that runs."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_finds_its_job_again(stage: Stage) -> None:
    slow = {"step_seconds": "2.5"}
    first = stage.start(**slow)
    job = stage.job()
    until(lambda: stage.step() >= 1, "the training runs")

    # waiting is cheap: no torch, little memory, little time
    status = Path(f"/proc/{first.pid}/status").read_text()
    memory = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
    maps = Path(f"/proc/{first.pid}/maps").read_text()
    assert memory < 150
    assert "libtorch" not in maps
    assert "pandas" not in maps
    spent, began = spent_seconds(first.pid), time.monotonic()
    time.sleep(4)
    assert spent_seconds(first.pid) - spent < 0.1 * (time.monotonic() - began)

    # killed and started again while the job runs; another one waits for its turn
    first.kill()
    first.wait()
    second = stage.start(**slow)
    until(lambda: "re-attached" in second.stdout.readline(), "the job is found")  # type: ignore[union-attr]
    other = stage.start(**slow)
    until(lambda: "another `flsl submit` waits" in other.stdout.readline(), "it waits")  # type: ignore[union-attr]
    second.kill()
    second.wait()
    until(lambda: f"re-attached to job {job}" in other.stdout.readline(), "it goes on")  # type: ignore[union-attr]
    other.kill()
    other.wait()

    # other settings
    out = stage.run("seed=1", code=2, **slow)
    assert out.strip().count("\n") == 0
    assert f"job {job}" in out
    assert "--force" in out

    # killed between sbatch and the record of its answer
    record = stage.out / "job.json"
    record.write_text(record.read_text().replace(f'"job_id": "{job}"', '"job_id": null'))
    third = stage.start(**slow)
    until(lambda: f"re-attached to job {job}" in third.stdout.readline(), "the job is found by its name")  # type: ignore[union-attr]
    third.send_signal(signal.SIGINT)
    out = stage.finish(third, code=130)
    assert f"job {job} goes on" in out
    assert f"scancel {job}" in out
    assert state_of(job) == "RUNNING"

    # the job ends while nobody waits, and the workflow removes what it made before it starts the rule again
    until(lambda: state_of(job) == "COMPLETED", "the job ends")
    for name in ("checkpoint.pth", "backbone.safetensors", "metrics.json"):
        (stage.out / name).unlink()
    out = stage.run(**slow)
    assert f"job {job} has ended meanwhile" in out
    assert "submitted" not in out
    assert stage.step() == STEPS
    assert (stage.out / "metrics.json").exists()
    assert len(stage.attempts()) == 1
    assert f"complete, by job {job}" in stage.run(**slow)


def test_finds_its_job_again_while_it_is_queued(stage: Stage) -> None:
    hold = 'cluster.extra={"hold": true}'
    first = stage.start(hold)
    job = stage.job()
    until(lambda: "PENDING (JobHeldUser)" in first.stdout.readline(), "state and reason are told")  # type: ignore[union-attr]
    first.kill()
    first.wait()
    second = stage.start(hold)
    until(lambda: f"re-attached to job {job}" in second.stdout.readline(), "the job is found")  # type: ignore[union-attr]
    assert state_of(job) == "PENDING"
    shell("scontrol", "release", job)
    assert f"job {job}" in stage.finish(second)
    assert stage.record()["job_id"] == job
    assert stage.step() == STEPS


def test_force_cancels_the_job_of_other_settings(stage: Stage) -> None:
    first = stage.start(step_seconds="5")
    job = stage.job()
    first.kill()
    first.wait()
    out = stage.run("seed=1", "pretrain.epochs=1", force=True)
    assert f"cancelling job {job}" in out
    assert state_of(job) == "CANCELLED"
    assert stage.record()["job_id"] != job


def test_cancels_when_interrupted_where_asked_to(stage: Stage) -> None:
    process = stage.start("cluster.cancel_on_interrupt=true", step_seconds="5")
    job = stage.job()
    until(lambda: state_of(job) == "RUNNING", "the job runs")
    process.send_signal(signal.SIGTERM)
    assert f"job {job} is cancelled" in stage.finish(process, code=143)
    until(lambda: state_of(job) == "CANCELLED", "the job is cancelled")


def test_local_job_is_found_again(stage: Stage, work: Path) -> None:
    first = stage.start("cluster.kind=local", step_seconds="1")
    job = stage.job()
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does in a terminal
    assert f"kill {job}" in stage.finish(first, code=130)
    out = stage.run("cluster.kind=local", step_seconds="1")
    assert f"re-attached to job {job}" in out
    assert len(stage.attempts()) == 1


def test_local_job_is_cancelled(stage: Stage) -> None:
    process = stage.start("cluster.kind=local", "cluster.nodes=2", step_seconds="1")
    job = stage.job()
    until(lambda: stage.step() >= 1, "the training runs")
    os.kill(int(job), signal.SIGTERM)
    out = stage.finish(process, code=2)
    assert re.search(rf"flsl: error: job {job}: rank \d on \S+: cancelled from outside: stopped by signal 15", out)
    assert len(stage.attempts()) == 1

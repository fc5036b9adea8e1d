"""Time limits, preemption, nodes and processes that are lost: the run goes on and ends as if nothing had happened."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import time
from pathlib import Path

import torch
from on_slurm import FLSL, STEPS, Stage, shell, state_of, until

TWO = ("cluster.nodes=2", "cluster.gpus_per_node=1")


def assert_same(stage: Stage, other: Stage) -> None:
    """The weights bit for bit, and the whole curve."""
    ours, theirs = stage.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert [step for step, *_ in stage.curve()] == list(range(1, STEPS + 1))
    assert stage.curve() == other.curve()
    assert not list(stage.out.rglob("*.tmp"))


def test_a_time_limit_is_met_twice(limited: Stage, uninterrupted: Stage) -> None:
    out = limited.finish(limited.processes[0])
    assert_same(limited, uninterrupted)
    # two ends at least, and one job: SLURM's own record of it
    attempts, job = limited.attempts(), limited.job()
    assert len(attempts) >= 3
    assert {attempt["job_id"] for attempt in attempts} == {job}
    assert f"complete, by job {job} ({len(attempts)} attempts)" in out
    log = (limited.out / "job" / f"{job}_0_log.err").read_text()
    # on a busy machine an attempt may end before its first step, and is requeued, too
    assert len(re.findall(r"stopped by signal 12 after step", log)) >= 2
    assert f"Restarts={len(attempts) - 1}" in shell("scontrol", "show", "job", job)


def test_requeue_preemption_and_a_downed_node(stage: Stage, uninterrupted: Stage) -> None:
    process = stage.start(*TWO, step_seconds="1.5")
    job = stage.job()

    def runs(attempts: int) -> None:
        seen = stage.step() if attempts > 1 else 0
        until(lambda: len(stage.attempts()) == attempts, f"attempt {attempts}")
        until(lambda: stage.step() > seen or process.poll() is not None, "it goes on")
        assert process.poll() is None

    runs(1)
    shell("scontrol", "requeue", job)
    runs(2)
    # a job of a higher partition takes all nodes
    greedy = shell(
        "sbatch", "--parsable", "--partition=high", "--nodes=3", "--exclusive", "--time=2", "--output=/dev/null",
        "--wrap=sleep 3",
    )  # fmt: skip
    until(lambda: state_of(job) == "PENDING", "the job is preempted")
    until(lambda: state_of(greedy) == "COMPLETED", "the other job ends")
    runs(3)
    node = stage.attempts()[-1]["nodes"][1]
    shell("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        runs(4)
        assert node not in stage.attempts()[-1]["nodes"]
    finally:
        shell("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    # a drained node finishes what it runs
    node = stage.attempts()[-1]["nodes"][0]
    shell("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        stage.finish(process)
    finally:
        shell("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    assert len(stage.attempts()) == 4
    assert {attempt["job_id"] for attempt in stage.attempts()} == {job}
    assert_same(stage, uninterrupted)


def test_killed_ranks_and_a_kill_while_a_checkpoint_is_written(stage: Stage, uninterrupted: Stage, work: Path) -> None:
    died, killed = work / "died", work / "killed"
    following = (
        f"project={work.name}",
        "tracking.live=true",
        "tracking.live_seconds=0.5",
        f"tracking.uri=sqlite:///{work}/mlflow.db",
    )
    process = stage.start(*TWO, *following, die=f"1:3:{died}", kill_save=f"6:{killed}", step_seconds="0.5")
    first = stage.job()
    until(killed.exists, "the job is killed while it saves")
    second = stage.job()
    assert second != first
    out = stage.finish(process)
    assert f"warning: job {first} lost rank 1" in out
    assert f"warning: job {second}" in out
    assert len(stage.attempts()) == 3
    assert_same(stage, uninterrupted)
    assert stage.record()["lost"] == [first, second]
    assert "going on after step 4 " in stage.log()

    # MLflow shows one run with one curve, and the attempts as tags
    sync = [*FLSL, "track", "sync", "--project-folder", str(work), "--uri", f"sqlite:///{work}/mlflow.db"]
    subprocess.run(sync, check=True, capture_output=True)
    database = sqlite3.connect(work / "mlflow.db")
    found = database.execute(
        "SELECT run_uuid FROM tags JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active' AND key = 'flsl.stage' "
        "AND value = 'pretrain' AND runs.name = ?",
        (f"{stage.name}/pretrain",),
    ).fetchall()
    assert len(found) == 1
    curve = database.execute(
        "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY step", found[0]
    ).fetchall()
    assert curve == [(step, loss) for step, loss, _ in stage.curve()]
    tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", found[0]).fetchall())
    assert tags["flsl.attempts"] == "3"
    assert tags["flsl.jobs"] == f"{first} {second} {stage.job()}"


def test_restarts_are_limited(stage: Stage, work: Path) -> None:
    out = stage.run(*TWO, "cluster.requeues=0", die=f"0:3:{work / 'died-once'}", code=2)
    assert "cluster.requeues: 0" in out
    assert len(stage.attempts()) == 1
    # asked to go on, it goes on
    first = stage.job()
    process = stage.start(*TWO, "cluster.requeues=0", step_seconds="2")
    until(lambda: stage.record().get("job_id") not in (first, None), "a second job is submitted")
    job = stage.job()
    until(lambda: len(stage.attempts()) == 2, "the second job starts")
    until(lambda: stage.step() > 3, "it goes on")
    shell("scontrol", "requeue", job)
    out = stage.finish(process, code=2)
    assert "cluster.requeues: the job has started 2 times, where 0 restarts are allowed" in out
    time.sleep(2)
    assert state_of(job) == "FAILED"

"""What goes wrong is told in one line, at once."""

from __future__ import annotations

import time

import pytest
from on_slurm import STEPS, Stage, shell, state_of, until

TWO = ("cluster.nodes=2", "cluster.gpus_per_node=1")


def test_an_error_of_one_rank_ends_all(stage: Stage) -> None:
    out = stage.run(*TWO, code=2, **{"raise": "1:3"}, step_seconds="1")
    last = out.strip().splitlines()[-1]
    assert last.startswith(f"flsl: error: job {stage.job()}: rank 1 on node")
    assert last.endswith("RuntimeError: the dog ate the batch")
    assert "Traceback" in out  # the end of that rank's log
    assert "_1_log.err" in out
    # not at the time limit of ten minutes, nor when gloo's half hour is over
    until(lambda: state_of(stage.job()) in ("FAILED", "CANCELLED"), "the job ends", 60)
    assert stage.step() < STEPS
    assert len(stage.attempts()) == 1
    # told once; the next call submits anew and goes on from the last checkpoint
    first = stage.job()
    out = stage.run(*TWO)
    assert "submitted job" in out
    assert stage.job() != first
    assert "going on after step 2 " in stage.log()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.nodes=99"], "cluster.nodes: 99 are more than the 3 of partition 'main'"),
        (["cluster.partition=mian"], "cluster.partition: there is no partition 'mian' (did you mean 'main'?)"),
        (["cluster.partition=short", "cluster.minutes=31"], "cluster.minutes: 31 are more than the 30"),
        (["cluster.account=nobody"], "cluster.account: sbatch refuses the job: Invalid account"),
        (["cluster.qos=nothing"], "cluster.qos: sbatch refuses the job: Invalid qos"),
        (["cluster.constraint=quantum"], "cluster.constraint: sbatch refuses the job: Invalid feature"),
        (["cluster.memory_gb=9000"], "cluster.memory_gb: sbatch refuses the job: Memory specification"),
    ],
)
def test_an_impossible_request_is_refused_at_once(stage: Stage, overrides: list[str], message: str) -> None:
    started = time.monotonic()
    out = stage.run(*overrides, code=2)
    assert time.monotonic() - started < 60
    assert out.startswith(f"flsl: error: {message}")
    assert out.strip().count("\n") == 0
    assert not (stage.out / "job.json").exists()


def test_a_request_that_slurm_would_queue_for_ever(stage: Stage) -> None:
    out = stage.run("cluster.gpus_per_node=64", code=2)
    assert out.strip().splitlines()[-1].endswith("its partition's nodes have not what cluster.* asks for "
                                                 "(GPUs, CPUs, memory or nodes)")  # fmt: skip
    assert state_of(stage.job()) == "CANCELLED"


def test_a_job_cancelled_from_outside(stage: Stage) -> None:
    process = stage.start(*TWO, step_seconds="2")
    job = stage.job()
    until(lambda: stage.step() >= 1, "the training runs")
    shell("scancel", job)
    out = stage.finish(process, code=2)
    assert f"flsl: error: job {job} was cancelled from outside" in out
    # neither SLURM nor the job itself brings it back
    time.sleep(3)
    assert state_of(job) == "CANCELLED"
    assert len(stage.attempts()) == 1


def test_a_job_that_takes_too_much_memory(stage: Stage) -> None:
    out = stage.run("cluster.memory_gb=1", code=2, eat="0:3:1.5")
    assert f"flsl: error: job {stage.job()} ran out of memory; raise cluster.memory_gb (asked for: 1 GB a node)" in out
    assert len(stage.attempts()) == 1


def test_gpus_that_do_not_work(stage: Stage) -> None:
    out = stage.run("compute.device=auto", "cluster.gpus_per_node=1", code=2)
    last = out.strip().splitlines()[-1]
    assert "compute.device: auto finds no working CUDA (CUDA_VISIBLE_DEVICES is '0')" in last
    assert "set compute.device=cpu" in last

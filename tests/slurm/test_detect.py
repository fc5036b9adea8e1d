"""`flsl submit detect`: a detector trained by several processes, with the machinery that pretraining has."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from engines import ENGINES
from on_slurm import FLSL, Stage, shell, until

STEPS = 8

pytestmark = pytest.mark.parametrize("stage", ["coco"], indirect=True)


def weights(stage: Stage) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(stage.out / "model.pth", weights_only=True)["model"]
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_detector_of_one(stage: Stage, work: Path, engine: str) -> None:
    # two micro-batches of one process are what two processes take
    one = Stage(work, "one-process", "coco")
    command = [*FLSL, "detect", "train", "--stage", "coco", "--random-init", "--config", "tiny.yaml"]
    chosen = f"detection.engine={engine}"
    alone = [*command, "--out", str(one.out), chosen, "detection.coco.accumulate=2"]
    subprocess.run(alone, cwd=work, check=True, capture_output=True)

    shape = [chosen, "cluster.detection.nodes=2", "cluster.detection.memory_gb=3", "cluster.nodes=99"]
    first = stage.start(*shape, step_seconds="1")
    job = stage.job()
    until(lambda: stage.step() >= 2, "the training runs")
    facts = shell("scontrol", "show", "job", job)
    assert "NumNodes=2" in facts
    assert "NumTasks=2" in facts
    assert "mem=6G" in facts
    first.kill()
    first.wait()
    again = stage.start(*shape, step_seconds="1")
    until(lambda: f"re-attached to job {job}" in again.stdout.readline(), "the job is found")  # type: ignore[union-attr]
    shell("scontrol", "requeue", job)
    out = stage.finish(again)
    assert f"complete, by job {job} (2 attempts)" in out
    assert "going on after step " in stage.log()

    assert (stage.out / "system.jsonl").is_file()
    assert [step for step, *_ in stage.curve()] == list(range(1, STEPS + 1))
    torch.testing.assert_close(torch.tensor(stage.curve()), torch.tensor(one.curve()), rtol=1e-4, atol=1e-6)
    ours, theirs = weights(stage), weights(one)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    figures = [json.loads((folder.out / "metrics.json").read_text())["metrics"] for folder in (stage, one)]
    assert figures[0] == pytest.approx(figures[1], abs=0.1)


def test_its_errors_name_its_own_settings(stage: Stage) -> None:
    out = stage.run("cluster.detection.nodes=99", code=2)
    assert out.startswith("flsl: error: cluster.detection.nodes: 99 are more than the 3 of partition 'main'")
    assert out.strip().count("\n") == 0

"""`snakemake --profile slurm`: the whole DAG on the cluster, and many pretrainings at once."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from on_slurm import PROJECT, TINY, state_of, until

from flsl.config.loading import load_experiment

# all that a shared project folder must hold for the workflow to run in it
PARTS = ("workflow", "slurm", "config", "envs")
SMALL: dict[str, Any] = {
    "data": {
        "scenes": TINY["data"]["scenes"]
        | {
            "uavdt_size": 128,
            "uavdt_sequences": 2,
            "uavdt_frames": 4,
            "davis_size": 64,
            "davis_sequences": 2,
            "davis_frames": 3,
        }
    },
    "davis": {"size": 64, "multiple": 8},
    "detection": {"uavdt": TINY["detection"]["coco"] | {"batch_size": 2}},
}
"""Sizes of the whole demo, besides those of the tiny pretraining."""


@pytest.fixture
def project(work: Path, request: pytest.FixtureRequest) -> Path:
    """A project's root, as a clone has it."""
    folder = work / request.node.name
    folder.mkdir()
    for part in PARTS:
        subprocess.run(["cp", "--archive", PROJECT / part, folder / part], check=True)
    # a site edits this one file; a test cluster answers faster than a real one
    edit_profile(
        folder,
        {
            "status-checks: 10": "status-checks: 3",
            "# slurm_account: myproject": "slurm_account: root",
            "# slurm_partition: gpu": "slurm_partition: high",
        },
    )
    return folder


def edit_profile(folder: Path, changes: dict[str, str]) -> None:
    """Change the file that a site edits."""
    profile = folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    text = profile.read_text()
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    profile.write_text(text)


def experiment(folder: Path, name: str, **changes: Any) -> Path:
    """Write an experiment whose made data lie in a folder of its own."""
    return write(folder, name, laid_over(TINY, changes))


def small_demo(folder: Path, name: str) -> Path:
    """Write the demo, whatever its file says is run, at the smallest size."""
    settings = load_experiment(folder / "config" / "demo.yaml", []).plain()
    sizes = {key: value for key, value in TINY.items() if key not in ("data", "stages")}
    return write(folder, name, laid_over(laid_over(settings, sizes), SMALL))


def laid_over(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings with changes laid over them, mapping by mapping."""
    both = {key: laid_over(settings[key], value) for key, value in changes.items()
            if isinstance(value, dict) and isinstance(settings.get(key), dict)}  # fmt: skip
    return {**settings, **changes, **both}


def write(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """Write an experiment of that name whose made data lie in a folder of its own."""
    path = folder / "config" / f"{name}.yaml"
    text = yaml.safe_dump({**settings, "project": name})
    path.write_text(re.sub(r"(root: )(results/)?scenes", rf"\1results/{name}-scenes", text))
    return path


def snakemake(folder: Path, *arguments: str, path: str = "") -> str:
    """Run snakemake in a project's root."""
    found = os.pathsep.join([*([path] if path else []), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["snakemake", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": found},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def figures(folder: Path, name: str) -> dict[str, Any]:
    """All figures but those that tell how fast the machine was."""
    found = {}
    for path in sorted((folder / "results" / name / "runs").glob("*/*/metrics.json")):
        metrics = json.loads(path.read_text())["metrics"]
        found[f"{path.parts[-3]}/{path.parts[-2]}"] = {
            key: value for key, value in metrics.items() if "per_second" not in key and "seconds" not in key
        }
    return found


@pytest.mark.timeout(1800)
def test_the_whole_demo_gives_the_same_figures(project: Path) -> None:
    # the demo's own file, as it is: every rule of it can be planned for the cluster
    snakemake(project, "--profile", "slurm", "--dry-run")
    # then the same at a small size in its place, and the command exactly as it is typed
    here, there = small_demo(project, "here"), small_demo(project, "cluster")
    asked = load_experiment(here, [])
    there.rename(project / "config/demo.yaml")
    snakemake(project, "--profile", "slurm")
    snakemake(project, "--cores", "2", "--configfile", "config/here.yaml")
    ours, theirs = figures(project, "cluster"), figures(project, "here")
    stages = ("pretrain", *asked.stages)
    assert {f"{run}/{stage}" for run in [*asked.runs, *asked.baselines] for stage in stages} <= theirs.keys()
    assert ours == theirs
    for name in ("cluster", "here"):
        tables = (project / "results" / name / "ablations").glob("*/table.csv")
        assert {table.parent.name for table in tables} == set(asked.ablations)

    job = json.loads((project / "results/cluster/runs/base/pretrain/job.json").read_text())
    facts = subprocess.run(["scontrol", "show", "job", job["job_id"]], capture_output=True, text=True).stdout
    assert "Partition=high" in facts
    assert "Account=root" in facts
    assert f"complete, by job {job['job_id']}" in (project / "results/cluster/logs/base/pretrain.log").read_text()
    ran_on = json.loads((project / "results/cluster/runs/base/knn/metrics.json").read_text())["provenance"]["host"]
    assert ran_on.startswith("node") or os.environ.get("FLSL_SLURM_FOLDER")
    # nothing is left to do, on the cluster or here
    assert "Nothing to be done" in snakemake(project, "--profile", "slurm")
    assert "Nothing to be done" in snakemake(project)


def test_a_detector_of_two_processes(project: Path) -> None:
    cluster = {"detection": {"tasks_per_node": 2, "memory_gb": 3.0}}
    path = experiment(project, "detector", cluster=cluster, runs={"base": {"pretrain.epochs": 1}})
    folder = project / "results/detector/runs/base/coco"
    target = str(folder.relative_to(project) / "metrics.json")
    snakemake(project, target, "--profile", "slurm", "--configfile", str(path))
    job = json.loads((folder / "job.json").read_text())["job_id"]
    facts = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    assert "NumTasks=2" in facts
    assert "Partition=high" in facts
    assert "mem=3G" in facts
    log = (project / "results/detector/logs/base/coco.log").read_text()
    assert re.search(r"base/coco: job \d+: epoch [\d.]+/4, loss [\d.]+, [\d.]+ images/s", log)
    assert f"complete, by job {job} (1 attempt)" in log
    assert "coco/bbox/AP" in json.loads((folder / "metrics.json").read_text())["metrics"]


def test_a_retry_asks_for_more_of_what_the_profile_says(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_profile(project, {"# qos: normal": "qos: normal", "# constraint: a100": "constraint: virtual"})
    monkeypatch.setenv("PYTHONPATH", str(PROJECT / "tests/slurm/hooks"))
    monkeypatch.setenv("FLSL_TEST_FAIL", f"scenes:{project / 'failed'}")
    path = experiment(project, "retried")
    snakemake(project, "results/retried-scenes/scenes.json", "--profile", "slurm", "--configfile", str(path))
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, check=True).stdout
    jobs = [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in shown.splitlines()
        if f"WorkDir={project} " in f"{line} "
    ]
    first, second = sorted(jobs, key=lambda job: int(job["JobId"]))
    assert (first["JobState"], second["JobState"]) == ("FAILED", "COMPLETED")
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("2000M", "4000M")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("00:30:00", "01:00:00")
    for job in (first, second):
        assert (job["Partition"], job["Account"], job["QOS"], job["Features"]) == ("high", "root", "normal", "virtual")


def test_an_interrupted_workflow_leaves_the_job_and_finds_it_again(project: Path) -> None:
    cluster = {
        "setup": [f"export PYTHONPATH={PROJECT / 'tests/slurm/hooks'}", "export FLSL_TEST_STEP_SECONDS=2"],
    }
    path = experiment(project, "stopped", cluster=cluster, baselines={})
    folder = project / "results/stopped/runs/base/pretrain"
    arguments = [str(folder.relative_to(project) / "metrics.json"), "--profile", "slurm", "--configfile", str(path)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    first = subprocess.Popen(["snakemake", *arguments], cwd=project, env=environment, start_new_session=True)
    until((folder / "history.jsonl").exists, "the training runs")
    job = json.loads((folder / "job.json").read_text())["job_id"]
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    assert first.wait(60) != 0
    log = project / "results/stopped/logs/base/pretrain.log"
    assert f"job {job} goes on" in log.read_text()
    assert f"`scancel {job}` cancels it" in log.read_text()
    assert state_of(job) == "RUNNING"
    snakemake(project, *arguments)
    assert f"job {job}" in log.read_text()
    assert "submitted" not in log.read_text()
    assert json.loads((folder / "job.json").read_text())["job_id"] == job
    assert len((folder / "attempts.jsonl").read_text().splitlines()) == 1


def test_ten_pretrainings_at_once_ask_slurm_no_more_than_one(project: Path, work: Path) -> None:
    # every question to SLURM is noted by a command of the same name that stands before it
    tools, log = project / "tools", project / "questions"
    tools.mkdir()
    for name in ("squeue", "sacct"):
        real = shutil.which(name)
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "$(date +%s.%N) {name} $PPID" >> {log}\nexec {real} "$@"\n')
        tool.chmod(0o755)
    cluster = {"poll_seconds": 4}
    runs = {f"seed{seed}": {"seed": seed} for seed in range(10)}
    path = experiment(project, "many", runs=runs, cluster=cluster, stages=[], baselines={})
    metrics = [f"results/many/runs/{run}/pretrain/metrics.json" for run in runs]
    snakemake(project, *metrics, "--profile", "slurm", "--configfile", str(path), path=str(tools))
    waiters = {json.loads((project / metric).with_name("job.json").read_text())["job_id"] for metric in metrics}
    assert len(waiters) == 10
    losses = {json.loads((project / metric).read_text())["metrics"]["pretrain/loss"] for metric in metrics}
    assert len(losses) == 10
    times = [float(line.split()[0]) for line in log.read_text().splitlines() if " squeue " in line]
    assert len(times) > 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) > 3

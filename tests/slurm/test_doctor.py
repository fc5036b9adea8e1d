"""`flsl doctor` finds out what a site could not do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from on_slurm import FLSL


def doctor(work: Path, *arguments: str) -> tuple[int, dict[str, str]]:
    """Run it; return its exit code and its lines by check."""
    command = [*FLSL, "doctor", "--config", "tiny.yaml", *arguments, "cluster.kind=slurm"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
    lines = {}
    for line in done.stdout.splitlines():
        level, check = line.split(maxsplit=1)
        lines[check.partition(":")[0]] = f"{level} {check.partition(': ')[2]}"
    assert not done.stderr, done.stderr
    return done.returncode, lines


def test_a_site_that_can(work: Path) -> None:
    code, found = doctor(work, "cluster.nodes=2", "cluster.gpus_per_node=1")
    assert code == 0, found
    assert {"python", "torch", "data", "results", "mlflow", "slurm", "accounting", "request"} <= found.keys()
    assert all(line.startswith("ok ") for line in found.values()), found
    assert "22." in found["slurm"] or "cluster" in found["slurm"]
    assert "2 nodes" in found["request"]
    assert "no working CUDA, though CUDA_VISIBLE_DEVICES is '" in found["compute node"]
    assert "seen and written" in found["shared folder"]
    assert not list((work / "results").glob(".doctor*"))


def test_a_compute_node_without_a_compiler(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "nowhere/c++")
    code, found = doctor(work, "compute.compile=true")
    assert code == 1
    assert found["compute node"].startswith("FAIL compute.compile: torch.compile needs a compiler (nowhere/c++")


def test_a_site_that_cannot(work: Path) -> None:
    code, found = doctor(work, "--no-job", "cluster.partition=short", "cluster.minutes=31")
    assert code == 1
    assert found["request"].startswith("FAIL cluster.minutes: 31 are more than the 30")
    code, found = doctor(work, "--no-job", 'stages=["coco"]', "cluster.detection.nodes=4")
    assert code == 1
    assert found["request"].startswith("FAIL cluster.detection.nodes: 4 are more than the 3 of partition 'main'")
    code, found = doctor(work, "--no-job", "cluster.account=nobody", "tracking.uri=http://localhost:9")
    assert code == 1
    assert "Invalid account" in found["request"]
    assert "FAIL" in found["mlflow"]
    assert "refused" in found["mlflow"]
    code, found = doctor(
        work, "data.scenes=null", "data.images.root=nowhere", "compute.device=cuda", "cluster.gpus_per_node=1",
        "pretrain.encoder.width=16384", "pretrain.encoder.depth=24",
    )  # fmt: skip
    assert code == 1
    assert found["data.images"] == "FAIL not there: nowhere/train, nowhere/val, nowhere/boxes.csv"
    assert "GB needed" in found["results"]
    assert found["results"].startswith("FAIL")
    # the compute node's GPUs do not work
    assert any(line.startswith("FAIL no working CUDA") for check, line in found.items() if check == "compute node")

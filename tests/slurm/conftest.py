"""The tests of this folder need a cluster: `make test-slurm` starts one, FLSL_SLURM=1 uses the one that is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from on_slurm import FLSL, HERE, PROJECT, TINY, Stage, shell


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a SLURM cluster: make test-slurm")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if os.environ.get("FLSL_SLURM") != "1":
                item.add_marker(skip)


@pytest.fixture(scope="session")
def work() -> Path:
    """A folder that all nodes share, with the made images in it."""
    folder = Path(os.environ.get("FLSL_SLURM_FOLDER", PROJECT / "build" / "slurm-tests")).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    for command in (["scenes", "--out", "scenes"], ["check", "images", "--out", "data"]):
        subprocess.run([*FLSL, "data", *command, "--config", "tiny.yaml"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def stage(work: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A new pretraining, or the stage that a test names; its jobs are cancelled when the test is over."""
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:40].strip("-")
    stage = Stage(work, name, getattr(request, "param", "pretrain"))
    yield stage
    for process in stage.processes:
        if process.poll() is None:
            process.kill()
            process.communicate()
    record = stage.record()
    if record.get("cluster") == "slurm" and record.get("job_id"):
        shell("scancel", str(record["job_id"]), check=False)


@pytest.fixture(scope="session")
def alone(work: Path) -> Stage:
    """The same pretraining by one process that nothing interrupts."""
    stage = Stage(work, "alone")
    command = [*FLSL, "pretrain", "--config", "tiny.yaml", "--images", "data", "--out", str(stage.out)]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    return stage


@pytest.fixture(scope="session")
def uninterrupted(work: Path) -> Stage:
    """The same pretraining by two processes of this machine that nothing interrupts."""
    stage = Stage(work, "uninterrupted")
    stage.run("cluster.kind=local", "cluster.nodes=2")
    return stage

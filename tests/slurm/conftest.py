"""The tests of this folder need a cluster: `make test-slurm` starts one, FLSL_SLURM=1 uses the one that is there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from on_slurm import FLSL, HERE, PROJECT, TINY, Stage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # what has been waited for since the start is looked at last
    items.sort(key=lambda item: item.name.startswith("test_a_time_limit"))
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


@pytest.fixture(scope="session", autouse=True)
def sigterm() -> None:
    """SIGTERM ends the tests as Ctrl-C does: fixtures end what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def limited(request: pytest.FixtureRequest, sigterm: None) -> Iterator[Stage | None]:
    """A run that meets its time limit twice: minutes that pass while the other tests run, on nodes of its own."""
    if not any("limited" in getattr(item, "fixturenames", ()) and item.name.startswith("test_a_time_limit")
               for item in request.session.items):  # fmt: skip
        yield None
        return
    stage = Stage(request.getfixturevalue("work"), "limited")
    limits = ("cluster.partition=apart", "cluster.nodes=2", "cluster.minutes=1", "cluster.signal_seconds=20")
    # as often as a busy machine may need
    stage.start(*limits, "cluster.requeues=99", queue="queue-of-its-own", step_seconds="6")
    yield stage
    stage.end()


@pytest.fixture
def stage(work: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A new pretraining, or the stage that a test names; its jobs are cancelled when the test is over."""
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:40].strip("-")
    stage = Stage(work, name, getattr(request, "param", "pretrain"))
    yield stage
    stage.end()


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

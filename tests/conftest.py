"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# one thread a process: tests compare bit for bit, and two cores serve many processes
os.environ.setdefault("OMP_NUM_THREADS", "1")
# how long an example takes depends on what else the machine does
settings.register_profile("flsl", deadline=None)
# the same examples at each call: what CI says depends on the change alone, and other runs look for new ones
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.load_profile("flsl")
# tests that a script or nohup starts in the background, and all that they start, would not be reached by them
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("FLSL_REAL_DATA"):
        return
    skip = pytest.mark.skip(reason="FLSL_REAL_DATA names no folder with the real samples")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; tests that use it carry ``@pytest.mark.real``."""
    return Path(os.environ["FLSL_REAL_DATA"]).resolve()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others on PATH for SLURM's commands, as ``fake_slurm.command`` writes them; no job around."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    return folder

"""The tests of this folder need a cluster: `make test-slurm` starts one, FLSL_SLURM=1 uses the one that is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a SLURM cluster: make test-slurm")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if os.environ.get("FLSL_SLURM") != "1":
                item.add_marker(skip)

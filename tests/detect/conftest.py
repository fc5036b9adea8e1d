"""Fixtures of the detection tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_coco import write_coco


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The folder of the made data set."""
    write_coco(tmp_path / "data")
    return tmp_path / "data"

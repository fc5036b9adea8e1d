"""A small DAVIS data set of moving discs."""

from __future__ import annotations

import pytest
from davis_files import moving_discs, write_davis


@pytest.fixture
def davis(tmp_path):
    sequences = {
        "one": moving_discs(5, 2, (52, 90)),
        "two": moving_discs(9, 1, (48, 60)),
        "single": moving_discs(1, 1),
    }
    return write_davis(tmp_path / "davis", sequences)

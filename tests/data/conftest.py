"""Fixtures of the tests of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from image_folder import make_image

from flsl.data import files, integrity, reading


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three training images and a validation image each."""
    root = tmp_path / "data"
    for index, name in enumerate(("cat", "dog")):
        for number in range(3):
            make_image(root / "train" / name / f"{number}.JPEG", 10 * index + number)
        make_image(root / "val" / name / "v.JPEG", 10 * index + 9)
    return root


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again at once what a file system has failed to give."""
    monkeypatch.setattr(reading, "_WAITS", (0.0, 0.0, 0.0))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened since the list was last cleared."""
    opened: list[str] = []
    real = integrity.inspect

    def noted(path: Path, *args: Any) -> integrity.Inspection:
        opened.append(path.name)
        return real(path, *args)

    monkeypatch.setattr(files, "inspect", noted)
    return opened

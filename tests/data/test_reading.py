"""A file system that fails in passing costs a moment: no image is quarantined, and no training ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folder import check_images

from flsl.data.images import ImageSet
from flsl.data.packing import pack_images
from flsl.data.reading import patiently


def _failing(times: int, code: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``real``, whose first calls fail."""
    left = [code] * times

    def call(*args: Any, **options: Any) -> Any:
        if left:
            raise OSError(left.pop(), os.strerror(code))
        return real(*args, **options)

    return call


def test_what_may_pass_is_waited_for_and_nothing_else() -> None:
    assert patiently(_failing(3, errno.ESTALE, lambda: "read")) == "read"
    with pytest.raises(OSError, match="Input/output error"):
        patiently(_failing(4, errno.EIO, lambda: "read"))
    with pytest.raises(FileNotFoundError):
        patiently(_failing(1, errno.ENOENT, lambda: "read"))


@pytest.mark.parametrize(("where", "name"), [(Path, "open"), (os, "scandir")])
def test_the_check_quarantines_nothing_for_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    real = getattr(where, name)
    failing = _failing(2, errno.EIO, real)

    def call(path: Path, *args: Any, **options: Any) -> Any:
        return (failing if path.is_relative_to(root) else real)(path, *args, **options)

    monkeypatch.setattr(where, name, call)
    assert check_images(root, tmp_path / "out")["quarantined"]["count"] == 0
    assert len(ImageSet.from_manifest(tmp_path / "out", "train")) == 6


def test_training_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_images(root, tmp_path / "manifest")
    images = ImageSet.from_manifest(tmp_path / "manifest", "train")
    wanted = images.pixels(0)
    failing = _failing(1, errno.ESTALE, Path.read_bytes)
    monkeypatch.setattr(Path, "read_bytes", lambda path: failing(path))
    assert torch.equal(images.pixels(0), wanted)


def test_a_pack_that_went_stale_is_opened_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_images(root, tmp_path / "manifest")
    pack_images(tmp_path / "manifest", tmp_path / "pack")
    images = ImageSet.from_manifest(tmp_path / "manifest", "train")
    wanted = images.pixels(1)
    assert images.pack is not None
    (stale,) = images.pack._open.values()
    monkeypatch.setattr(os, "pread", _failing(1, errno.ESTALE, os.pread))
    assert torch.equal(images.pixels(1), wanted)
    assert stale.closed

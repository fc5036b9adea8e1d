"""Checkpoints: tensors and plain data, written whole, the newest readable one found again."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import atomic, writing
from flsl.runtime.progress import warn
from flsl.runtime.signals import loader_died

_NAME = re.compile(r"step-(\d{9})\.pth")
_SEEN_WITHIN = 60.0
"""Seconds after which a network file system shows another node's files."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain data atomically; what is there stays until the new file is on the disk.

    Raises:
        UserError: when it cannot be written, e.g. because the disk is full.
    """
    with atomic(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:
            # torch's writer reports a full disk as a failed check of its own
            _raise_if_disk_full(temporary, path)
            if loader_died(error):
                raise
            raise OSError(str(error)) from error


def _raise_if_disk_full(temporary: Path, path: Path) -> None:
    written = temporary.stat().st_size if temporary.exists() else 0
    free = shutil.disk_usage(path.parent).free
    if free < max(written // 4, 1 << 20):
        raise UserError(f"{path}: cannot be written: the disk is full; free some space and start the stage again")


def save_step(folder: Path, step: int, state: Mapping[str, Any], kept: int) -> Path:
    """Write the checkpoint of a step and remove all but the newest ``kept`` ones; return its path."""
    path = _path(folder, step)
    save(path, state)
    # what killed processes left half-written: there is one writer a folder
    for left in folder.glob(".step-*.tmp"):
        left.unlink(missing_ok=True)
    # one that is newer than this was damaged, and stands in for nothing
    for old in [each for each in steps(folder) if each <= path][:-kept]:
        old.unlink(missing_ok=True)
    return path


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.pth"


def steps(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: when it is damaged or holds more than tensors and plain data.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated archive raises a wide family of errors
        reason = why_unreadable(error)
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason}); remove it to do without it") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds {type(state).__name__}, where a checkpoint's dictionary is expected")
    return state


def why_unreadable(error: Exception) -> str:
    """Return in a few words why ``torch.load`` could not read a file; its own advice is to trust it."""
    if isinstance(error, UnpicklingError):
        return "torch.save did not write it, it is damaged, or it holds objects that only running its code could make"
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Read the newest checkpoint that can be read; damaged newer ones are reported and left where they are.

    Returns:
        Its path and state, or None when there is no checkpoint at all.

    Raises:
        UserError: when there are checkpoints but none can be read: starting anew must be the user's decision.
    """
    found = steps(folder)
    for path in reversed(found):
        try:
            return path, load(path)
        except UserError as error:
            warn(f"{error}; trying the one before")
    if found:
        raise UserError(f"{folder}: none of its {len(found)} checkpoints can be read; remove the folder to start anew")
    return None


def load_step(folder: Path, step: int) -> tuple[Path, dict[str, Any]]:
    """Read the checkpoint of a step that another process has found, and that may be seen late here.

    Returns:
        Its path and state.

    Raises:
        UserError: when it cannot be read.
    """
    path = _path(folder, step)
    end = time.monotonic() + _SEEN_WITHIN
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.5)
    return path, load(path)


def set_aside(folder: Path, names: Sequence[str], target_name: str) -> Path:
    """Move those of a folder's ``names`` that exist into a new sub-folder, and return that."""
    target = folder / target_name
    number = 1
    while target.exists():
        number += 1
        target = folder / f"{target_name}-{number}"
    with writing(target):
        target.mkdir()
        for name in names:
            if (folder / name).exists():
                (folder / name).rename(target / name)
    return target

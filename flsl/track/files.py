"""Which of a run's files the view is made from, and whether they are still the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flsl.runtime.environment import LOCK
from flsl.runtime.machine import SYSTEM
from flsl.runtime.outputs import sha256_json, stamp
from flsl.runtime.results import CONFIG, HISTORY, RECORD, stage_folders

_SHAPE = 3  # of the view; another number makes `sync` look at everything again
_ARTIFACTS = {".png", ".jpg", ".svg", ".md", ".csv", ".html"}
_MODEL = "backbone.safetensors"
_SHEETS = "sheets/*.jpg"  # of videos


def signature(folder: Path, artifact_mb: float, varied: Iterable[str] = (), planned: bool = True) -> str:
    """Return a digest of all that the view of a run is made from: sizes and times of its files, the names of the
    settings that any run of the project varies, and whether the run is planned."""
    names = listing(folder, [CONFIG])
    for stage in stage_folders(folder):
        found = listing(stage, _shown(stage) | {RECORD, HISTORY, SYSTEM, CONFIG, LOCK, _MODEL})
        names |= {f"{stage.name}/{name}": stamp for name, stamp in found.items()}
    return sha256_json([_SHAPE, artifact_mb, names, sorted(varied), planned])[:16]


def artifacts(folder: Path, largest_mb: float) -> dict[str, str]:
    """Return the files of a complete stage that are stored with it, with size and time.

    Tables and figures that lie in the folder itself, sheets of videos, and the encoder, where they are not too large;
    the record and the lock of packages always.
    """
    small = {name for name in _shown(folder) | {_MODEL} if _size(folder / name) <= 1e6 * largest_mb}
    return listing(folder, small | {RECORD, CONFIG, LOCK})


def _shown(folder: Path) -> set[str]:
    sheets = {path.relative_to(folder).as_posix() for path in folder.glob(_SHEETS)}
    return {path.name for path in folder.iterdir() if path.suffix in _ARTIFACTS} | sheets


def listing(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return size and time of those of ``names`` that are files of ``folder``."""
    return {name: stamp(folder / name) for name in sorted(names) if (folder / name).is_file()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

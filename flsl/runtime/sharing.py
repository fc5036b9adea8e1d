"""A stage that several runs have in common: made by one run, and shown in the folders of the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import read_json, write_json, writing

_RECORD = "metrics.json"
SHARED_FILES: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("backbone.safetensors", _RECORD),
    "features": ("train.safetensors", "val.safetensors", _RECORD),
    **dict.fromkeys(("knn", "linear", "aligned_knn", "coco", "uavdt", "davis", "visualize"), (_RECORD,)),
}
"""What a run has of a stage that another run makes: links to what later stages read, and the record."""


def share_stage(source: Path, out: Path, run: str) -> dict[str, Any]:
    """Give a run the stage that another run has made, in place of what it may have made itself.

    Files are relative links, so that a results folder may be moved; ``metrics.json`` is a file of its own with the
    run's name and, as ``shared_from``, the maker's.

    Args:
        source: the stage's folder, ``<project>/runs/<run>/<stage>``; its name says which stage it is.
        out: the folder to fill.
        run: the run that it belongs to.

    Returns:
        The record.

    Raises:
        UserError: when the stage is none that can be shared, or a file is missing.
    """
    source, out = source.resolve(), out.resolve()
    files = SHARED_FILES.get(source.name)
    if files is None:
        raise UserError(f"{source}: no stage's folder; one of {', '.join(SHARED_FILES)} is expected")
    if out == source:
        raise UserError(f"{out}: is the folder to share; name another run's")
    for name in files:
        require_file(source / name, "a file of the stage that is shared")
    record = dict(read_json(source / _RECORD, "the record of the stage that is shared"))
    with writing(out):
        for path in out.iterdir() if out.is_dir() else ():
            if path.name not in files:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    record |= {"shared_from": record.get("run", source.parent.name), "run": run}
    for name in files:
        if name != _RECORD:
            _link(source / name, out / name)
    write_json(out / _RECORD, record)
    return record


def _link(target: Path, path: Path) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.link")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(target, path.parent))
        temporary.replace(path)

"""The record of each propagated sequence, ``<previews>/<sequence>.json``: how, and thereby whether, it was made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flsl.runtime.code import code_now
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import package_versions, read_json, sha256_file
from flsl.runtime.progress import warn
from flsl.video.sequences import files_of, reading

_PARTS: dict[str, type] = {"run": str, "params": dict, "provenance": dict, "encoder": list, "masks_sha256": str}
_ORIGIN: dict[str, type] = {"packages": dict, "code": dict, "inputs": dict, "input_stamps": dict, "seconds": float}


def previews_beside(masks: Path) -> Path:
    """Return where records and pictures of masks stand unless it is said: a folder that is only theirs."""
    return Path(f"{masks.resolve()}-previews")


def record_path(previews: Path, name: str) -> Path:
    """Return where the record of the sequence ``name`` stands."""
    return previews / f"{name}.json"


def masks_digest(folder: Path) -> str:
    """Return a digest of a sequence's masks, by which a record knows them."""
    content = hashlib.sha256()
    for path in files_of(folder, ".png"):
        content.update(f"{path.name} {sha256_file(path)}\n".encode())
    return content.hexdigest()


def is_made(
    path: Path, run: str, params: Mapping[str, Any], inputs: Iterable[Path], outputs: Iterable[Path], masks: Path
) -> bool:
    """Tell whether a record says that all was made so (run, settings, inputs, packages, code), and all is there.

    The masks must be those that the record is about: others may have been put in their place, or they were damaged.

    Args:
        path: the record.
        run: the run's name.
        params: the settings.
        inputs: files that it was made from; they are hashed.
        outputs: files that were made.
        masks: folder of the sequence's masks.
    """
    try:
        record = _read(path)
        provenance = record["provenance"]
        made = (record["run"], record["params"], provenance["packages"])
        return (
            made == (run, dict(params), package_versions())
            and all(output.is_file() for output in outputs)
            and provenance["code"] == code_now(provenance["code"])
            and record["masks_sha256"] == masks_digest(masks)
            and provenance["inputs"] == {str(file): sha256_file(file) for file in inputs}
        )
    except (UserError, OSError):  # what cannot be read is said when it is made again
        return False


def _read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        UserError: when it cannot be read, or is none.
    """
    record = read_json(path, "a sequence's record")
    if not (_holds(record, _PARTS) and _holds(record["provenance"], _ORIGIN)):
        raise UserError(f"{path}: no record of a sequence; propagate it again")
    return dict(record)


def _holds(data: object, parts: Mapping[str, type]) -> bool:
    return isinstance(data, dict) and all(isinstance(data.get(name), kind) for name, kind in parts.items())


@dataclass(frozen=True)
class Propagation:
    """How sequences were made, all of them together.

    Attributes:
        params: the settings.
        facts: for the provenance of what is made from them: the encoder's files, code, device and start.
        seconds: that they took, one after the other.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@reading()
def made_how(previews: Path, names: Iterable[str], masks: Path) -> Propagation | None:
    """Return how the ``masks`` of the sequences ``names`` were made; None where not all have a record of them.

    Raises:
        UserError: when they were made with different settings, or a record is none or cannot be read.
    """
    records = []
    for name in names:
        path = record_path(previews, name)
        if not path.exists():
            return None
        record = _read(path)
        if not _is_about(record, masks / name):
            warn(f"{masks / name}: not the masks that {path} is about; how they were made is left out of the figures")
            return None
        records.append(record)
        params, first = record["params"], records[0]["params"]
        if params != first:
            differing = next(key for key in {**first, **params} if first.get(key) != params.get(key))
            raise UserError(
                f"{path}: was made with {differing} {params.get(differing)!r}, other sequences with "
                f"{first.get(differing)!r}; propagate all of them with the same settings"
            )
    return _together(records) if records else None


def _is_about(record: Mapping[str, Any], masks: Path) -> bool:
    try:
        return bool(record["masks_sha256"] == masks_digest(masks))
    except OSError:  # the evaluation says which one cannot be read
        return False


def _together(records: list[dict[str, Any]]) -> Propagation:
    origins = [record["provenance"] for record in records]
    code: dict[str, str] = {}
    for origin in origins:
        for name, digest in origin["code"].items():
            # where sequences were made with different code, some are of other code than there is now
            code[name] = digest if code.get(name, digest) == digest else "mixed"
    facts = {
        "code": code,
        "device": origins[0].get("device", ""),
        "started": min(str(origin.get("started", "")) for origin in origins),
    }
    # each sequence has its own frames, and all have the encoder
    encoder = records[0]["encoder"]
    for key in ("inputs", "input_stamps"):
        facts[key] = {name: known for name, known in origins[0][key].items() if name in encoder}
    return Propagation(records[0]["params"], facts, sum(origin["seconds"] for origin in origins))

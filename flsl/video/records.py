"""The record of each propagated sequence, ``<previews>/<sequence>.json``: how, and thereby whether, it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import package_versions, read_json, sha256_file


def record_path(previews: Path, name: str) -> Path:
    """Return where the record of the sequence ``name`` stands."""
    return previews / f"{name}.json"


def is_made(path: Path, run: str, params: Mapping[str, Any], inputs: Iterable[Path], outputs: Iterable[Path]) -> bool:
    """Tell whether a record says that all was made by this run with these settings, inputs and packages, and is there.

    Args:
        path: the record.
        run: the run's name.
        params: the settings.
        inputs: files that it was made from; they are hashed.
        outputs: files that were made.
    """
    try:
        record = read_json(path, "a record")
        provenance = record["provenance"]
        made = (record["run"], record["params"], provenance["packages"])
        hashes = provenance["inputs"]
    except (UserError, KeyError, TypeError):
        return False
    return (
        made == (run, dict(params), package_versions())
        and all(output.is_file() for output in outputs)
        and hashes == {str(file): sha256_file(file) for file in inputs}
    )


def made_how(previews: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the settings with which the sequences ``names`` were made; none where not all have a record.

    Raises:
        UserError: when they were made with different settings.
    """
    found: dict[str, Any] = {}
    for name in names:
        path = record_path(previews, name)
        if not path.is_file():
            return {}
        params = read_json(path, "a sequence's record").get("params", {})
        if found and params != found:
            differing = next(key for key in {**found, **params} if found.get(key) != params.get(key))
            raise UserError(
                f"{path}: was made with {differing} {params.get(differing)!r}, other sequences with "
                f"{found.get(differing)!r}; propagate all of them with the same settings"
            )
        found = params
    return found

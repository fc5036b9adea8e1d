"""Which of the package's modules a stage ran with, so that a result can be told from one of other code."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import flsl

_ROOT = Path(flsl.__file__).parent
# what starts, shows and sends results makes none, and what settings come to is compared by itself
_NO_RESULTS = (
    *(f"flsl.{room}" for room in ("__main__", "cli", "config", "doctor", "launch", "track", "report")),
    *(f"flsl.runtime.{name}" for name in ("code", "errors", "machine", "progress", "results")),
    # who does the work, and when it is told to stop
    *(f"flsl.runtime.{name}" for name in ("interrupt", "lock", "place", "processes", "signals")),
)


def used_code() -> dict[str, str]:
    """Return a short digest of each of the package's modules that this process has loaded and that make results."""
    loaded = [name for name in sys.modules if name.startswith("flsl.") and not _shows(name)]
    return {name: digest for name, digest in code_now(sorted(loaded)).items() if digest is not None}


def code_now(names: Iterable[str]) -> dict[str, str | None]:
    """Return the digests of modules as they stand now; ``None`` for those that are not there."""
    return {name: _digest(name) for name in names}


def _shows(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in _NO_RESULTS)


def _digest(name: str) -> str | None:
    place = _ROOT.joinpath(*name.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return None

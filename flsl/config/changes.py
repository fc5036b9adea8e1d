"""What may differ between runs: its names, the changes that a run makes in the experiment's settings, and its name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from flsl.config.base import Settings
from flsl.config.experiment import Experiment
from flsl.config.pretrain import Schedule
from flsl.runtime.errors import UserError, nearest

VARIABLE = ("seed", "pretrain", "features", "knn", "linear", "aligned_knn", "detection", "davis", "visualize")
"""The sections that may differ."""
_LONGEST = 100
_MISSING = object()


def leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what may differ between runs as single settings, by dotted name; a schedule is one of them."""
    for name in type(settings).model_fields if prefix else VARIABLE:
        value = getattr(settings, name)
        if isinstance(value, Settings) and not isinstance(value, Schedule):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value.plain() if isinstance(value, Settings) else value


def value_of(settings: Settings, name: str) -> Any:
    """Return the plain value of a setting by its dotted name."""
    value: Any = settings.plain()
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def changes_of(settings: Experiment, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from ``base``, the experiment's own leaves, by dotted name."""
    return {key: value for key, value in leaves(settings) if base.get(key, _MISSING) != value}


def key_of(changes: Mapping[str, Any]) -> str:
    """Return changes as text: equal for equal ones."""
    return json.dumps(changes, sort_keys=True)


def check_name(name: str, source: str) -> None:
    """Refuse a setting that may not differ between runs, and a section, whose other settings would be lost.

    Raises:
        UserError: with the nearest name.
    """
    section = name.split(".")[0]
    if section in VARIABLE:
        below = next((leaf for leaf in _variable_settings() if leaf.startswith(f"{name}.")), None)
        if below is not None:
            raise UserError(f"{source}: {name}: is a whole section; name its settings one by one, e.g. '{below}'")
        return
    if section in Experiment.model_fields:
        raise UserError(
            f"{source}: '{name}' cannot differ between runs; only seed, pretrain.* and evaluations "
            f"({', '.join(f'{part}.*' for part in VARIABLE[2:])}) can"
        )
    raise UserError(f"{source}: {name}: unknown setting{_nearest_setting(name)}")


def run_name(changes: Mapping[str, Any]) -> str:
    """Return the name of the run with these changes, e.g. ``prototypes-1024_seed-1``; ``base`` where there are none.

    Settings stand in alphabetical order, the seed last. A name that would be too long, or that does not tell its
    values, ends in a digest of the changes.
    """
    if not changes:
        return "base"
    parts, exact = [], True
    for name in sorted(changes, key=lambda name: (name == "seed", name)):
        text = _text(changes[name])
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
        exact = exact and plain == text
        parts.append(f"{name.removeprefix('pretrain.')}-{plain}")
    whole = "_".join(parts)
    if exact and len(whole) <= _LONGEST:
        return whole
    digest = hashlib.sha256(key_of(changes).encode()).hexdigest()[:8]
    return f"{whole[: _LONGEST - 9]}-{digest}"


def _text(value: Any) -> str:
    """Return a value as a part of a name."""
    if isinstance(value, list):
        return "-".join(_text(item) for item in value)
    if isinstance(value, Mapping) and set(value) == {"start", "end"}:
        return f"{_text(value['start'])}-to-{_text(value['end'])}"
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace("e+", "e")
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _variable_settings() -> tuple[str, ...]:
    """Return the dotted names of all single settings that may differ."""
    return tuple(leaf for leaf, _ in leaves(Experiment(project="x")))


def _nearest_setting(name: str) -> str:
    valid = _variable_settings()
    # the pretraining's come first
    same = next((leaf for leaf in valid if leaf.endswith(f".{name}")), None)
    return nearest(name, valid) if same is None else f" (did you mean '{same}'?)"

"""What a project's ablations consist of, as ``ablations/<name>/ablation.json`` says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import read_json

FOLDER = "ablations"
ABLATION = "ablation.json"
_LOG_LINES, _LONGEST_LINE = 5, 300


@dataclass(frozen=True)
class Point:
    """One point of an ablation with one seed.

    Attributes:
        run: the run that it is.
        name: what the config calls it, where it does.
        values: of the varied settings, by dotted name.
        seed: the seed.
        base: whether it varies nothing.
        made_by: by stage, the run whose job makes it; its log tells why there are no figures.
    """

    run: str
    name: str | None
    values: Mapping[str, Any]
    seed: int
    base: bool
    made_by: Mapping[str, str]


@dataclass(frozen=True)
class Ablation:
    """One ablation; the fields are those of the settings, ``axes`` the names of the varied ones."""

    name: str
    caption: str
    categorical: bool
    axes: list[str]
    shared: Mapping[str, Any]
    stages: list[str]
    points: list[Point]


def ablation_names(project_folder: Path) -> list[str]:
    """Return the names of a project's ablations, those that the config no longer has included."""
    return sorted(path.parent.name for path in project_folder.glob(f"{FOLDER}/*/{ABLATION}"))


def read_ablations(project_folder: Path, problems: list[str]) -> dict[str, Ablation]:
    """Read all ablations of a project, by name; a line in ``problems`` for each file that cannot be read."""
    found = {}
    for name in ablation_names(project_folder):
        try:
            found[name] = read_ablation(project_folder / FOLDER / name / ABLATION)
        except UserError as error:
            problems.append(str(error))
    return found


def read_ablation(path: Path) -> Ablation:
    """Read ``ablation.json``.

    Raises:
        UserError: when it is missing or is not what the workflow writes.
    """
    record = read_json(
        path, "what an ablation consists of, which the workflow or `flsl ablation table --config` writes"
    )
    try:
        points = [Point(**point) for point in record["points"]]
        return Ablation(**{**record, "points": points})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: is not an ablation's record ({error}); start the workflow again") from None


def membership(ablations: Mapping[str, Ablation]) -> dict[str, list[str]]:
    """Return the names of the ablations that each run is a point of."""
    runs: dict[str, list[str]] = {}
    for name, ablation in ablations.items():
        for run in dict.fromkeys(point.run for point in ablation.points):
            runs.setdefault(run, []).append(name)
    return runs


def point_label(point: Point) -> str:
    """Return what a table calls a point: its name, or its values, e.g. ``0.1, 0.2``; what has no axes is the base."""
    return point.name or ", ".join(value_text(value) for value in point.values.values()) or "base"


def value_text(value: Any) -> str:
    """Return a setting's value: numbers and words as they are, a schedule as ``0.1 → 0.4``, others as JSON."""
    if isinstance(value, Mapping) and set(value) == {"start", "end"}:
        return f"{value_text(value['start'])} → {value_text(value['end'])}"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return value if isinstance(value, str) else json.dumps(value)


def log_of_missing(project_folder: Path, point: Point, stage: str) -> Path | None:
    """Return the log that tells why a point has no figures of a stage, or ``None`` while nothing has begun.

    It is that of the first job that has not ended well, of those that the stage waits for.
    """
    for job in dict.fromkeys(("pretrain", *(("features",) if stage == "knn" else ()), stage)):
        run = point.made_by.get(job, point.run)
        if (project_folder / "runs" / run / job / "metrics.json").is_file():
            continue
        folder = project_folder / "logs" / run
        logs = [path for path in (folder / f"{job}.log", *(folder / job).glob("*.log")) if path.is_file()]
        return max(logs, key=lambda path: path.stat().st_mtime_ns, default=None)
    return None


def log_tail(path: Path) -> list[str]:
    """Return the last lines of a log that say something, without colours and what a progress bar has overwritten."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 20_000))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    shown = [line.rstrip().rpartition("\r")[2].rstrip() for line in plain.split("\n")]
    return [line[:_LONGEST_LINE] for line in shown if line.strip()][-_LOG_LINES:]

"""Figures of all runs as tables, and which of them count."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from flsl.report.published import COCO
from flsl.runtime.ablations import membership, point_label, read_ablations
from flsl.runtime.compared import NO_RESULTS, changed_settings, complete_settings, ordered, own_settings
from flsl.runtime.errors import UserError, nearest
from flsl.runtime.results import Project, Run, flat, read_project

_DESCRIPTIONS = (*NO_RESULTS, "visualize")  # stages whose figures describe an encoder, and do not judge it
_LESS_IS_BETTER = re.compile(r"loss|decay|error", re.IGNORECASE)
_NEITHER = re.compile(r"seconds|per_second|images|frames|parameters|steps|count", re.IGNORECASE)


def load_results(path: Path | str, ablation: str | None = None) -> pd.DataFrame:
    """Read a project's results as a tidy table, one row per figure.

    Args:
        path: ``results/<project>``.
        ablation: only the points of this ablation, and of the settings only those that it varies.

    Returns:
        columns ``project``, ``run``, ``baseline`` (whether the encoder was not pretrained here), ``stage``,
        ``metric``, ``value`` (percentages where they are accuracies or precisions), ``seed``, ``ablations`` (the names
        of those that the run is a point of, with commas between), and one per setting by dotted name: all of
        ``pretrain``, and what any run changes of its evaluations (lists and schedules as JSON text). With ``ablation``,
        the settings are its axes, ``point`` is what its table calls the point and ``base`` whether that is the base.

    Raises:
        UserError: when there is no such folder or ablation.

    Example:
        Mean and deviation over seeds, for each point of an ablation::

            table = load_results("results/demo", ablation="prototypes")
            figures = table[table["metric"] == "knn/top1@20"]
            print(figures.groupby("pretrain.prototypes")["value"].agg(["mean", "std", "count"]))
    """
    project = read_project(path)
    return tidy(project) if ablation is None else _points(project, ablation)


def tidy(project: Project) -> pd.DataFrame:
    """Return a project's figures as :func:`load_results` does."""
    member = membership(read_ablations(project.folder, []))
    varied = {name for run in project.runs for name in own_settings(run)}
    rows: list[dict[str, Any]] = []
    for run in project.runs:
        own = own_settings(run) if run.baseline else complete_settings(run, varied)
        params = {name: _cell(value) for name, value in _schedules_whole(own).items()}
        about = {"seed": run.seed, "ablations": ",".join(member.get(run.name, []))}
        for stage in run.stages.values():
            for metric, value in stage.figures.items():
                known = {"project": project.name, "run": run.name, "baseline": run.baseline, "stage": stage.name}
                rows.append({**known, "metric": metric, "value": value, **about, **params})
    columns = ["project", "run", "baseline", "stage", "metric", "value", "seed", "ablations"]
    return pd.DataFrame(rows, columns=None if rows else columns)


def _points(project: Project, name: str) -> pd.DataFrame:
    """Return the figures of an ablation's points."""
    ablations = read_ablations(project.folder, [])
    if name not in ablations:
        there = ", ".join(ablations) or "none"
        raise UserError(f"{project.folder}: has no ablation '{name}'{nearest(name, ablations)}; it has {there}")
    runs = {run.name: run for run in project.runs}
    rows: list[dict[str, Any]] = []
    for point in ablations[name].points:
        stages = runs[point.run].stages.values() if point.run in runs else ()
        about = {"seed": point.seed, "point": point_label(point), "base": point.base}
        values = {axis: _cell(value) for axis, value in point.values.items()}
        for stage in stages:
            for metric, value in stage.figures.items():
                known = {"project": project.name, "run": point.run, "baseline": False, "stage": stage.name}
                rows.append({**known, "metric": metric, "value": value, **about, **values})
    columns = ["project", "run", "baseline", "stage", "metric", "value", "seed", "point", "base"]
    return pd.DataFrame(rows, columns=None if rows else [*columns, *ablations[name].axes])


def _schedules_whole(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with a schedule, which is flattened to its start and end, as one value again."""
    whole: dict[str, Any] = {}
    for name, value in settings.items():
        parent, _, last = name.rpartition(".")
        if last in ("start", "end"):
            whole[parent] = whole.get(parent, {}) | {last: value}
        else:
            whole[name] = value
    return whole


def _cell(value: Any) -> Any:
    """Return a setting's value as a table's cell: what is no single value as JSON text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def wide(project: Project) -> pd.DataFrame:
    """Return one row per run: ``run``, ``kind``, ``seed``, the settings that differ between runs, and all figures.

    Where there are COCO figures, rows of kind ``paper`` hold the papers', with a column ``source``.
    """
    changed = changed_settings(project.runs)
    rows = [
        {
            "run": run.name,
            "kind": "baseline" if run.baseline else "run",
            "seed": run.seed,
            **changed[run.name],
            **run.figures,
        }
        for run in project.runs
    ]
    metrics = ordered({metric: None for run in project.runs for metric in run.figures})
    settings = sorted({name for values in changed.values() for name in values})
    columns = ["run", "kind", "seed", *settings, *metrics]
    if {"coco/bbox/AP", "coco/segm/AP"} & set(metrics):
        rows += [{"run": one.name, "kind": "paper", "source": one.source, **one.figures} for one in COCO]
        columns.insert(2, "source")
    # as objects, since a column with a gap would turn whole numbers into fractions
    table = pd.DataFrame(rows, columns=columns, dtype=object)
    return table.astype(dict.fromkeys(metrics, float))


def more_is_better(metric: str) -> bool | None:
    """Tell which of two values of a figure is the better one; ``None`` where neither is."""
    stage, _, name = metric.partition("/")
    if stage in _DESCRIPTIONS or _NEITHER.search(name):
        return None
    return not _LESS_IS_BETTER.search(name)


def best(values: Sequence[float | None], more: bool | None) -> set[int]:
    """Return the places of the best values (equals included); none where there are fewer than two values to compare."""
    known = [value for value in values if value is not None]
    if more is None or len(known) < 2:
        return set()
    target = max(known) if more else min(known)
    return {place for place, value in enumerate(values) if value == target}


def reference(project: Project) -> Run | None:
    """Return the untrained baseline that runs are compared with, where there is one."""
    random = [run for run in project.runs if run.baseline and flat(run.settings).get("baseline.kind") == "random"]
    return next((run for run in random if run.name == "untrained"), random[0] if random else None)


def check_some(project: Project) -> None:
    """Refuse a project in which nothing has run.

    Raises:
        UserError: naming the folder.
    """
    if not project.runs:
        raise UserError(f"{project.folder}: holds no runs; a project's folder has runs/<run>/… below it")

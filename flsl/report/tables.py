"""Figures of all runs as tables, and which of them count."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from flsl.report.published import COCO
from flsl.runtime.ablations import membership, point_label, read_ablations
from flsl.runtime.errors import UserError, nearest
from flsl.runtime.results import Project, Run, flat, read_project

# (what it is, its name; `@20` stands for the nearest k that a run evaluated), in the order of the tables
_HEADLINES = (
    ("k-NN top-1", "knn/top1@20"),
    ("linear top-1", "linear/top1"),
    ("aligned k-NN patch top-1", "aligned_knn/patch_top1@20"),
    ("COCO box AP", "coco/bbox/AP"),
    ("COCO box AP50", "coco/bbox/AP50"),
    ("COCO mask AP", "coco/segm/AP"),
    ("UAVDT AP@0.7", "uavdt/AP@0.7"),
    ("DAVIS J&F", "davis/J&F-Mean"),
)
_NO_RESULTS = ("pretrain", "baseline", "features")
_DESCRIPTIONS = (*_NO_RESULTS, "visualize")  # stages whose figures describe an encoder, and do not judge it
_LESS_IS_BETTER = re.compile(r"loss|decay|error", re.IGNORECASE)
_NEITHER = re.compile(r"seconds|per_second|images|frames|parameters|steps|count", re.IGNORECASE)


@dataclass(frozen=True)
class Headline:
    """A figure that a run is judged by; all of them are percentages, and more is better."""

    label: str
    metric: str


def load_results(path: Path | str, ablation: str | None = None) -> pd.DataFrame:
    """Read a project's results as a tidy table, one row a figure.

    Args:
        path: ``results/<project>``.
        ablation: only the points of this ablation, and of the settings only those that it varies.

    Returns:
        columns ``project``, ``run``, ``baseline`` (whether the encoder was not pretrained here), ``stage``,
        ``metric``, ``value`` (percentages where they are accuracies or precisions), ``seed``, ``ablations`` (the names
        of those that the run is a point of, with commas between), and one a setting by dotted name: all of
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
    varied = {name for run in project.runs for name in _params(run)}
    rows: list[dict[str, Any]] = []
    for run in project.runs:
        own = _params(run) if run.baseline else _complete(run, varied)
        params = {name: _cell(value) for name, value in own.items()}
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


def _cell(value: Any) -> Any:
    """Return a setting's value as a table's cell: what is no single value as JSON text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def wide(project: Project) -> pd.DataFrame:
    """Return one row a run: ``run``, ``kind``, ``seed``, the settings that differ between runs, and all figures.

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


def changed_settings(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return for each run (baselines have none) the settings that are not the same in all runs, lists as JSON text."""
    pretrainings = [run for run in runs if not run.baseline]
    varied = {name for run in pretrainings for name in _params(run)}
    own = {run.name: {} if run.baseline else _complete(run, varied) for run in runs}
    pretrained = [values for values in own.values() if values]
    names = {name for values in pretrained for name in values}
    differ = {name for name in names if len({json.dumps(values.get(name)) for values in pretrained}) > 1}
    return {
        run: {
            name: json.dumps(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in differ
        }
        for run, values in own.items()
    }


def headlines(runs: Iterable[Iterable[str]]) -> list[Headline]:
    """Return the figures that runs are judged by, of those that there are.

    Args:
        runs: the names of each run's figures. Runs that were evaluated with other numbers of neighbours are judged by
            figures of their own.
    """
    each = [set(metrics) for metrics in runs]
    found = []
    for label, metric in _HEADLINES:
        base, _, usual = metric.partition("@")
        if usual.isdecimal():
            nearest = {k for known in each if (k := _nearest(known, f"{base}@", int(usual))) is not None}
            found += [Headline(f"{label} (k = {k})", f"{base}@{k}") for k in sorted(nearest)]
        elif any(metric in known for known in each):
            found.append(Headline(label, metric))
    return found


def _nearest(metrics: Iterable[str], start: str, usual: int) -> int | None:
    """Return the k nearest to the usual one, of the figures called ``<start><k>``; the smaller of two as near."""
    endings = (name.removeprefix(start) for name in metrics if name.startswith(start))
    ks = [int(ending) for ending in endings if ending.isdecimal()]
    return min(ks, key=lambda k: (abs(k - usual), k), default=None)


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


def ordered(metrics: Iterable[str]) -> list[str]:
    """Sort figures by stage, in the order of the headlines, and within a stage as they were written."""
    stages = list(_NO_RESULTS) + list(dict.fromkeys(metric.split("/")[0] for _, metric in _HEADLINES))

    def place(metric: str) -> tuple[int, str]:
        stage = metric.split("/")[0]
        return (stages.index(stage), "") if stage in stages else (len(stages), stage)

    return sorted(metrics, key=place)


def check_some(project: Project) -> None:
    """Refuse a project in which nothing has run.

    Raises:
        UserError: naming the folder.
    """
    if not project.runs:
        raise UserError(f"{project.folder}: holds no runs; a project's folder has runs/<run>/… below it")


def _complete(run: Run, varied: set[str]) -> dict[str, Any]:
    """Return a run's settings with those that another run changes, which have a value in this one as well."""
    own = _params(run)
    missing = varied - own.keys()
    everything = flat(run.config) if missing else {}
    return own | {name: everything[name] for name in sorted(missing) if name in everything}


def _params(run: Run) -> dict[str, Any]:
    settings = flat(run.settings)
    settings.pop("seed", None)
    return settings

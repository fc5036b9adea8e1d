"""Tables of ablations: each point's figures over its seeds, the base and the best marked, and what is missing."""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from flsl.report.markdown import code, table
from flsl.report.page import page as html_page
from flsl.report.stale import Stale, stale_stages
from flsl.report.tables import best, reference
from flsl.runtime.ablations import FOLDER, Ablation, Point, log_of_missing, log_tail, point_label, value_text
from flsl.runtime.compared import Headline, headlines
from flsl.runtime.outputs import atomic, write_text
from flsl.runtime.progress import counted
from flsl.runtime.results import FEATURES, PRETRAIN, Project, Run

CSV, MARKDOWN, HTML, FIGURE = "table.csv", "table.md", "table.html", "figure.png"


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        values: one a seed that has it.
        planned: how many seeds should have it; 0 where the point is evaluated in another way.
    """

    values: list[float]
    planned: int

    @property
    def mean(self) -> float | None:
        """The mean; ``None`` where no seed has the figure."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (over n - 1); ``None`` with less than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One point with all its seeds.

    Attributes:
        label: its name, or its values.
        points: one a seed.
        figures: by metric.
    """

    label: str
    points: list[Point]
    figures: Mapping[str, Spread]

    @property
    def base(self) -> bool:
        """Whether it varies nothing."""
        return self.points[0].base

    @property
    def values(self) -> Mapping[str, Any]:
        """The values of the varied settings."""
        return self.points[0].values


@dataclass(frozen=True)
class Missing:
    """A point's stage that has no figures."""

    label: str
    point: Point
    stages: list[str]
    log: Path | None


@dataclass(frozen=True)
class AblationTable:
    """What an ablation has come to.

    Attributes:
        ablation: what it consists of.
        heads: the headline figures of its stages.
        rows: its points in the config's order.
        missing: what has no figures.
        untrained: the untrained encoder, to compare with, where there is one.
        stale: results of its points that their stages would not make now, or that do not compare with the base's.
    """

    ablation: Ablation
    heads: list[Headline]
    rows: list[Row]
    missing: list[Missing]
    untrained: Run | None
    stale: list[Stale]

    def means(self, metric: str) -> list[float | None]:
        """Return the rows' means of a figure."""
        return [row.figures[metric].mean for row in self.rows]

    def best(self, metric: str) -> set[int]:
        """Return the places of the best rows; all headline figures are better when they are larger."""
        return best(self.means(metric), True)


def tabulate(project: Project, ablation: Ablation) -> AblationTable:
    """Gather the figures of an ablation's points."""
    runs = {run.name: run for run in project.runs}
    groups: dict[str, list[Point]] = {}
    for point in ablation.points:
        groups.setdefault(json.dumps([point.name, point.values]), []).append(point)
    figures = {point.run: runs[point.run].figures if point.run in runs else {} for point in ablation.points}
    heads = [head for head in headlines(figures.values()) if head.metric.partition("/")[0] in ablation.stages]
    rows = [
        Row(point_label(points[0]), points, {head.metric: _spread(head.metric, points, runs) for head in heads})
        for points in groups.values()
    ]
    missing = []
    for row in rows:
        for point in row.points:
            complete = {} if point.run not in runs else runs[point.run].stages
            absent = [s for s in ablation.stages if s not in complete or complete[s].record is None]
            if absent:
                log = log_of_missing(project.folder, point, absent[0])
                missing.append(Missing(row.label, point, absent, log))
    stages = {PRETRAIN, FEATURES, *ablation.stages}
    stale = [one for one in stale_stages(project) if one.run in figures and one.stage in stages]
    return AblationTable(ablation, heads, rows, missing, reference(project), stale)


def _spread(metric: str, points: Sequence[Point], runs: Mapping[str, Run]) -> Spread:
    """Gather a figure over a point's seeds; one whose stage is complete without it was not to have it."""
    stage, values, planned = metric.partition("/")[0], [], 0
    for point in points:
        run = runs.get(point.run)
        own = run.stages.get(stage) if run is not None else None
        if run is not None and metric in run.figures:
            values.append(run.figures[metric])
            planned += 1
        elif own is None or own.record is None:
            planned += 1
    return Spread(values, planned)


def short(axis: str) -> str:
    """Return a setting's name without the section that nearly all have."""
    return axis.removeprefix("pretrain.")


def frame(found: AblationTable) -> pd.DataFrame:
    """Return one row per point: the varied settings, ``base``, ``seeds``, ``runs``, and for each figure mean, sample
    deviation, number of seeds and whether it is the best; ``missing`` names what there is none of."""
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(found.rows):
        cells: dict[str, Any] = {"point": row.label}
        cells |= {axis: value if _plain(value) else json.dumps(value) for axis, value in row.values.items()}
        cells |= {"base": row.base, "seeds": " ".join(str(point.seed) for point in row.points)}
        cells["runs"] = " ".join(point.run for point in row.points)
        for head in found.heads:
            spread = row.figures[head.metric]
            cells[f"{head.metric} mean"] = spread.mean
            cells[f"{head.metric} std"] = spread.deviation
            cells[f"{head.metric} n"] = len(spread.values)
            cells[f"{head.metric} best"] = place in found.best(head.metric)
        own = [one for one in found.missing if one.point in row.points]
        cells["missing"] = "; ".join(f"{one.point.run}: {', '.join(one.stages)}" for one in own)
        rows.append(cells)
    return pd.DataFrame(rows, dtype=object)


def page(found: AblationTable, project: Project) -> str:
    """Return an ablation's table as a Markdown page."""
    ablation = found.ablation
    parts = [f"# Ablation {ablation.name} of {project.name}", ablation.caption, _about(found), _table(found)]
    if found.heads:
        parts.append(f"![{ablation.name}]({FIGURE})")
    parts += ["## What is missing", _missing(found)]
    if found.stale:
        lines = [f"- {code(one.run)}, {one.stage}: {'; '.join(one.reasons)}" for one in found.stale]
        note = "Made before what is named here changed, or with settings that are not those of the base."
        parts += ["## What is stale", note, "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(found: AblationTable) -> str:
    ablation = found.ablation
    sentences = ["The best of a column is bold."]
    if any(len(row.points) > 1 for row in found.rows):
        sentences.append(
            "Means over the seeds ± the sample standard deviation; a point with one seed has none, so that its "
            "difference to another may be chance."
        )
    else:
        sentences.append("Each point has one seed, so that small differences may be chance.")
    if ablation.shared:
        shared = ", ".join(f"{code(name)} = {value_text(value)}" for name, value in ablation.shared.items())
        sentences.append(f"In all points: {shared}.")
    if not any(row.base for row in found.rows):
        sentences.append("The experiment's own settings are not among the points.")
    return " ".join(sentences)


def _table(found: AblationTable) -> str:
    named = any(row.points[0].name for row in found.rows)
    seeded = any(len(row.points) > 1 or row.points[0].seed != found.rows[0].points[0].seed for row in found.rows)
    axes = found.ablation.axes
    header = ["point"] * (named or not axes) + [code(short(axis)) for axis in axes] + ["seeds"] * seeded
    columns = {head.metric: found.best(head.metric) for head in found.heads}
    rows = []
    for place, row in enumerate(found.rows):
        cells = [row.label] * (named or not axes) + [value_text(row.values[axis]) for axis in axes]
        if row.base:
            cells[0] += " (base)"
        cells += [", ".join(str(point.seed) for point in row.points)] * seeded
        cells += [_cell(row.figures[metric], place in chosen) for metric, chosen in columns.items()]
        rows.append(cells + ([] if found.heads else ["missing"]))
    if found.untrained is not None and found.heads:
        values = [found.untrained.figures.get(head.metric) for head in found.heads]
        name = f"{found.untrained.name} (baseline)"
        rest = [""] * (len(header) - 1)
        rows.append([name, *rest, *("—" if value is None else f"{value:.2f}" for value in values)])
    return table([*header, *([head.label for head in found.heads] or ["figures"])], rows)


def _cell(spread: Spread, chosen: bool) -> str:
    if spread.mean is None:
        return "missing" if spread.planned else "—"
    text = f"{spread.mean:.2f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.2f}")
    text = f"**{text}**" if chosen else text
    return text if len(spread.values) == spread.planned else f"{text} ({len(spread.values)} of {spread.planned} seeds)"


def _missing(found: AblationTable) -> str:
    if not found.missing:
        return f"Nothing: {counted(len(found.rows), 'point')}, all with every figure."
    parts = []
    for one in found.missing:
        what = f"- {one.label}, seed {one.point.seed} (run {code(one.point.run)}): no {', '.join(one.stages)}"
        if one.log is None:
            parts.append(f"{what}; not begun")
            continue
        tail = log_tail(one.log)
        fence = "`" * max(3, 1 + max((_backquotes(line) for line in tail), default=0))
        block = "\n".join(f"  {line}" for line in (f"{fence}text", *tail, fence)) if tail else "  (it is empty)"
        parts.append(f"{what}; the end of its log `{one.log}`:\n\n{block}")
    return "\n".join(parts)


def _backquotes(line: str) -> int:
    """Return the length of the longest row of backquotes."""
    longest = 0
    while "`" * (longest + 1) in line:
        longest += 1
    return longest


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def write_ablation(project: Project, ablation: Ablation) -> list[Path]:
    """Write an ablation's ``table.csv``, ``table.md``, ``table.html`` and ``figure.png``; return their paths.

    Raises:
        UserError: when a file cannot be written.
    """
    from flsl.report.ablation_figures import plot_ablation

    folder = project.folder / FOLDER / ablation.name
    found = tabulate(project, ablation)
    with atomic(folder / CSV) as temporary:
        frame(found).to_csv(temporary, index=False)
    plot_ablation(found, [folder / FIGURE])
    text = page(found, project)
    write_text(folder / MARKDOWN, text)
    # the browser's page needs no other file
    drawn = base64.b64encode((folder / FIGURE).read_bytes()).decode()
    whole = text.replace(f"]({FIGURE})", f"](data:image/png;base64,{drawn})")
    write_text(folder / HTML, html_page(whole, f"Ablation {ablation.name} of {project.name}"))
    return [folder / name for name in (CSV, MARKDOWN, HTML, FIGURE)]

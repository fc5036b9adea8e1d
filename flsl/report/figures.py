"""Training curves and bars of the headline figures, for PNG and SVG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flsl.report.drawing import COLOURS, LETTER, figure_files
from flsl.report.tables import best, check_some, more_is_better, reference
from flsl.runtime.compared import headlines
from flsl.runtime.errors import UserError, nearest
from flsl.runtime.history import read_history
from flsl.runtime.progress import warn
from flsl.runtime.results import HISTORY, PRETRAIN, Project, Run, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ("-", "--", ":", "-.")
_DISTINCT = len(COLOURS) * len(_LINES)
_POINTS = 100
_PANELS = (
    ("loss", "loss", "nats, weighted sum"),
    ("intra_view", "intra-view loss", "2 − 2 cos"),
    ("inter_view", "inter-view loss", "nats"),
    ("volume", "volume (VMR)", "nats"),
    ("learning_rate", "learning rate", "per step"),
    ("perplexity", "perplexity of the assignments", "prototypes"),
    ("prototypes_used", "prototypes used", "%"),
    ("teacher_entropy", "teacher's entropy", "nats"),
    ("feature_variance", "variance of the features", "mean over channels"),
    ("position_information", "position explained by assignment", "% of its entropy"),
    ("online_knn", "online k-NN top-1", "%"),
    ("images_per_second", "throughput", "images / s"),
)


@dataclass(frozen=True)
class Curve:
    """One quantity over training: ``x`` in epochs (steps where the history has no epochs)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


def plot_curves(project: Project, outputs: Sequence[Path], names: Sequence[str] = ()) -> None:
    """Draw loss parts, learning rate and signs of health of all runs, or of those named, over training.

    Raises:
        UserError: when there is no such run, or a file cannot be written.
    """
    check_some(project)
    known = {run.name: run for run in project.runs}
    for name in names:
        if name not in known:
            raise UserError(f"--run: {project.folder} has no run '{name}'{nearest(name, known)}")
    shown: list[str] = []
    found: list[dict[str, Curve]] = [{} for _ in _PANELS]
    by_epoch = True
    for run in project.runs:
        # one history at a time: those of hundreds of long runs are gigabytes
        if (names and run.name not in names) or not (rows := _rows(run)):
            continue
        shown.append(run.name)
        by_epoch &= is_number(rows[0].get("epoch"))
        for curves, (key, _, _) in zip(found, _PANELS, strict=True):
            if (curve := _curve(rows, key)) is not None:
                curves[run.name] = curve
    panels = [(title, unit, curves) for curves, (_, title, unit) in zip(found, _PANELS, strict=True) if curves]
    if not panels:
        _nothing(outputs, f"no run of {project.name} has a {PRETRAIN}/{HISTORY} yet")
        return
    columns = min(4, math.ceil(math.sqrt(len(panels))))
    lines = math.ceil(len(panels) / columns)
    keyed = len(shown) if 1 < len(shown) <= _DISTINCT else 0
    # so many names stand side by side in the key, each behind its line
    abreast = max(1, min(6, int(3.5 * columns / (LETTER * max(map(len, shown)) + 0.6))))
    with figure_files((3.5 * columns, 2.4 * lines + 0.25 * math.ceil(keyed / abreast) + 0.6), outputs) as figure:
        one = f", run {shown[0]}" if len(shown) == 1 else ""
        figure.suptitle(f"FLSL pretraining: {project.name}{one}", fontsize=12)
        axes = figure.subplots(lines, columns, squeeze=False)
        for place, (title, unit, curves) in enumerate(panels):
            axis = axes.flat[place]
            _panel(axis, title, unit, curves, shown)
            if place + columns >= len(panels):
                axis.set_xlabel("epochs" if by_epoch else "steps", fontsize=9)
        for unused in axes.flat[len(panels) :]:
            unused.set_axis_off()
        if keyed:
            handles = [
                axes.flat[0].plot([], [], label=name, **_style(place, len(shown)))[0]
                for place, name in enumerate(shown)
            ]
            ncols = min(abreast, keyed)
            figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)
        elif len(shown) > _DISTINCT:
            figure.supxlabel(f"{len(shown)} runs, from dark ({shown[0]}) to light ({shown[-1]})", fontsize=9)


def plot_bars(project: Project, outputs: Sequence[Path]) -> None:
    """Draw the headline figures of all runs as bars, baselines hatched, the untrained encoder as a line.

    Raises:
        UserError: when the project holds no runs, or a file cannot be written.
    """
    check_some(project)
    heads = headlines(run.figures for run in project.runs)
    runs = [run for run in project.runs if any(head.metric in run.figures for head in heads)]
    if not heads:
        _nothing(outputs, f"no run of {project.name} is evaluated yet")
        return
    base = reference(project)
    lines = 1 if len(runs) > 12 else math.ceil(len(heads) / 4)
    columns = math.ceil(len(heads) / lines)
    names = LETTER * max(len(_label(run)) for run in runs)
    with figure_files((3.6 * columns + max(1.0, names), (0.3 * len(runs) + 1.0) * lines + 0.8), outputs) as figure:
        figure.suptitle(f"Headline figures: {project.name}", fontsize=12)
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True, gridspec_kw={"wspace": 0.12})
        for axis, head in zip(axes.flat, heads, strict=False):
            _bars(axis, runs, head.metric, base)
            axis.set_title(head.label, fontsize=10)
            axis.set_xlabel("% (more is better)", fontsize=9)
        for unused in axes.flat[len(heads) :]:
            unused.set_axis_off()
        if base is not None:
            line = axes.flat[0].plot([], [], "k--", linewidth=1, label=f"{base.name}: the encoder before pretraining")
            figure.legend(handles=line, loc="outside lower center", frameon=False, fontsize=9)


def _nothing(outputs: Sequence[Path], reason: str) -> None:
    """Say on the figure that there is nothing to draw: a project without is no mistake."""
    warn(f"{reason}: the figure is empty")
    with figure_files((6, 1.5), outputs) as figure:
        figure.text(0.5, 0.5, reason, ha="center", va="center")


def _panel(axis: Axes, title: str, unit: str, curves: dict[str, Curve], names: list[str]) -> None:
    for name, curve in curves.items():
        marker = "o" if len(curve.x) <= 30 else None
        axis.plot(curve.x, curve.y, marker=marker, markersize=2.5, **_style(names.index(name), len(names)))
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(unit, fontsize=8)
    axis.yaxis.set_major_formatter("{x:.4g}")
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _bars(axis: Axes, runs: list[Run], metric: str, base: Run | None) -> None:
    values = [run.figures.get(metric) for run in runs]
    chosen = best(values, more_is_better(metric))
    axis.barh(
        range(len(runs)),
        [value or 0.0 for value in values],
        height=0.7,
        color=["#BBBBBB" if run.baseline else COLOURS[0] for run in runs],
        hatch=["////" if run.baseline else "" for run in runs],
        edgecolor="white",
    )
    for place, value in enumerate(values):
        # the figures stand in a column of their own, clear of bars and line
        axis.annotate(
            "—" if value is None else f"{value:.1f}",
            (1.0, place),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=8,
            weight="bold" if place in chosen else "normal",
        )
    if base is not None and metric in base.figures:
        axis.axvline(base.figures[metric], color="black", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(runs)), [_label(run) for run in runs], fontsize=8)
    axis.set_ylim(len(runs) - 0.4, -0.6)
    axis.set_xlim(0, 1.25 * max((value for value in values if value), default=1.0))
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _label(run: Run) -> str:
    return f"{run.name} (baseline)" if run.baseline else run.name


def _style(place: int, count: int) -> dict[str, Any]:
    """Return a run's colour and line; more runs than these tell apart go from dark to light."""
    if count <= _DISTINCT:
        colour: Any = COLOURS[place % len(COLOURS)]
        return {"color": colour, "linestyle": _LINES[place // len(COLOURS)], "linewidth": 1.4}
    import matplotlib as mpl

    return {"color": mpl.colormaps["viridis"](place / (count - 1)), "linestyle": "-", "linewidth": 0.8}


def _rows(run: Run) -> list[dict[str, Any]]:
    path = run.folder / PRETRAIN / HISTORY
    try:
        return read_history(path)
    except (OSError, UnicodeDecodeError) as error:
        warn(f"{path}: cannot be read ({error}); its curves are left out")
        return []


def _curve(rows: list[dict[str, Any]], key: str) -> Curve | None:
    """Return the curve of a figure that the history has, averaged to at most 100 points."""
    pairs = [
        (row["epoch"] if is_number(row.get("epoch")) else row["step"], row[key])
        for row in rows
        if is_number(row.get(key))
    ]
    if not pairs:
        return None
    points = np.array(pairs, dtype=np.float64)
    # parts of equal length, so that the noise that is left is the same all along
    length = math.ceil(len(points) / _POINTS)
    means = np.stack([points[start : start + length].mean(0) for start in range(0, len(points), length)])
    return Curve(means[:, 0], means[:, 1])

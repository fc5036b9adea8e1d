"""The figure of an ablation: lines over one numeric setting, a heat map over two, bars otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from flsl.report.ablations import AblationTable, Row, Spread, short
from flsl.report.drawing import COLOURS, LETTER, figure_files
from flsl.runtime.ablations import value_text
from flsl.runtime.compared import Headline
from flsl.runtime.results import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 50  # so many letters fit between the first and the last value of a panel
_LINE, _BASE, _BEST, _LACKING = COLOURS[0], COLOURS[6], COLOURS[1], COLOURS[3]


def kind_of(found: AblationTable) -> str:
    """Return how an ablation is drawn: ``lines``, ``map`` or ``bars``."""
    ablation = found.ablation
    numeric = all(is_number(value) for row in found.rows for value in row.values.values())
    if ablation.categorical or not numeric or any(row.points[0].name for row in found.rows):
        return "bars"
    if len(ablation.axes) == 1 and len(found.rows) > 1:
        return "lines"
    if len(ablation.axes) == 2:
        sides = [len({row.values[axis] for row in found.rows}) for axis in ablation.axes]
        if min(sides) > 1 and math.prod(sides) == len(found.rows):
            return "map"
    return "bars"


def plot_ablation(found: AblationTable, outputs: Sequence[Path]) -> None:
    """Draw an ablation, a panel a headline figure; base, best and missing points are marked.

    Raises:
        UserError: when a file cannot be written.
    """
    kind, heads = kind_of(found), found.heads
    columns = min(3, max(1, len(heads)))
    lines = max(1, math.ceil(len(heads) / columns))
    width = {"lines": 4.2, "map": 4.6, "bars": _bars_width(found)}[kind]
    height = 0.32 * len(found.rows) + 1.3 if kind == "bars" else 3.2
    title = fill(f"ablation {found.ablation.name}", int(width * columns / LETTER * 8 / 12))
    key = _key(found, kind, int(width * columns / LETTER))
    # a line of each stands in the half inch
    more = 0.2 * title.count("\n") + 0.14 * key.count("\n")
    with figure_files((width * columns, max(2.4, height) * lines + 0.5 + more), outputs) as figure:
        figure.suptitle(title, fontsize=12)
        axes = figure.subplots(lines, columns, squeeze=False)
        draw = {"lines": _lines, "map": _map, "bars": _bars}[kind]
        for axis, head in zip(axes.flat, heads, strict=False):
            axis.set_title(head.label, fontsize=10)
            axis.tick_params(labelsize=8)
            draw(axis, found, head)
        for unused in axes.flat[len(heads) :]:
            unused.set_axis_off()
        if not heads:
            axes.flat[0].text(0.5, 0.5, "no point has figures yet", ha="center", va="center", fontsize=10)
        else:
            figure.supxlabel(key, fontsize=8)


def _key(found: AblationTable, kind: str, letters: int) -> str:
    """Say what the marks mean, of those that there are, in lines of so many letters."""
    base = {"lines": "square", "map": "frame", "bars": "(base)"}[kind]
    words = [f"{base}: base"] if any(row.base for row in found.rows) else []
    words.append({"lines": "star: best", "map": "star: best", "bars": "bold: best"}[kind])
    if any(len(row.points) > 1 for row in found.rows):
        words += ["±: sample deviation over seeds"] if kind == "map" else ["whiskers: sample deviation", "dots: seeds"]
    known = {} if found.untrained is None else found.untrained.figures
    if found.untrained is not None and kind != "map" and any(head.metric in known for head in found.heads):
        words.append(f"dashed: {found.untrained.name}")
    lines = [words[0]]
    for word in words[1:]:
        whole = f"{lines[-1]} · {word}"
        lines = [*lines[:-1], whole] if len(whole) <= letters else [*lines, word]
    return "\n".join(lines)


def _lines(axis: Axes, found: AblationTable, head: Headline) -> None:
    """Draw a figure over one numeric setting: means with deviations, each seed a dot."""
    (name,) = found.ablation.axes
    chosen = {id(found.rows[place]) for place in found.best(head.metric)}
    rows = sorted(found.rows, key=lambda row: float(row.values[name]))
    labels = [value_text(row.values[name]) for row in rows]
    places = _scale(axis, [float(row.values[name]) for row in rows], labels, short(name))
    axis.set_ylabel("%", fontsize=9)
    known = [(place, row) for place, row in zip(places, rows, strict=True) if row.figures[head.metric].values]
    spreads = [row.figures[head.metric] for _, row in known]
    axis.errorbar(
        [place for place, _ in known],
        [np.mean(spread.values) for spread in spreads],
        yerr=[np.nan if spread.deviation is None else spread.deviation for spread in spreads],
        color=_LINE,
        linewidth=1.2,
        capsize=3,
        marker="o",
        markersize=4,
    )
    for place, row in known:
        spread = row.figures[head.metric]
        mean = float(np.mean(spread.values))
        if len(spread.values) > 1:
            axis.plot([place] * len(spread.values), spread.values, ".", color=_LINE, alpha=0.5, markersize=4)
        if row.base:
            axis.plot(place, mean, "s", markersize=10, markerfacecolor="none", markeredgecolor=_BASE)
        if id(row) in chosen:
            axis.plot(place, mean, "*", color=_BEST, markersize=11, zorder=5)
    _untrained(axis, found, head, "h")
    for place, row in zip(places, rows, strict=True):
        if len(row.figures[head.metric].values) < row.figures[head.metric].planned:
            text = "missing" if not row.figures[head.metric].values else "seed missing"
            transform = axis.get_xaxis_transform()
            mark = axis.text(
                place, 0.03, text, color=_LACKING, rotation=90, ha="center", fontsize=8, transform=transform
            )
            # it lies within the panel, which need not make room for it
            mark.set_in_layout(False)
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)


def _scale(axis: Axes, values: list[float], labels: list[str], name: str) -> list[float]:
    """Set up the scale of a varied setting, one value beside the next where their labels would overlap on a true one;
    return the values' places."""
    logarithmic = values[0] > 0 and values[-1] >= 8 * values[0]
    steps = np.diff(np.log(values) if logarithmic else values)
    needed = [(len(one) + len(other)) / 2 + 1 for one, other in pairwise(labels)]
    upright = False
    if any(step * _ROW <= letters * sum(steps) for step, letters in zip(steps, needed, strict=True)):
        values, logarithmic, name = [float(place) for place in range(len(values))], False, f"{name} (evenly spaced)"
        upright = max(needed) * len(steps) > _ROW
    if logarithmic:
        axis.set_xscale("log")
        axis.minorticks_off()
        margin = (values[-1] / values[0]) ** 0.08
        axis.set_xlim(values[0] / margin, values[-1] * margin)
    else:
        margin = 0.08 * (values[-1] - values[0])
        axis.set_xlim(values[0] - margin, values[-1] + margin)
    axis.set_xticks(values, labels, rotation=90 if upright else 0)
    axis.set_xlabel(name, fontsize=9)
    return values


def _map(axis: Axes, found: AblationTable, head: Headline) -> None:
    """Draw a figure over two numeric settings: the mean as colour and number."""
    from matplotlib.patches import Rectangle

    down, along = found.ablation.axes
    ys, xs = (sorted({row.values[name] for row in found.rows}) for name in (down, along))
    grid = np.full((len(ys), len(xs)), np.nan)
    for row, mean in zip(found.rows, found.means(head.metric), strict=True):
        if mean is not None:
            grid[ys.index(row.values[down]), xs.index(row.values[along])] = mean
    axis.set_facecolor("#EEEEEE")
    axis.imshow(grid, cmap="cividis", aspect="auto", origin="lower")
    low, high = (np.nanmin(grid), np.nanmax(grid)) if np.isfinite(grid).any() else (0.0, 0.0)
    chosen = found.best(head.metric)
    for place, row in enumerate(found.rows):
        y, x = ys.index(row.values[down]), xs.index(row.values[along])
        spread = row.figures[head.metric]
        if spread.mean is None:
            text = "missing" if spread.planned else "—"
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color=_LACKING)
        else:
            text = f"{spread.mean:.1f}" + (f"\n± {spread.deviation:.1f}" if spread.deviation is not None else "")
            lacking = f"\n{len(spread.values)} of {spread.planned}" if len(spread.values) < spread.planned else ""
            text = ("★ " if place in chosen else "") + text + lacking
            dark = spread.mean <= (low + high) / 2 and high > low
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        if row.base:
            axis.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor="red", linewidth=1.8))
    axis.set_xticks(range(len(xs)), [value_text(value) for value in xs])
    axis.set_yticks(range(len(ys)), [value_text(value) for value in ys])
    axis.set_xlabel(short(along), fontsize=9)
    axis.set_ylabel(short(down), fontsize=9)


def _bars_width(found: AblationTable) -> float:
    """Return a panel's width, with room for bars between their names and figures."""
    names = max(len(_label(row)) for row in found.rows)
    figures = max((len(_figure(spread)) for row in found.rows for spread in row.figures.values()), default=0)
    return min(6.0, max(4.6, 3.2 + LETTER * (names + figures)))


def _bars(axis: Axes, found: AblationTable, head: Headline) -> None:
    """Draw a figure of points that have no place on a scale."""
    rows, chosen = found.rows, found.best(head.metric)
    spreads = [row.figures[head.metric] for row in rows]
    axis.barh(
        range(len(rows)),
        [spread.mean or 0.0 for spread in spreads],
        xerr=[np.nan if spread.deviation is None else spread.deviation for spread in spreads],
        height=0.7,
        color=[COLOURS[4] if row.base else _LINE for row in rows],
        error_kw={"capsize": 3, "elinewidth": 1},
    )
    for place, spread in enumerate(spreads):
        if len(spread.values) > 1:
            axis.plot(spread.values, [place] * len(spread.values), ".", color="black", markersize=4)
        axis.annotate(
            _figure(spread),
            (1.0, place),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_LACKING if spread.mean is None else "black",
            weight="bold" if place in chosen else "normal",
        )
    _untrained(axis, found, head, "v")
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    ends = [(spread.mean or 0.0) + (spread.deviation or 0.0) for spread in spreads]
    # whiskers and dots end within; the figures stand in a column of their own beside the panel
    axis.set_xlim(0, 1.05 * (max(*ends, *(value for spread in spreads for value in spread.values), 0.0) or 1.0))
    axis.set_xlabel("%", fontsize=9)
    if not any(row.points[0].name for row in rows):
        axis.set_ylabel("\n".join(short(name) for name in found.ablation.axes), fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(spread: Spread) -> str:
    if spread.mean is None:
        return "missing" if spread.planned else "—"
    lacking = f" ({len(spread.values)} of {spread.planned})" if len(spread.values) < spread.planned else ""
    return f"{spread.mean:.1f}{lacking}"


def _label(row: Row) -> str:
    # names and lists often differ at their ends
    text = row.label if len(row.label) <= 40 else f"{row.label[:20]}…{row.label[-19:]}"
    return f"{text} (base)" if row.base else text


def _untrained(axis: Axes, found: AblationTable, head: Headline, way: str) -> None:
    """Draw the untrained encoder's figure as a dashed line."""
    value = found.untrained.figures.get(head.metric) if found.untrained is not None else None
    if value is not None:
        (axis.axhline if way == "h" else axis.axvline)(value, color="black", linestyle="--", linewidth=1)

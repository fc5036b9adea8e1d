"""Words, numbers and tables of a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from flsl.report.tables import best, more_is_better
from flsl.runtime.results import Run

SHOWN = 10
"""How many of many are named."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a pipe table; the cells' own pipes are escaped."""
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    titles = [name.replace("|", "\\|") for name in header]
    text: str = tabulate(escaped, titles, tablefmt="pipe", disable_numparse=True)
    return text


def cells(values: Sequence[float | None], metric: str) -> list[str]:
    """Return a figure's values in all runs as cells, the best of them bold."""
    more = more_is_better(metric)
    chosen = best(values, more)
    shown = ["—" if value is None else f"{value:.2f}" if more is not None else f"{value:.5g}" for value in values]
    return [f"**{text}**" if place in chosen else text for place, text in enumerate(shown)]


def name_of(run: Run) -> str:
    """Return a run's name; a baseline is called one."""
    return f"{code(run.name)} (baseline)" if run.baseline else code(run.name)


def code(text: str) -> str:
    """Return a name as code."""
    return f"`{text}`"


def listed(names: Sequence[str]) -> str:
    """Return names one after the other, of many the first."""
    shown = ", ".join(code(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def points(gain: float | None) -> str:
    """Return a difference in percentage points, with its sign."""
    return "—" if gain is None else f"{gain:+.2f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"

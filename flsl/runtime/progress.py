"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

console = Console(stderr=True, highlight=False, soft_wrap=True)
_SECONDS_BETWEEN_LINES = 10.0


def say(message: str) -> None:
    """Print a line to standard error (standard output is for results)."""
    console.print(message, markup=False)


def warn(message: str) -> None:
    """Print a warning line to standard error."""
    console.print(f"warning: {message}", style="yellow", markup=False)


def counted(number: int, what: str, ending: str = "s") -> str:
    """Return ``1 run``, ``2 runs``."""
    return f"{number} {what}{'' if number == 1 else ending}"


class Bar:
    """A task's progress; ``advance`` it and set its ``note`` (loss, images/s, …)."""

    def __init__(self, description: str, total: int, done: int = 0, enabled: bool = True) -> None:
        """Show ``description``, counting from ``done`` to ``total``; a bar that is not enabled prints nothing."""
        self._description, self._total, self._done, self._note = description, total, done, ""
        self._first = done
        self._started = self._last_line = time.monotonic()
        self._enabled = enabled
        self._progress: Progress | None = None
        if enabled and sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._progress.add_task(description, total=total, completed=done, note="")
            self._progress.start()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more units as done and, where given, show ``note`` beside them."""
        self._done += count
        if note is not None:
            self._note = note
        if self._progress is not None:
            self._progress.update(self._task, advance=count, note=self._note)
        elif self._enabled and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            say(self._line())

    def _line(self) -> str:
        elapsed = time.monotonic() - self._started
        counted = self._done - self._first
        left = elapsed / counted * (self._total - self._done) if counted else float("nan")
        eta = f", {left:.0f} s left" if left == left else ""
        return f"{self._description}: {self._done}/{self._total} ({elapsed:.0f} s{eta}) {self._note}".rstrip()

    def close(self) -> None:
        """End the bar; in a log file a last line says how far it came."""
        if self._progress is not None:
            self._progress.stop()
        elif self._enabled:
            say(self._line())


@contextlib.contextmanager
def bar(description: str, total: int, done: int = 0, enabled: bool = True) -> Iterator[Bar]:
    """Show a :class:`Bar` while the body runs."""
    shown = Bar(description, total, done, enabled)
    try:
        yield shown
    finally:
        shown.close()


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield ``items``, counting them on a bar."""
    with bar(description, total) as shown:
        for item in items:
            yield item
            shown.advance()

"""A figure as it is laid out when it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


def figure_of(draw: Callable[[Sequence[Path]], None], folder: Path) -> Figure:
    """Return the figure that ``draw`` writes to the files that it is given."""
    figures: list[Figure] = []
    write_figure = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        write_figure(figure, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        draw([folder / "figure.png"])
    figures[0].draw_without_rendering()
    return figures[0]

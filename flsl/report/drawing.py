"""What all figures have in common: colours, and files that are equal for equal results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

LETTER = 0.06  # inches that a letter of 8 points takes


@contextmanager
def figure_files(size: tuple[float, float], outputs: Sequence[Path]) -> Iterator[Figure]:
    """Give a figure to draw on, and write it to ``outputs`` when the body is done."""
    for path in outputs:
        if path.suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"--out: {path} is of no known kind; its name should end in .png, .svg or .pdf")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    # equal results give equal files
    with mpl.rc_context({"svg.hashsalt": "flsl", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        for path in outputs:
            kind = path.suffix[1:]
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
            with atomic(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)

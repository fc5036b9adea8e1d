"""UAVDT (Du et al., ECCV 2018): the official split, the ground truth's rows, and whether a copy is consistent."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from flsl.runtime.errors import UserError, require_file

TEST_LENGTHS = {
    "M0203": 1007, "M0205": 646, "M0208": 265, "M0209": 1576, "M0403": 514, "M0601": 372, "M0602": 480,
    "M0606": 1374, "M0701": 1308, "M0801": 298, "M0802": 1101, "M1001": 1859, "M1004": 269, "M1007": 659,
    "M1009": 604, "M1101": 864, "M1301": 1182, "M1302": 719, "M1303": 445, "M1401": 1050,
}  # fmt: skip
"""Frames of each of the 20 test sequences, as the official toolkit counts them."""
TEST_SEQUENCES = tuple(TEST_LENGTHS)
TRAIN_SEQUENCES = (
    "M0101", "M0201", "M0202", "M0204", "M0206", "M0207", "M0210", "M0301", "M0401", "M0402",
    "M0501", "M0603", "M0604", "M0605", "M0702", "M0703", "M0704", "M0901", "M0902", "M1002",
    "M1003", "M1005", "M1006", "M1008", "M1102", "M1201", "M1202", "M1304", "M1305", "M1306",
)  # fmt: skip
"""The other 30 sequences."""
COLUMNS = ("frame", "target", "left", "top", "width", "height", "out_of_view", "occlusion", "category")
_WHOLE = ("frame", "target", "out_of_view", "occlusion", "category")


def split_of(sequence: str) -> str:
    """Return ``"train"`` or ``"test"`` by the official lists, ``""`` for a sequence that is in neither."""
    return "test" if sequence in TEST_LENGTHS else "train" if sequence in TRAIN_SEQUENCES else ""


def read_ground_truth(path: Path | str) -> pd.DataFrame:
    """Read ``<sequence>_gt_whole.txt``: one row a box, in file order.

    Returns:
        columns :data:`COLUMNS`; ``frame`` (from 1), ``target``, ``out_of_view`` (1-3), ``occlusion`` (1-4) and
        ``category`` (1 car, 2 truck, 3 bus) as int64, ``left``, ``top``, ``width``, ``height`` in pixels as float64.

    Raises:
        UserError: naming the file and the line, when a row has not nine numbers, or a frame or code out of range.
    """
    table = _read(path)
    _refuse(path, table, table["frame"] < 1, "a frame number below 1")
    _refuse(path, table, ~table["out_of_view"].isin([1, 2, 3]), "an out-of-view code other than 1, 2, 3")
    _refuse(path, table, ~table["occlusion"].isin([1, 2, 3, 4]), "an occlusion code other than 1, 2, 3, 4")
    _refuse(path, table, ~table["category"].isin([1, 2, 3]), "a category other than 1 (car), 2 (truck), 3 (bus)")
    return table


def read_ignore(path: Path | str) -> pd.DataFrame:
    """Read ``<sequence>_gt_ignore.txt``: the boxes in which detections do not count; it may be empty.

    The rows have :func:`read_ground_truth`'s columns; their last two codes are -1 and mean nothing.

    Raises:
        UserError: naming the file and the line, when a row has not nine numbers or a frame below 1.
    """
    table = _read(path)
    _refuse(path, table, table["frame"] < 1, "a frame number below 1")
    return table


def _read(path: Path | str) -> pd.DataFrame:
    path = require_file(path, "UAVDT rows frame,target,left,top,width,height,out-of-view,occlusion,category")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    values = _numbers(path, lines)
    table = pd.DataFrame(values, columns=list(COLUMNS))
    for name in _WHOLE:
        _refuse(path, table, table[name] % 1 != 0, f"a {name} that is no whole number")
    return table.astype(dict.fromkeys(_WHOLE, "int64"))


def _numbers(path: Path, lines: Sequence[str]) -> np.ndarray:
    """Return the lines' numbers as float64 (rows, 9)."""
    if not lines:
        return np.zeros((0, len(COLUMNS)))
    try:
        with warnings.catch_warnings():
            # lines that hold only blanks are skipped with a warning; the count below catches them
            warnings.simplefilter("ignore", UserWarning)
            values = np.loadtxt(lines, delimiter=",", comments=None, ndmin=2, dtype=np.float64)
        if values.shape == (len(lines), len(COLUMNS)) and np.isfinite(values).all():
            return values
    except ValueError:
        pass
    return np.array([_row(path, number, line) for number, line in enumerate(lines, 1)])


def _row(path: Path, number: int, line: str) -> list[float]:
    """Return one line's nine numbers; the slow way that names what is wrong."""
    fields = line.strip().rstrip(",").split(",")
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != len(COLUMNS) or not np.isfinite(values).all():
        shown = line if len(line) <= 60 else line[:57] + "..."
        raise UserError(f"{path}: line {number}: nine numbers separated by commas are expected, not '{shown}'")
    return values


def _refuse(path: Path | str, table: pd.DataFrame, wrong: Iterable[bool], what: str) -> None:
    rows = np.flatnonzero(np.asarray(wrong))
    if len(rows):
        raise UserError(f"{path}: line {rows[0] + 1}: {what} ({len(rows)} such line{'s' * (len(rows) > 1)})")

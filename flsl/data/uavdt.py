"""UAVDT (Du et al., ECCV 2018): the official split, the ground truth's rows, and whether a copy is consistent."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from flsl.config.data import UavdtSettings
from flsl.data.files import Row
from flsl.data.findings import Findings
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
CATEGORIES = {1: "car", 2: "truck", 3: "bus"}
_WHOLE = ("frame", "target", "out_of_view", "occlusion", "category")
LAST_FRAME = 999_999
"""The largest number of a frame, as its file's name has six digits."""
LARGEST = 1e9
"""No number in UAVDT's files is beyond it; boxes of much larger ones have areas that are not finite."""


def split_of(sequence: str) -> str:
    """Return ``"train"`` or ``"test"`` by the official lists, ``""`` for a sequence that is in neither."""
    return "test" if sequence in TEST_LENGTHS else "train" if sequence in TRAIN_SEQUENCES else ""


def read_ground_truth(path: Path | str) -> pd.DataFrame:
    """Read ``<sequence>_gt_whole.txt``: one row per box, in file order.

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
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    values = _numbers(path, lines)
    table = pd.DataFrame(values, columns=list(COLUMNS))
    _refuse(path, table, (np.abs(values) > LARGEST).any(1), f"a number beyond {LARGEST:g}")
    _refuse(path, table, table["frame"] > LAST_FRAME, f"a frame number beyond {LAST_FRAME}")
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


def check_uavdt(settings: UavdtSettings, rows: Sequence[Row]) -> Findings:
    """Check each sequence's ground truth, frames and length against each other and the official lists.

    Raises:
        UserError: when the ground truth folder holds no ``<sequence>_gt_whole.txt``.
    """
    frames: dict[str, dict[str, Row]] = {}
    tables: set[str] = set()
    for row in rows:
        path = PurePosixPath(row.path)
        if path.parent.parent == PurePosixPath(settings.frames):
            frames.setdefault(path.parent.name, {})[path.name] = row
        elif path.parent == PurePosixPath(settings.ground_truth):
            tables.add(path.name)
    suffix = "_gt_whole.txt"
    truths = sorted(name.removesuffix(suffix) for name in tables if name.endswith(suffix))
    folder = Path(settings.root) / settings.ground_truth
    if not truths:
        raise UserError(f"{folder}: holds no <sequence>{suffix}; UAVDT's ground truth is expected there")
    findings = Findings()
    wrong = findings.inconsistencies
    if not frames:
        wrong.append(
            f"{Path(settings.root) / settings.frames}: no frames; only detections made elsewhere can be evaluated"
        )
    categories: dict[str, dict[str, int]] = {name: {} for name in CATEGORIES.values()}
    for name in sorted({*truths, *frames}):
        figures = findings.splits.setdefault(
            split_of(name), {"sequences": 0, "frames": 0, "boxes": 0, "ignore_boxes": 0}
        )
        figures["sequences"] += 1
        figures["frames"] += len(frames.get(name, ()))
        if not split_of(name):
            findings.notes.append(f"{name}: not one of the 50 official sequences")
        if name not in truths:
            wrong.append(f"{name}: has frames but no {name}{suffix}")
            continue
        if frames and name not in frames:
            wrong.append(f"{name}: has ground truth but no frames")
        if f"{name}_gt_ignore.txt" not in tables:
            wrong.append(f"{name}: has no {name}_gt_ignore.txt; no region is ignored")
        else:
            figures["ignore_boxes"] += len(_checked(folder / f"{name}_gt_ignore.txt", read_ignore, wrong))
        boxes = _checked(folder / f"{name}{suffix}", read_ground_truth, wrong)
        figures["boxes"] += len(boxes)
        for code, count in boxes["category"].value_counts().items():
            split_counts = categories[CATEGORIES[int(str(code))]]
            split_counts[split_of(name)] = split_counts.get(split_of(name), 0) + int(count)
        wrong += [f"{name}: {line}" for line in _sequence_faults(boxes, frames.get(name, {}))]
        last = max(len(frames.get(name, ())), int(boxes["frame"].max()) if len(boxes) else 0)
        if name in TEST_LENGTHS and last != TEST_LENGTHS[name]:
            (wrong if last > TEST_LENGTHS[name] else findings.notes).append(
                f"{name}: {last} frames, the official test sequence has {TEST_LENGTHS[name]}"
            )
    for split, official in (("train", TRAIN_SEQUENCES), ("test", TEST_SEQUENCES)):
        present = len({*truths, *frames}.intersection(official))
        if present < len(official):
            findings.notes.append(f"{split}: {present} of the {len(official)} official sequences")
    findings.extra["classes"] = {"count": len(categories), "listed": categories}
    findings.rows = [row._replace(split=split_of(_sequence(row.path))) for row in rows]
    return findings


def _checked(path: Path, read: Callable[[Path], pd.DataFrame], wrong: list[str]) -> pd.DataFrame:
    """Return a file's rows; one that cannot be read becomes an inconsistency."""
    try:
        return read(path)
    except UserError as error:
        wrong.append(str(error))
        return pd.DataFrame(columns=list(COLUMNS))


def _sequence_faults(boxes: pd.DataFrame, frames: dict[str, Row]) -> list[str]:
    """Return what is wrong with one sequence, a line each."""
    wrong = []
    count = len(frames)
    expected = {f"img{number:06d}.jpg" for number in range(1, count + 1)}
    if set(frames) != expected:
        wrong.append(f"frames are not named img000001.jpg … without gaps, e.g. {min(set(frames) ^ expected)}")
    bad = [row for row in frames.values() if not row.ok]
    if bad:
        wrong.append(f"{len(bad)} quarantined frame(s), e.g. {bad[0].path} ({bad[0].status})")
    sizes = Counter((row.width, row.height) for row in frames.values() if row.ok)
    if len(sizes) > 1:
        wrong.append("frames of several sizes: " + ", ".join(f"{w}×{h}" for w, h in sorted(sizes)))
    if not len(boxes):
        return wrong
    if frames and boxes["frame"].max() > count:
        wrong.append(f"ground truth up to frame {boxes['frame'].max()}, but {count} frames")
    flat = int(((boxes["width"] <= 0) | (boxes["height"] <= 0)).sum())
    if flat:
        wrong.append(f"{flat} box(es) without area")
    twice = int(boxes.duplicated(["frame", "target"]).sum())
    if twice:
        wrong.append(f"{twice} row(s) repeat a target in a frame")
    if sizes:
        width, height = next(iter(sizes))
        # boxes may be cut at the border a pixel late, as the official ones are
        out = (boxes["left"] >= width) | (boxes["top"] >= height)
        out |= (boxes["left"] + boxes["width"] <= 0) | (boxes["top"] + boxes["height"] <= 0)
        if out.any():
            wrong.append(f"{int(out.sum())} box(es) lie outside the {width}×{height} frame")
    return wrong


def _sequence(path: str) -> str:
    """Return the sequence that a file belongs to: a frame's folder, or the start of a ground truth file's name."""
    name = PurePosixPath(path)
    return name.name.partition("_gt")[0] if name.suffix == ".txt" else name.parent.name

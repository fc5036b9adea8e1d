"""UAVDT detections beside their ground truth: the official text files, or COCO results on the converted frames."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flsl.data.uavdt import LARGEST, LAST_FRAME, TEST_LENGTHS, read_ground_truth, read_ignore
from flsl.runtime.errors import UserError, nearest, require_file, require_folder
from flsl.runtime.outputs import read_json, write_text
from flsl.runtime.progress import counted, warn

Rows = NDArray[np.float64]
_WHOLE, _IGNORE = "_gt_whole.txt", "_gt_ignore.txt"
_FRAME = re.compile(r"img0*(\d{1,9})\.\w+")
_READ = [0, 2, 3, 4, 5, 6]  # fields of a row of detections: all of the seven but the target
_NAME = re.compile(r"M(\d{4})")


class Sequence(NamedTuple):
    """One sequence's ground truth.

    Attributes:
        name: e.g. ``M0203``.
        frames: number of frames by the official list; 0 where the sequence is not on it.
        truth: rows of ``_gt_whole.txt`` (columns of :data:`flsl.data.uavdt.COLUMNS`).
        ignore: rows of ``_gt_ignore.txt``.
    """

    name: str
    frames: int
    truth: pd.DataFrame
    ignore: pd.DataFrame


def image_id(sequence: str, frame: int) -> int:
    """Return the COCO image id of a frame: the sequence's four digits, then the frame in six.

    Raises:
        UserError: when the sequence is not named as UAVDT's are.
    """
    match = _NAME.fullmatch(sequence)
    if match is None:
        raise UserError(f"sequence {sequence}: UAVDT's sequences are named M and four digits, e.g. M0203")
    return int(match[1]) * 1_000_000 + frame


def read_sequences(folder: Path | str, names: Iterable[str] | None = None) -> list[Sequence]:
    """Read the ground truth of ``names``, in the order of their names; None takes the test sequences that are there.

    Raises:
        UserError: when the folder, a sequence's file or every test sequence is missing, or a file is broken.
    """
    folder = require_folder(folder, "UAVDT's ground truth (<sequence>_gt_whole.txt)")
    there = sorted(path.name.removesuffix(_WHOLE) for path in folder.glob(f"*{_WHOLE}"))
    if not there:
        raise UserError(f"{folder}: holds no <sequence>{_WHOLE}; UAVDT's ground truth is expected there")
    if names is None:
        chosen = [name for name in there if name in TEST_LENGTHS]
        if not chosen:
            raise UserError(f"{folder}: holds none of UAVDT's 20 test sequences; name some with --sequences")
        if len(chosen) < len(TEST_LENGTHS):
            warn(f"{folder}: {len(chosen)} of the 20 test sequences are there and evaluated")
    else:
        chosen = sorted(set(names))
        for name in chosen:
            if name not in there:
                raise UserError(f"{folder}: no {name}{_WHOLE} there{nearest(name, there)}")
    return [_read_sequence(folder, name) for name in chosen]


def truth_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of the sequences' ground truth that are there, for a record."""
    files = [folder / f"{name}{ending}" for name in names for ending in (_WHOLE, _IGNORE)]
    return [path for path in files if path.is_file()]


def _read_sequence(folder: Path, name: str) -> Sequence:
    whole, ignore = folder / f"{name}{_WHOLE}", folder / f"{name}{_IGNORE}"
    truth, frames = read_ground_truth(whole), TEST_LENGTHS.get(name, 0)
    outside = int((truth["frame"] > frames).sum()) if frames else 0
    if outside:
        # as detections there are
        warn(f"{whole}: {counted(outside, 'box', 'es')} after the sequence's last frame, {frames}, skipped")
        truth = truth[truth["frame"] <= frames]
    if not ignore.exists():
        warn(f"{ignore}: no such file; {name} is evaluated without ignore regions")
        return Sequence(name, frames, truth, truth.iloc[:0])
    return Sequence(name, frames, truth, read_ignore(ignore))


def read_detections(
    path: Path | str, sequences: Iterable[Sequence], annotations: Path | None = None
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Read detections of ``sequences``.

    Args:
        path: a folder of ``<sequence>.txt`` with rows ``frame,-1,left,top,width,height,score,…``, or a COCO result
            file on frames whose ids are :func:`image_id`'s, or those of ``annotations``.
        sequences: those to read; detections of others are left out, those outside a sequence's frames are counted.
        annotations: the COCO file whose image ids the results use; ``file_name`` tells sequence and frame.

    Returns:
        by sequence (n, 6) rows ``frame, left, top, width, height, score`` in file order, and the counts of what was
        skipped.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    path = Path(path)
    sequences = list(sequences)
    if path.is_dir():
        found = {each.name: _read_text(path / f"{each.name}.txt") for each in sequences}
    else:
        found = _read_coco(path, [each.name for each in sequences], annotations)
    outside = 0
    for each in sequences:
        rows = found[each.name]
        inside = rows[:, 0] >= 1
        if each.frames:
            inside &= rows[:, 0] <= each.frames
        outside += int((~inside).sum())
        found[each.name] = rows[inside]
    return found, {"detections outside their sequence's frames": outside} if outside else {}


def write_detections(folder: Path, found: Mapping[str, Rows]) -> None:
    """Write detections as the official toolkit reads them: ``<sequence>.txt``, an empty one where there are none.

    Args:
        folder: to write into.
        found: by sequence, as :func:`read_detections` returns them.
    """
    for name, rows in found.items():
        # frame, target (none), box, score, and out-of-view and occlusion, which a detector does not tell
        lines = [
            f"{int(frame)},-1,{x!r},{y!r},{w!r},{h!r},{score!r},1,-1\n" for frame, x, y, w, h, score in rows.tolist()
        ]
        write_text(folder / f"{name}.txt", "".join(lines))


def _read_text(path: Path) -> Rows:
    require_file(path, "detections frame,-1,left,top,width,height,score (an empty file where there are none)")
    try:
        with path.open(encoding="utf-8-sig") as stream:
            fields = max(7, stream.readline().count(",") + 1)
        # a row with fewer fields gets NaN, which is refused below; the others may hold anything
        table = pd.read_csv(
            path, header=None, names=list(range(fields)), index_col=False, usecols=_READ, dtype=np.float64
        )
    except pd.errors.EmptyDataError:
        return np.zeros((0, 6))
    except (ValueError, pd.errors.ParserError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: rows of numbers frame,-1,left,top,width,height,score are expected ({reason})"
        ) from None
    return _checked(table.to_numpy(), path, "row")


def _read_coco(path: Path, names: list[str], annotations: Path | None) -> dict[str, Rows]:
    data = read_json(path, "UAVDT detections: a COCO result file or a folder of <sequence>.txt")
    if not isinstance(data, list):
        raise UserError(f"{path}: not a COCO result file: it must be a list of detections")
    try:
        numbers = [entry["image_id"] for entry in data]
        if not {type(number) for number in numbers} <= {int} or any(len(entry["bbox"]) != 4 for entry in data):
            raise TypeError
        ids = np.array(numbers, dtype=np.int64)
        rows = np.array([[0, *entry["bbox"], entry["score"]] for entry in data], dtype=np.float64).reshape(-1, 6)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: each detection needs a whole image_id, a bbox of four numbers and a score") from None
    frames = _frames_by_id(annotations) if annotations is not None else None
    unique, inverse = np.unique(ids, return_inverse=True)
    if frames is None:
        known = [(f"M{number // 1_000_000:04d}", number % 1_000_000) for number in unique.tolist()]
    else:
        unknown = [number for number in unique.tolist() if number not in frames]
        if unknown:
            raise UserError(f"{path}: has detections of image {unknown[0]}, which {annotations} does not list")
        known = [frames[number] for number in unique.tolist()]
    rows[:, 0] = np.array([frame for _, frame in known], dtype=np.float64)[inverse] if len(known) else 0
    _checked(rows, path, "detection")
    code = {name: index for index, name in enumerate(names)}
    owner = np.array([code.get(name, -1) for name, _ in known], dtype=np.int64)[inverse] if len(known) else ids
    if len(rows) and (owner < 0).all():
        example = f"M{unique[0] // 1_000_000:04d}" if frames is None else known[0][0]
        raise UserError(
            f"{path}: none of its detections is of the evaluated sequences (the first image is taken as {example}); "
            "give the COCO file of its image ids with --annotations"
        )
    return {name: rows[owner == index] for name, index in code.items()}


def _frames_by_id(path: Path) -> Mapping[int, tuple[str, int]]:
    data = read_json(path, "the COCO file of the frames")
    frames: dict[int, tuple[str, int]] = {}
    try:
        images = [(operator.index(image["id"]), PurePosixPath(image["file_name"])) for image in data["images"]]
    except (KeyError, TypeError):
        raise UserError(f"{path}: not a COCO file: images with an id and a file_name are expected") from None
    for number, name in images:
        match = _FRAME.fullmatch(name.name)
        if match is None:
            raise UserError(f"{path}: the file_name '{name}' is not <sequence>/img<frame>.jpg")
        frames[number] = (name.parent.name, int(match[1]))
    return frames


def _checked(rows: Rows, path: Path, what: str) -> Rows:
    # NaN compares as false
    usual = (np.abs(rows[:, :5]) <= [LAST_FRAME, *[LARGEST] * 4]).all(1) & np.isfinite(rows[:, 5])
    wrong = np.flatnonzero(~usual | (np.where(usual, rows[:, 0], 0) % 1 != 0) | (rows[:, 3:5] < 0).any(1))
    if len(wrong):
        first = int(wrong[0])
        values = ",".join(f"{value:.12g}" for value in rows[first])
        raise UserError(
            f"{path}: {what} {first + (what == 'row')}: frame,left,top,width,height,score are {values}; a whole frame "
            f"up to {LAST_FRAME}, pixels up to {LARGEST:g}, no negative sizes and a finite score are expected"
        )
    return rows

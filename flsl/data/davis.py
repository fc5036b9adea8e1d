"""DAVIS 2017 (Pont-Tuset et al., arXiv 1704.00675): whether sequences, frames and masks belong together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from flsl.config.data import DavisDataSettings
from flsl.data.files import Row
from flsl.data.findings import Findings
from flsl.runtime.errors import UserError, right_in
from flsl.runtime.progress import counted

LEAST_FRAMES = 3
"""Of a sequence that is evaluated: the first and the last one are left out."""
_VOID = 255


def read_list(path: Path) -> list[str]:
    """Return the names in a list of sequences; each line is one, as in the official tool, and may hold spaces.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of sequences ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def read_lists(settings: DavisDataSettings) -> dict[str, list[str]]:
    """Return the sequences of each list ``ImageSets/<year>/<split>.txt``, by split.

    Raises:
        UserError: when there is no list, or one cannot be read or names something outside the data set.
    """
    folder = Path(settings.root) / settings.lists
    lists: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        if path.name.startswith("."):
            continue
        lists[path.stem] = read_list(path)
        for name in lists[path.stem]:
            right_in(folder, name, path)
    if not any(lists.values()):
        raise UserError(f"{folder}: lists no sequences; DAVIS' {settings.lists}/val.txt is expected there")
    return lists


def check_davis(settings: DavisDataSettings, rows: Sequence[Row]) -> Findings:
    """Check every listed sequence: frames and masks paired, of one size, masks indexed, the first one not empty.

    Raises:
        UserError: when no sequence is listed, or none of the listed ones has frames.
    """
    lists = read_lists(settings)
    findings = Findings()
    frames, masks = _by_sequence(rows, settings.frames, ".jpg"), _by_sequence(rows, settings.masks, ".png")
    split_of: dict[str, str] = {}
    for split, names in lists.items():
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            findings.inconsistencies.append(f"{settings.lists}/{split}.txt: {twice[0]} is listed twice")
        figures: dict[str, Any] = {"sequences": len(set(names)), "frames": 0, "masks": 0, "objects": 0}
        for name in dict.fromkeys(names):
            split_of.setdefault(name, split)
            figures["frames"] += len(frames[name])
            figures["masks"] += len(masks[name])
            # the test sets' masks are DAVIS' secret, but for the first frame
            wrong, objects = _check_sequence(frames[name], masks[name], only_first=split.startswith("test"))
            figures["objects"] += objects
            findings.inconsistencies += [f"{split}: {name}: {line}" for line in wrong]
        findings.splits[split] = figures
    if not any(frames[name] for name in split_of):
        raise UserError(
            f"{settings.root}/{settings.frames}: holds no frame of a listed sequence; <sequence>/00000.jpg is expected"
        )
    unlisted = sorted(name for name, files in frames.items() if files and name not in split_of)
    if unlisted:
        findings.notes.append(f"{len(unlisted)} sequence(s) are in no list, e.g. {unlisted[0]}")
    findings.rows = [row._replace(split=split_of.get(_sequence(row.path), "")) for row in rows]
    return findings


def _check_sequence(frames: dict[str, Row], masks: dict[str, Row], only_first: bool) -> tuple[list[str], int]:
    """Return what is wrong with one sequence, a line each, and the number of objects in its first mask."""
    if not frames:
        return ["has no frames"], 0
    if not masks:
        return ["has no masks"], 0
    wrong = []
    first = min(frames)
    expected = {first} if only_first else set(frames)
    lone = {"frame(s) without mask": expected - set(masks), "mask(s) without frame": set(masks) - set(frames)}
    wrong += [f"{len(names)} {what}, e.g. {min(names)}" for what, names in lone.items() if names]
    if len(frames) < LEAST_FRAMES and not only_first:
        wrong.append(f"{counted(len(frames), 'frame')}; with fewer than {LEAST_FRAMES} it cannot be evaluated")
    # sorted as text, as all that reads them does: without leading zeros 10 would come before 2
    numbers = [int(name) for name in sorted(frames) if name.isdecimal()]
    if len(numbers) != len(frames) or numbers != list(range(len(numbers))):
        wrong.append("frames are not numbered 00000, 00001, …")
    bad = [row for row in (*frames.values(), *masks.values()) if not row.ok]
    if bad:
        wrong.append(f"{len(bad)} quarantined file(s), e.g. {bad[0].path} ({bad[0].status})")
    for what, files, ending in (("frame", frames, ".jpg"), ("mask", masks, ".png")):
        others = [row.path for row in files.values() if row.ok and not row.path.endswith(ending)]
        if others:
            wrong.append(f"{len(others)} {what}(s) whose names do not end in {ending}, e.g. {others[0]}")
    sizes = Counter((row.width, row.height) for row in (*frames.values(), *masks.values()) if row.ok)
    if len(sizes) > 1:
        wrong.append("frames and masks of several sizes: " + ", ".join(f"{w}×{h}" for w, h in sorted(sizes)))
    objects = _objects(masks[first]) if first in masks else set()
    if first in masks and masks[first].ok:
        if not objects:
            void = " but for 255, which is void (objects are numbered from 1)"
            wrong.append(f"the first mask, {masks[first].path}, is empty{void * (str(_VOID) in masks[first].ids)}")
        elif objects != set(range(1, len(objects) + 1)):
            wrong.append(f"the object ids of the first mask are {_listed(objects)}; 1…{len(objects)} are expected")
    later = set().union(*(_objects(row) for row in masks.values())) - objects
    if later:
        wrong.append(f"object id(s) {_listed(later)} are in later masks but not in the first")
    return wrong, len(objects)


def _by_sequence(rows: Sequence[Row], folder: str, ending: str) -> defaultdict[str, dict[str, Row]]:
    """Return the files of ``folder/<sequence>/`` by sequence and by name without ending; the right ending wins."""
    found: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row.path.endswith(ending)):
        path = PurePosixPath(row.path)
        if str(path.parent.parent) == folder:
            found[path.parent.name][path.stem] = row
    return found


def _sequence(path: str) -> str:
    return PurePosixPath(path).parent.name


def _objects(row: Row) -> set[int]:
    return {int(number) for number in row.ids.split()} - {0, _VOID}


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))

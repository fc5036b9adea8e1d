"""Making the demo's data sets: in parallel, each under its final name only when it is whole."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from flsl.config.data import ScenesSettings
from flsl.data.scenes import coco, davis, images, uavdt
from flsl.data.scenes.files import Task
from flsl.runtime.errors import UserError
from flsl.runtime.lock import locked
from flsl.runtime.outputs import read_json, write_json, writing
from flsl.runtime.processes import cores, parallel_map
from flsl.runtime.progress import Bar, bar, say

RECORD = "scenes.json"
"""What was made and from which settings; in each data set's folder, and for all of them beside those folders."""
# raise it when the same settings begin to make other data, so that old data are made again
_VERSION = 1


@dataclass(frozen=True)
class DataSet:
    """One of the data sets: the settings that it depends on (by their prefix), and the three steps that make it.

    ``tasks(settings)`` are the pieces of the work (sequence or split, first, last), none where it is left out;
    ``make(settings, folder, task)`` writes a piece in any process; ``finish(settings, folder, results)`` writes what
    belongs to the whole from the pieces' results in their order, and returns counts.
    """

    prefixes: tuple[str, ...]
    tasks: Callable[[ScenesSettings], list[Task]]
    make: Callable[[ScenesSettings, Path, Task], Any]
    finish: Callable[[ScenesSettings, Path, list[Any]], dict[str, int]]

    def depends_on(self, settings: ScenesSettings) -> dict[str, Any]:
        """Return the settings that this data set is a function of."""
        common = ("seed", "classes")
        return {k: v for k, v in settings.plain().items() if k in common or k.startswith(self.prefixes)}


DATA_SETS = {
    "images": DataSet(("image_", "train_", "val_"), images.tasks, images.make, images.finish),
    "coco": DataSet(("coco_",), coco.tasks, coco.make, coco.finish),
    "uavdt": DataSet(("uavdt_",), uavdt.tasks, uavdt.make, uavdt.finish),
    "davis": DataSet(("davis_",), davis.tasks, davis.make, davis.finish),
}


def make_scenes(settings: ScenesSettings, out: Path, processes: int | None = None) -> dict[str, Any]:
    """Make the data sets ``<out>/{images,coco,uavdt,davis}`` that ``settings`` ask for.

    Each is made under another name and renamed when it is whole. One that was made from equal settings stays as it
    is; one made from other settings is made again. Their bytes depend on the settings only, not on ``processes``.

    Args:
        settings: what to make; ``settings.root`` plays no part.
        out: folder for the data sets; made where it is missing.
        processes: how many processes draw at once; None takes the cores that this process may use.

    Returns:
        what ``<out>/scenes.json`` then says: ``settings``, and ``sets`` with the counts of each.

    Raises:
        UserError: when ``out`` cannot be written, holds something else under one of those names, or is in use.
    """
    wanted = {name: data_set for name, data_set in DATA_SETS.items() if data_set.tasks(settings)}
    plain = {key: value for key, value in settings.plain().items() if key != "root"}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            sets = {name: _counts_if_made(out / name, data_set, settings) for name, data_set in wanted.items()}
            missing = [name for name, counts in sets.items() if counts is None]
            for name in wanted:
                if name not in missing:
                    say(f"{out / name}: made already from these settings; nothing to do")
            if missing:
                (out / RECORD).unlink(missing_ok=True)
                sets |= _make_all(settings, out, missing, processes or cores())
            record = {"version": _VERSION, "settings": plain, "sets": sets}
            if not (out / RECORD).is_file() or read_json(out / RECORD, "a record of made scenes") != record:
                write_json(out / RECORD, record)
    return record


def _make_all(settings: ScenesSettings, out: Path, names: list[str], processes: int) -> dict[str, dict[str, int]]:
    work = [(name, task) for name in names for task in DATA_SETS[name].tasks(settings)]
    counts = {}
    with contextlib.ExitStack() as stack:
        folders = {name: stack.enter_context(_temporary(out, name)) for name in names}
        total = sum(task[-1] - task[-2] for _, task in work)
        shown = stack.enter_context(bar("making scenes", total))
        results = _run(settings, folders, work, min(processes, len(work)), shown)
        for name in names:
            made = [result for (owner, _), result in zip(work, results, strict=True) if owner == name]
            counts[name] = DATA_SETS[name].finish(settings, folders[name], made)
            record = {"version": _VERSION, "settings": DATA_SETS[name].depends_on(settings), "counts": counts[name]}
            write_json(folders[name] / RECORD, record)
            _publish(folders[name], out / name)
    return counts


def _run(
    settings: ScenesSettings, folders: dict[str, Path], work: list[tuple[str, Task]], processes: int, shown: Bar
) -> list[Any]:
    """Return the results of all pieces, in the order of ``work``."""
    # data sets evenly mixed, so that the time left is guessed well: a frame of a video takes longer than an image
    mates = [[i for i, (owner, _) in enumerate(work) if owner == name] for name in folders]
    order = [i for _, i in sorted((k / len(group), i) for group in mates for k, i in enumerate(group))]
    mixed = [work[i] for i in order]
    results: list[Any] = [None] * len(work)
    with parallel_map(processes, "a drawing process") as mapping:
        made = mapping(_make, repeat(settings), [folders[name] for name, _ in mixed], mixed)
        for i, (_, task), result in zip(order, mixed, made, strict=True):
            results[i] = result
            shown.advance(task[-1] - task[-2])
    return results


def _make(settings: ScenesSettings, folder: Path, piece: tuple[str, Task]) -> Any:
    name, task = piece
    return DATA_SETS[name].make(settings, folder, task)


def _counts_if_made(folder: Path, data_set: DataSet, settings: ScenesSettings) -> dict[str, int] | None:
    """Return the counts of what ``folder`` holds if it was made from equal settings; None if it is to be made."""
    if not folder.exists():
        return None
    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder}: exists and was not made by flsl data scenes (it has no {RECORD}); "
            "remove it or choose another folder with --out"
        )
    record = read_json(folder / RECORD, "a record of made scenes")
    same = record.get("version") == _VERSION and record.get("settings") == data_set.depends_on(settings)
    return record["counts"] if same else None


@contextlib.contextmanager
def _temporary(out: Path, name: str) -> Iterator[Path]:
    """Yield a new folder beside ``out/name``; it is gone afterwards, if it was not renamed."""
    folder = Path(tempfile.mkdtemp(dir=out, prefix=f".{name}.", suffix=".tmp"))
    # mkdtemp makes it private; data are shared in a group as any other folder is
    folder.chmod(out.stat().st_mode & 0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, final: Path) -> None:
    """Rename ``folder`` to ``final``, in place of what was made there before."""
    if final.exists():
        old = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp"))
        final.rename(old / "old")
        folder.rename(final)
        shutil.rmtree(old)
    else:
        folder.rename(final)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from making scenes in ``out``; remove what killed ones left there."""
    with locked(out / ".scenes.lock") as held:
        if not held:
            raise UserError(f"{out}: another flsl data scenes is at work there; wait for it to end")
        for name in DATA_SETS:
            for left in out.glob(f".{name}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        yield

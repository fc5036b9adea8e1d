"""``files.csv``: one row per file of a data set, made in parallel and, the second time, only where files changed."""

from __future__ import annotations

import csv
import hashlib
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from flsl.data.integrity import Inspection, inspect
from flsl.data.listing import Entry, Holds, no_collector
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import atomic
from flsl.runtime.processes import cores, parallel_map

FILES = "files.csv"
_PART = "files.part.*.csv"
_CHUNK = 128
# starting processes takes about as long as looking at this many files
_WORTH_PROCESSES = 4000


class Row(NamedTuple):
    """One file: where it belongs, and what :func:`flsl.data.integrity.inspect` found (see ``Inspection``).

    Attributes:
        path: below the root, ``/`` between folders.
        split: the split it belongs to, ``""`` if none.
        class_name: its class, ``""`` if none.
    """

    path: str
    split: str
    class_name: str
    width: int
    height: int
    mode: str
    format: str
    bytes: int
    mtime_ns: int
    digest: str
    status: str
    ids: str

    @property
    def ok(self) -> bool:
        """Whether the file can be used."""
        return self.status == "ok"


COLUMNS = tuple("class" if name == "class_name" else name for name in Row._fields)


def content_sha256(rows: Iterable[Row]) -> str:
    """Return the SHA-256 of the paths and digests of ``rows``, which are sorted by path: times do not matter."""
    state = hashlib.sha256()
    for row in rows:
        add_content(state, row)
    return state.hexdigest()


def add_content(state: hashlib._Hash, row: Row) -> None:
    """Add a row to the hash of :func:`content_sha256`."""
    # a path holds no NUL and a digest has a fixed length, so that no two lists of files read the same
    state.update(os.fsencode(row.path) + b"\0" + row.digest.encode() + b"\n")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a ``files.csv``.

    Raises:
        UserError: when it is missing or damaged; ``flsl data check`` makes it anew.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            if tuple(next(lines, ())) != COLUMNS:
                raise ValueError(f"its first line is not {','.join(COLUMNS)}")
            for line in lines:
                yield _row(line)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `flsl data check` writes it") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run `flsl data check` again") from None


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``files.csv`` into ``folder`` atomically, and remove what it replaces: the notes of killed checks.

    Names that are not valid UTF-8 keep their bytes.

    Raises:
        UserError: when it cannot be written.
    """
    with (
        atomic(folder / FILES) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    for part in folder.glob(_PART):
        part.unlink(missing_ok=True)


def is_settled(folder: Path) -> bool:
    """Return whether ``files.csv`` is there and no check has noted rows since that are not in it."""
    return (folder / FILES).exists() and not any(folder.glob(_PART))


def read_table(folder: Path) -> dict[str, Row]:
    """Return the rows of the ``files.csv`` in ``folder`` by path.

    Raises:
        UserError: when there is none or it is damaged.
    """
    with no_collector():
        return {row.path: row for row in read_rows(folder / FILES)}


def read_parts(folder: Path, root: Path, decode: bool, known: dict[str, Row]) -> dict[str, Row]:
    """Return ``known`` rows by path with what killed checks of ``root`` had done that did, or did not, ``decode``."""
    known = known.copy()
    for part in sorted(folder.glob(_part(root, decode, "*"))):
        # its last line is cut off where the check was killed
        with (
            part.open(encoding="utf-8", errors="surrogateescape", newline="") as stream,
            suppress(ValueError, csv.Error),
        ):
            for row in map(_row, csv.reader(takewhile(lambda line: line.endswith(("\r", "\n")), stream))):
                old = known.get(row.path, row)
                known[row.path] = row._replace(split=old.split, class_name=old.class_name)
    return known


def inspect_all(
    root: Path,
    entries: Sequence[Entry],
    known: dict[str, Row],
    folder: Path | None = None,
    jobs: int | None = None,
    decode: bool = False,
    progress: Callable[[int], None] | None = None,
    threads: bool = False,
) -> list[Row]:
    """Return the row of each entry, reading only files whose size or time is not that of their row in ``known``.

    Args:
        root: the data set's folder.
        entries: the files, sorted by path; the rows come in their order.
        known: rows of an earlier check by path.
        folder: where finished rows are noted meanwhile, so that a killed check goes on where it was, see
            :func:`read_parts`; None: nowhere.
        jobs: processes, or threads where few files are to be read; None takes one a core.
        decode: decode every image that is read.
        progress: called with the number of entries that were done since the last call.
        threads: start no processes, for a caller whose main program must not be imported again in each.

    Raises:
        UserError: when a reading process died.
    """
    rows: list[Row | None] = [_cached(entry, known.get(entry.path)) for entry in entries]
    todo = [index for index, row in enumerate(rows) if row is None]
    report = progress or (lambda count: None)
    report(len(entries) - len(todo))
    threads = threads or len(todo) < _WORTH_PROCESSES  # hashing and decoding leave Python's lock
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    tasks = [(root, [(entries[index].path, entries[index].holds) for index in chunk], decode) for chunk in chunks]
    # what could not be read is tried each time, and no news
    before = (known.get(entries[index].path) for index in todo)
    news = any(row is None or row.digest for row in before)
    with (
        _Part(folder if news else None, root, decode) as part,
        warnings.catch_warnings(),
        parallel_map(jobs or cores(), f"{root}: a process that read its files", threads) as mapping,
    ):
        warnings.simplefilter("ignore")  # Pillow's about odd metadata; what matters is in the status
        inspections = mapping(_inspect_chunk if threads else _inspect_apart, tasks)
        for chunk, found in zip(chunks, inspections, strict=True):
            done = []
            for index, inspection in zip(chunk, found, strict=True):
                rows[index] = row = _joined(entries[index], inspection, known.get(entries[index].path))
                done.append(row)
            part.add(done)
            report(len(chunk))
    return [row for row in rows if row is not None]


def count_unread(entries: Iterable[Entry], known: dict[str, Row]) -> int:
    """Return how many entries :func:`inspect_all` must read."""
    return sum(_cached(entry, known.get(entry.path)) is None for entry in entries)


def shown(path: str) -> str:
    """Return a path that can be printed and stored as UTF-8: bytes that are no UTF-8 are written as ``\\xNN``."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which names in a JSON file may have
        return path.encode("utf-8", "backslashreplace").decode()


def some(names: Sequence[str]) -> str:
    """Return the first few names for a message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


_Task = tuple[Path, list[tuple[str, Holds]], bool]


def _inspect_chunk(task: _Task) -> list[Inspection]:
    root, files, decode = task
    return [inspect(root / path, holds, decode) for path, holds in files]


def _inspect_apart(task: _Task) -> list[Inspection]:
    warnings.simplefilter("ignore")  # another process has filters of its own
    return _inspect_chunk(task)


def _cached(entry: Entry, row: Row | None) -> Row | None:
    """Return the row of an entry that need not be read, None for one that must."""
    if entry.problem:
        return _joined(entry, Inspection(0, 0, "", "", entry.size, entry.mtime_ns, "", entry.problem, ""), None)
    if row is None or not row.digest or (row.bytes, row.mtime_ns) != (entry.size, entry.mtime_ns):
        return None
    if not _seen_as(row, entry.holds):
        return None
    if (row.split, row.class_name) == (entry.split, entry.class_name):
        return row  # for a million files it matters that no copies are made
    return row._replace(split=entry.split, class_name=entry.class_name)


def _joined(entry: Entry, found: Inspection, before: Row | None) -> Row:
    """Return the row of a file that was read; if it was only touched, what an earlier, closer look said holds."""
    if before is not None and before.digest and before.digest == found.digest and _seen_as(before, entry.holds):
        return before._replace(split=entry.split, class_name=entry.class_name, mtime_ns=found.mtime_ns)
    return Row(entry.path, entry.split, entry.class_name, *found)


def _seen_as(row: Row, holds: Holds) -> bool:
    """Return whether a row tells what is needed; the same file may have been read as something else before."""
    if not row.ok:
        return holds != "tables"
    return holds == ("masks" if row.ids else "images" if row.format else "tables")


def _row(line: list[str]) -> Row:
    path, split, class_name, width, height, mode, format_, size, mtime_ns, digest, status, ids = line
    if path.startswith("/") or (".." in path and ".." in path.split("/")):
        raise ValueError(f"the path '{path}' leaves the data set")
    return Row(
        path, split, class_name, int(width), int(height), mode, format_, int(size), int(mtime_ns), digest, status, ids
    )


def _part(root: Path, decode: bool, process: str) -> str:
    """Return the name of a process's notes, which hold for checks of the same root that look as closely."""
    about = hashlib.sha256(os.fsencode(root) + (b"\0decoded" if decode else b"")).hexdigest()[:8]
    return _PART.replace("*", f"{about}.{process}")


class _Part:
    """The rows that a running check has finished; each process has its own file, so that none tears another's lines."""

    def __init__(self, folder: Path | None, root: Path, decode: bool) -> None:
        self._stream = None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / _part(root, decode, f"{socket.gethostname()}.{os.getpid()}")
                self._stream = path.open("a", encoding="utf-8", errors="surrogateescape", newline="")
            except OSError:
                self._stream = None  # without it a killed check starts over, nothing else

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()

    def add(self, rows: Iterable[Row]) -> None:
        if self._stream is None:
            return
        try:
            csv.writer(self._stream).writerows(rows)
            self._stream.flush()
        except OSError:  # a full disk: the check goes on, and says so when it writes what it found
            full, self._stream = self._stream, None
            with suppress(OSError):
                full.close()
            Path(full.name).unlink(missing_ok=True)

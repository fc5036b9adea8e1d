"""Whether a data set is still what its manifest says, and writing the files that tell.

Nothing here imports torch or pandas: the workflow asks :func:`revision` whenever it is started.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flsl.data.files import (
    FILES,
    Row,
    content_sha256,
    count_unread,
    inspect_all,
    is_settled,
    read_parts,
    read_table,
    shown,
    write_rows,
)
from flsl.data.listing import KindSettings, Listing, folder_facts, list_files
from flsl.data.manifest import MANIFEST, load_manifest
from flsl.runtime.errors import UserError, require_folder
from flsl.runtime.outputs import read_json, write_json
from flsl.runtime.progress import bar

FOLDERS = "folders.json"
FIRST = "first"
_MANY = 1000  # files that take long to read


def known_rows(root: Path, folder: Path, decode: bool) -> dict[str, Row]:
    """Return by path what earlier checks found and one of ``root`` that does, or does not, ``decode`` can take over.

    ``folders.json`` tells, not the manifest, which the workflow removes before it checks again.
    """
    seen = _seen(folder)
    if "root" not in seen:  # an earlier version's, whose manifest tells
        with suppress(UserError):
            manifest = load_manifest(folder)
            seen |= {"root": manifest["root"], "decode": manifest.get("settings", {}).get("decode", False)}
    known: dict[str, Row] = {}
    # a file of another data set may have the same path, size and time, and what was not decoded cannot be vouched for
    if Path(seen.get("root", root)) == root and (seen.get("decode") or not decode):
        with suppress(UserError):  # without it the check only takes longer
            known = read_table(folder)
    return read_parts(folder, root, decode, known)


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    listing: Listing,
    rows: Sequence[Row],
    known: Mapping[str, Row],
    decode: bool,
) -> bool:
    """Write ``files.csv``, ``folders.json`` and, last, ``manifest.json``; leave alone what would not change.

    Args:
        folder: where to.
        manifest: what :func:`describe` returned.
        listing: what was listed.
        rows: the rows, sorted by path.
        known: the rows that ``files.csv`` held before, by path.
        decode: whether every image was decoded.

    Returns:
        whether ``manifest.json`` was written.

    Raises:
        UserError: when something cannot be written.
    """
    about = {"root": manifest["root"], "decode": decode}
    _write_files(folder, manifest["content_sha256"], listing, rows, known, about)
    with suppress(UserError):
        if read_json(folder / MANIFEST, "the manifest") == manifest:
            return False
    write_json(folder / MANIFEST, manifest)
    return True


def revision(settings: KindSettings, folder: Path | str) -> str:
    """Return a value that changes once when the data set's content changes, for the workflow's rule of the check.

    Without a manifest it is ``"first"``. Else it looks for changed files as ``settings.watch`` says, reads only those
    whose size or time changed, and returns the manifest's own revision as long as the content is the same; otherwise
    the first 16 digits of the new ``content_sha256``, which the check is to store (``--revision``). A root that is not
    there, or that may not be read, changes nothing: a missing disk must not restart the project, and the check itself
    says so when it runs. Nor does another root than the manifest's: the check runs for that, and reads it.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        return FIRST
    try:
        manifest = load_manifest(folder)
    except UserError:
        return _another("")
    stored = str(manifest["revision"])
    root = Path(settings.root)
    if settings.watch == "off" or root != Path(manifest["root"]):
        return stored
    try:
        require_folder(root, "the data set")
        if not (folder / FILES).exists():
            return _another(stored)
        listing = _unchanged(settings, root, folder, manifest["content_sha256"])
    except UserError:
        return stored
    if listing is None:
        return stored
    try:
        # which it does not decode, so that a check that does reads them itself
        known = read_parts(folder, root, decode=False, known=read_table(folder))
    except UserError:
        return _another(stored)
    # a copy of a large data set has new times: who only asked what would run should see why it takes so long
    many = count_unread(listing.entries, known) >= _MANY
    with bar(f"{root}: reading what has changed", len(listing.entries), enabled=many) as told:
        rows = inspect_all(root, listing.entries, known, folder, progress=told.advance, threads=True)
    content = content_sha256(rows)
    if content == manifest["content_sha256"]:
        with suppress(UserError):  # a folder that cannot be written costs time at the next look, nothing else
            about = {name: value for name, value in _seen(folder).items() if name in ("root", "decode")}
            rows = [_touched(known.get(row.path, row), row) for row in rows]
            _write_files(folder, content, listing, rows, known, about)
        return stored
    return content[:16] if content[:16] != stored else _another(stored)


def _touched(before: Row, now: Row) -> Row:
    """Return a row of equal content with its new time; the check's verdict and its split stay."""
    return before if before.mtime_ns == now.mtime_ns else before._replace(mtime_ns=now.mtime_ns)


def _another(stored: str) -> str:
    """Return a value other than ``stored``, always the same one: the check has to run again."""
    return hashlib.sha256(f"again {stored}".encode()).hexdigest()[:16]


def _unchanged(settings: KindSettings, root: Path, folder: Path, content: str) -> Listing | None:
    """Return None if nothing tells of a change since ``folders.json`` was written for ``content``, else the listing."""
    seen = _seen(folder)
    if seen.get("content_sha256") != content or not isinstance(seen.get("folders"), dict):
        seen = {}
    if seen and settings.watch == "folders" and seen["folders"] == _plain(folder_facts(root, seen["folders"])):
        return None
    listing = list_files(settings, strict=False)
    return None if seen and seen["files_sha256"] == _stats_sha256(listing) else listing


def _seen(folder: Path) -> dict[str, Any]:
    """Return what ``folders.json`` says, nothing where it is missing or damaged."""
    with suppress(UserError):
        seen = read_json(folder / FOLDERS, "the folders' times")
        if isinstance(seen, dict):
            return seen
    return {}


def _stats_sha256(listing: Listing) -> str:
    """Return one hash of every file's path, size and time: a quick look needs no million rows in memory."""
    state = hashlib.sha256()
    for entry in listing.entries:
        state.update(
            f"{entry.path}\0{entry.size} {entry.mtime_ns} {entry.problem}\n".encode("utf-8", "surrogateescape")
        )
    return state.hexdigest()


def _plain(folders: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    # JSON must be UTF-8; a folder whose name is not is left out, and a change in it goes unseen by `watch: folders`
    return {path: list(facts) for path, facts in sorted(folders.items()) if shown(path) == path}


def _write_files(
    folder: Path,
    content: str,
    listing: Listing,
    rows: Sequence[Row],
    known: Mapping[str, Row],
    about: Mapping[str, Any],
) -> None:
    """Write ``files.csv`` and ``folders.json`` where they would change; ``about`` says for what the rows hold."""
    if len(rows) != len(known) or any(known.get(row.path) != row for row in rows) or not is_settled(folder):
        write_rows(folder, rows)
    # whether what could not be read can be read now shows neither in its size nor in its time
    read = all(row.digest or entry.problem for row, entry in zip(rows, listing.entries, strict=True))
    stats = _stats_sha256(listing) if read else None
    seen = {**about, "content_sha256": content, "files_sha256": stats, "folders": _plain(listing.folders)}
    if _seen(folder) != seen:
        write_json(folder / FOLDERS, seen)

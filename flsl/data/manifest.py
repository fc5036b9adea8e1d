"""``manifest.json``: what a data set holds, small whatever its size, and whether it is still the same.

Nothing here imports torch or pandas: the workflow asks :func:`revision` whenever it is started.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flsl.data.files import FILES, Row, content_sha256, inspect_all, read_cache, remove_parts, shown, write_rows
from flsl.data.listing import KINDS, KindSettings, Listing, folder_facts, list_files
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import read_json, write_json

MANIFEST = "manifest.json"
FOLDERS = "folders.json"
FIRST = "first"
_LISTED = 100
_LONGEST_LINE = 500
_COMMON_SIZES = 5


@dataclass
class Findings:
    """What the check of one kind of data set adds to what all have in common.

    Attributes:
        splits: figures of each split beyond its files, e.g. its number of annotations.
        extra: further tables of the manifest by name, e.g. ``classes``.
        inconsistencies: one line each: what stages may stumble over.
        notes: one line each: what is worth knowing and harmless.
        rows: the files with their splits, where only the check can tell these; None leaves them as they are.
    """

    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    inconsistencies: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] | None = None


def describe(
    settings: KindSettings, listing: Listing, rows: Sequence[Row], findings: Findings, revision: str
) -> dict[str, Any]:
    """Return the manifest: plain JSON data below about 1 MB, without times, so that equal content reads equally."""
    images = [row for row in rows if row.ok and row.format]
    quarantined = [row for row in rows if not row.ok]
    splits = dict.fromkeys(sorted({row.split for row in rows} | set(findings.splits)))
    files, good, sizes = (
        Counter(row.split for row in part) for part in (rows, (row for row in rows if row.ok), images)
    )
    return {
        "kind": KINDS[type(settings)],
        "root": settings.root,
        "settings": {name: value for name, value in settings.plain().items() if name not in ("root", "watch")},
        "revision": revision,
        "content_sha256": content_sha256(rows),
        "files": len(rows),
        "bytes": sum(row.bytes for row in rows),
        "links": listing.links,
        "splits": {
            split: {"files": files[split], "ok": good[split], "images": sizes[split], **findings.splits.get(split, {})}
            for split in splits
        },
        "image_sizes": _sizes(images),
        "formats": _counts(row.format for row in images),
        "modes": _counts(row.mode for row in images),
        **findings.extra,
        "quarantined": {
            "count": len(quarantined),
            "first": [{"path": _line(row.path), "reason": _line(row.status)} for row in quarantined[:_LISTED]],
        },
        "inconsistencies": _limited(findings.inconsistencies),
        "notes": _limited([*_format_notes(images), *_duplicate_notes(images), *findings.notes]),
    }


def write(
    folder: Path, manifest: Mapping[str, Any], listing: Listing, rows: Sequence[Row], known: Mapping[str, Row]
) -> bool:
    """Write ``files.csv``, ``folders.json`` and, last, ``manifest.json``; leave alone what would not change.

    Args:
        folder: where to.
        manifest: what :func:`describe` returned.
        listing: what was listed.
        rows: the rows, sorted by path.
        known: the rows that ``files.csv`` held before, by path.

    Returns:
        whether ``manifest.json`` was written.

    Raises:
        UserError: when something cannot be written.
    """
    _write_files(folder, listing, rows, known)
    with suppress(UserError):
        if read_json(folder / MANIFEST, "the manifest") == manifest:
            return False
    write_json(folder / MANIFEST, manifest)
    return True


def load_manifest(folder: Path | str) -> dict[str, Any]:
    """Read the ``manifest.json`` in ``folder``.

    Raises:
        UserError: when it is missing or is no manifest.
    """
    path = Path(folder) / MANIFEST
    manifest = read_json(path, "the manifest that `flsl data check` writes")
    needed = {"kind", "root", "splits", "revision", "content_sha256", "files"}
    if not isinstance(manifest, dict) or not needed <= manifest.keys():
        raise UserError(f"{path}: not a manifest; run `flsl data check` again")
    return manifest


def revision(settings: KindSettings, folder: Path | str) -> str:
    """Return a value that changes once when the data set's content changes, for the workflow's rule of the check.

    Without a manifest it is ``"first"``. Else it looks for changed files as ``settings.watch`` says, reads only those
    whose size or time changed, and returns the manifest's own revision as long as the content is the same; otherwise
    the first 16 digits of the new ``content_sha256``, which the check is to store (``--revision``). A root that is not
    there changes nothing: a missing disk must not restart the project, and the check itself says so when it runs.
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
    if settings.watch == "off" or not root.is_dir():
        return stored
    if settings.watch == "folders" and _same_folders(root, folder):
        return stored
    listing = list_files(settings, strict=False)
    try:
        known = read_cache(folder, strict=True)
    except UserError:
        return _another(stored)
    rows = inspect_all(root, listing.entries, known, folder)
    content = content_sha256(rows)
    if content == manifest["content_sha256"]:
        with suppress(UserError):  # a folder that cannot be written costs time at the next look, nothing else
            # the check's verdicts stay, only the times are new
            times = [known.get(row.path, row)._replace(bytes=row.bytes, mtime_ns=row.mtime_ns) for row in rows]
            _write_files(folder, listing, times, known)
        return stored
    return content[:16] if content[:16] != stored else _another(stored)


def _another(stored: str) -> str:
    """Return a value other than ``stored``, always the same one: the check has to run again."""
    return hashlib.sha256(f"again {stored}".encode()).hexdigest()[:16]


def _same_folders(root: Path, folder: Path) -> bool:
    try:
        before = read_json(folder / FOLDERS, "the folders' times")
    except UserError:
        return False
    return isinstance(before, dict) and before == _plain_folders(folder_facts(root, before))


def _plain_folders(folders: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    # JSON must be UTF-8; a folder whose name is not is left out, and a change in it goes unseen by `watch: folders`
    return {path: list(facts) for path, facts in sorted(folders.items()) if shown(path) == path}


def _write_files(folder: Path, listing: Listing, rows: Sequence[Row], known: Mapping[str, Row]) -> None:
    folders = _plain_folders(listing.folders)
    try:
        same = read_json(folder / FOLDERS, "the folders' times") == folders
    except UserError:
        same = False
    if not same:
        write_json(folder / FOLDERS, folders)
    if len(rows) != len(known) or any(known.get(row.path) != row for row in rows) or not (folder / FILES).exists():
        write_rows(folder / FILES, rows)
    remove_parts(folder)


def _sizes(images: Sequence[Row]) -> dict[str, Any]:
    """Return the smallest, median and largest width and height, and the most common sizes."""
    if not images:
        return {}
    sizes = np.array([(row.width, row.height) for row in images])
    common = Counter(map(tuple, sizes.tolist())).most_common(_COMMON_SIZES)
    return {
        "min": sizes.min(0).tolist(),
        "median": np.median(sizes, axis=0).tolist(),
        "max": sizes.max(0).tolist(),
        "most_common": [{"size": list(size), "images": count} for size, count in common],
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _limited(lines: Sequence[str]) -> dict[str, Any]:
    return {"count": len(lines), "first": [_line(line) for line in lines[:_LISTED]]}


def _line(text: str) -> str:
    """Return ``text`` as one printable line of bounded length."""
    text = shown(text).replace("\n", "\\n").replace("\r", "\\r")
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 3] + "..."


def _format_notes(images: Sequence[Row]) -> list[str]:
    """Note files whose name tells another format than their bytes do; they are read by their bytes."""
    endings = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".pgm": "PPM"}
    other = []
    for row in images:
        ending = "." + row.path.rpartition(".")[2].lower()
        named = endings.get(ending, ending[1:].upper())
        if row.format not in (named, "MPO"):
            other.append(f"{row.path} is a {row.format}")
    return [f"{len(other)} file(s) are named as another format than they have, e.g. {other[0]}"] if other else []


def _duplicate_notes(images: Sequence[Row]) -> list[str]:
    """Note equal files, above all those that a training and a test split share."""
    first: dict[str, Row] = {}
    equal: list[str] = []
    across: list[str] = []
    for row in images:
        twin = first.setdefault(row.digest, row)
        if twin is not row:
            (equal if twin.split == row.split else across).append(f"{row.path} = {twin.path}")
    return [
        f"{len(found)} image(s) have the same bytes as another {where}, e.g. {found[0]}"
        for found, where in ((across, "of another split"), (equal, "of their split"))
        if found
    ]

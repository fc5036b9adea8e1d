"""``flsl data pack``: copy the usable images of a checked folder into a few large files; see :mod:`flsl.data.pack`."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from flsl.data.files import FILES, Row, content_sha256, read_rows
from flsl.data.manifest import load_manifest
from flsl.data.pack import PACK, Pack, describe
from flsl.data.reading import patiently
from flsl.runtime.errors import UserError
from flsl.runtime.lock import in_turn
from flsl.runtime.outputs import atomic, write_json
from flsl.runtime.progress import Bar, bar

SHARD_MB = 1024
_BLOCK = tarfile.BLOCKSIZE
# files of a pack, also while they are written
_OURS = re.compile(r"\.?\w+-[0-9a-f]{8}-\d+(-\d{5,}\.tar|\.npy)(\.\w+\.tmp)?")
# reading small files waits for the file system more than it computes
_READERS = 16
_READ_AHEAD = 256


def pack_images(manifest_folder: Path, out: Path, shard_mb: int = SHARD_MB) -> dict[str, Any]:
    """Pack the usable images of every split, and name the pack in the manifest's folder.

    What an earlier, killed call has finished is kept; a pack that is up to date is left alone. Calls for one folder
    wait for each other.

    Args:
        manifest_folder: what ``flsl data check images`` wrote.
        out: the pack's folder.
        shard_mb: size of a tar file, in MB.

    Returns:
        the pack's description.

    Raises:
        UserError: when a file has changed since the check, or the pack cannot be written.
    """
    manifest = load_manifest(manifest_folder)
    if manifest["kind"] != "images":
        raise UserError(f"{manifest_folder}: a manifest of kind {manifest['kind']}; only image folders are packed")
    if out.resolve() == manifest_folder.resolve():
        raise UserError(f"{out}: holds the manifest, whose {PACK} names the pack; choose another folder for the pack")
    rows: dict[str, list[Row]] = {split: [] for split in manifest["splits"] if split}
    for row in read_rows(manifest_folder / FILES):
        if row.ok and row.format:
            rows[row.split].append(row)
    # experiments that share the pack may be started together
    with in_turn(out / ".pack.lock", f"{out}: another process packs into this folder; this one goes on when it ends"):
        description = _pack(manifest["root"], out, rows, shard_mb)
    write_json(manifest_folder / PACK, {"folder": str(out)})
    return description


def _pack(root: str, out: Path, rows: dict[str, list[Row]], shard_mb: int) -> dict[str, Any]:
    """Bring the pack up to date with the usable images by split; return its description."""
    before = _before(out, root)
    with bar("packing images", sum(map(len, rows.values()))) as shown:
        splits = {
            name: _up_to_date(out, before["splits"].get(name), name, content_sha256(found), shown)
            or _pack_split(Path(root), out, name, found, shard_mb, shown)
            for name, found in rows.items()
        }
    description = {"root": root, "splits": splits}
    if description != before:
        write_json(out / PACK, description)
    # what replaced or killed packs left
    for path in list(out.iterdir()):
        if _OURS.fullmatch(path.name) and path.name not in _files(description):
            path.unlink(missing_ok=True)
    return description


def _before(out: Path, root: str) -> dict[str, Any]:
    """Return the description of the pack that is there, empty if there is none."""
    if not (out / PACK).exists():
        return {"root": root, "splits": {}}
    try:
        before = describe(out)
    except UserError:
        raise UserError(
            f"{out / PACK}: does not describe a pack; remove it, or choose another folder for the pack"
        ) from None
    if before.get("root") != root:
        raise UserError(f"{out}: holds a pack of {before.get('root')}, not of {root}; choose another folder")
    return before


def _up_to_date(
    out: Path, before: dict[str, Any] | None, split: str, content: str, shown: Bar
) -> dict[str, Any] | None:
    """Return what an earlier pack says of a split, if it is of these images and its files are whole."""
    if before is None:
        return None
    try:
        Pack(out, split, content)
    except UserError:
        return None
    shown.advance(before["images"])
    return before


def _files(description: dict[str, Any]) -> set[str]:
    splits = description["splits"].values()
    return {shard["file"] for split in splits for shard in split["shards"]} | {split["index"] for split in splits}


def _pack_split(root: Path, out: Path, split: str, rows: list[Row], shard_mb: int, shown: Bar) -> dict[str, Any]:
    content = content_sha256(rows)
    # names of their own for other images: a killed call leaves the pack that was there as it was
    stem = f"{split}-{content[:8]}-{shard_mb}"
    cuts = [(out / f"{stem}-{number:05d}.tar", own) for number, own in enumerate(_cut(rows, shard_mb * 1_000_000))]
    _require_space(out, split, (row for path, own in cuts if not path.exists() for row in own))
    index: list[tuple[int, int, int]] = []
    shards = []
    for number, (path, own) in enumerate(cuts):
        places = _places(path, own) or _write_shard(root, path, own)
        index += [(number, offset, row.bytes) for offset, row in zip(places, own, strict=True)]
        shards.append({"file": path.name, "bytes": path.stat().st_size})
        shown.advance(len(own))
    with atomic(out / f"{stem}.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, np.array(index, dtype=np.int64).reshape(-1, 3))
    return {"images": len(rows), "content_sha256": content, "shards": shards, "index": f"{stem}.npy"}


def _require_space(out: Path, split: str, rows: Iterable[Row]) -> None:
    """Refuse what will not fit before the first file is written, not after hours."""
    needed, free = sum(row.bytes + 2 * _BLOCK for row in rows), shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"{out}: the images of {split} need {needed / 2**20:.1f} MiB where {free / 2**20:.1f} MiB are free; "
            f"free some space"
        )


def _cut(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Cut the images into runs of about ``size`` bytes."""
    own: list[Row] = []
    total = 0
    for row in rows:
        own.append(row)
        total += row.bytes
        if total >= size:
            yield own
            own, total = [], 0
    if own:
        yield own


def _places(path: Path, rows: Sequence[Row]) -> list[int] | None:
    """Return where the images lie in a shard that an earlier call has finished, None if it is not there."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
    except (OSError, tarfile.TarError):
        return None
    if [(member.name, member.size) for member in members] != [(row.path, row.bytes) for row in rows]:
        return None
    return [member.offset_data for member in members]


def _write_shard(root: Path, path: Path, rows: Sequence[Row]) -> list[int]:
    """Write a tar file of the images; return the place of each one's first byte."""
    places = []
    with (
        atomic(path) as temporary,
        temporary.open("wb") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for row, data in zip(rows, _read_all(root, rows), strict=True):
            member = tarfile.TarInfo(row.path)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
            # it ends with the padding to whole blocks
            places.append(stream.tell() - -(-len(data) // _BLOCK) * _BLOCK)
    return places


def _read_all(root: Path, rows: Sequence[Row]) -> Iterator[bytes]:
    """Yield the files' bytes in order, some of them read ahead."""
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(rows), _READ_AHEAD):
            yield from pool.map(lambda row: _read(root, row), rows[start : start + _READ_AHEAD])


def _read(root: Path, row: Row) -> bytes:
    path = root / row.path
    try:
        data = patiently(path.read_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run `flsl data check` again") from None
    if blake2b(data, digest_size=len(row.digest) // 2).hexdigest() != row.digest:
        raise UserError(f"{path}: has changed since it was checked; run `flsl data check` again")
    return data

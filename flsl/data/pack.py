"""A packed copy of an image folder: a few large tar files that are read at any place, in the folder's order.

Where a file system is slow to open files (a network's, or millions of files), reading one of a few files that stay open
costs a single request per image. The images are the folder's own bytes, and image i is image i: training on a pack and
on its folder ends with the same weights.

    <pack>/pack.json                    of each split its images, their digest, its shards and its index
    <pack>/<split>-<digest>-00000.tar   the files by their paths below the root: `tar x` gives the folder back
    <pack>/<split>-<digest>.npy         int64 (images, 3): shard, first byte and number of bytes of each image
    <manifest's folder>/pack.json       names the pack; who reads the manifest reads the images from there
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flsl.data.reading import patiently
from flsl.runtime.errors import UserError, right_in
from flsl.runtime.outputs import read_json

PACK = "pack.json"
_AGAIN = "run `flsl data pack` again"


class Pack:
    """The images of one split in a pack.

    Args:
        folder: the pack.
        split: ``train`` or ``val``.
        content: the digest of the images that are wanted, see :func:`flsl.data.files.content_sha256`.

    Raises:
        UserError: when the pack is not whole, or holds other images.
    """

    def __init__(self, folder: Path, split: str, content: str) -> None:
        found = describe(folder)["splits"].get(split, {})
        if found.get("content_sha256") != content:
            raise UserError(f"{folder}: holds other images of {split} than the manifest names; {_AGAIN}")
        self._shards = [whole_shard(folder, shard) for shard in found["shards"]]
        index = plain(folder, found["index"])
        try:
            # shared by all workers, and read only where it is needed
            self._index: NDArray[np.int64] = np.load(index, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{index}: cannot be read as the pack's index ({error}); {_AGAIN}") from None
        if self._index.shape != (found["images"], 3) or self._index.dtype != np.int64:
            raise UserError(f"{index}: not the index of {found['images']} images; {_AGAIN}")
        shard, start, size = self._index.T
        ends = np.array([each["bytes"] for each in found["shards"]], dtype=np.int64)
        if not ((shard >= 0) & (shard < len(ends)) & (start >= 0) & (size >= 0)).all() or (
            (size > ends[shard] - start).any()
        ):
            raise UserError(f"{index}: names places that the pack's files do not have; {_AGAIN}")
        self._open: dict[int, BinaryIO] = {}

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a process that is given the pack opens the files itself

    def read(self, index: int) -> bytes:
        """Return the bytes of image ``index``.

        Raises:
            UserError: when they cannot be read.
        """
        shard, offset, size = self._index[index].tolist()
        try:
            data = patiently(lambda: self._read(shard, offset, size))
        except OSError as error:
            raise UserError(f"{self._shards[shard]}: cannot be read ({error.strerror})") from error
        if len(data) < size:
            raise UserError(f"{self._shards[shard]}: ends within image {index}; {_AGAIN}")
        return data

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of a shard from ``offset`` on, or fewer where it ends."""
        if shard not in self._open:
            self._open[shard] = self._shards[shard].open("rb", buffering=0)
        try:
            # at a given place: processes that share the open file do not disturb each other
            data = more = os.pread(self._open[shard].fileno(), size, offset)
            while more and len(data) < size:  # a network's file system may give less than it is asked for
                more = os.pread(self._open[shard].fileno(), size - len(data), offset + len(data))
                data += more
        except OSError:
            self._open.pop(shard).close()  # which may have gone stale
            raise
        return data


def describe(folder: Path) -> dict[str, Any]:
    """Return a pack's ``pack.json``.

    Raises:
        UserError: when it is missing or is no pack's.
    """
    description: dict[str, Any] = read_json(folder / PACK, "the pack that `flsl data pack` writes")
    splits = description.get("splits") if isinstance(description, dict) else None
    needed = {"content_sha256", "images", "shards", "index"}
    if not isinstance(splits, dict) or not all(isinstance(s, dict) and needed <= s.keys() for s in splits.values()):
        raise UserError(f"{folder / PACK}: does not describe a pack; {_AGAIN}")
    return description


def named_pack(manifest_folder: Path) -> Path | None:
    """Return the pack from which the images of a manifest are to be read, or None: from their folder.

    Raises:
        UserError: when the file that names it is damaged.
    """
    path = manifest_folder / PACK
    if not path.exists():
        return None
    found = read_json(path, "the name of a pack")
    if not isinstance(found, dict) or not isinstance(found.get("folder"), str):
        raise UserError(f"{path}: names no pack; {_AGAIN}, or remove it to read the images from their folder")
    return Path(found["folder"])


def whole_shard(folder: Path, shard: dict[str, Any]) -> Path:
    """Return a shard's path.

    Raises:
        UserError: when it is missing or shorter than it was.
    """
    path = plain(folder, shard["file"])
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None
    if size != shard["bytes"]:
        raise UserError(f"{path}: has {size} bytes where the pack has {shard['bytes']}; {_AGAIN}")
    return path


def plain(folder: Path, name: str) -> Path:
    """Return the path of a pack's file.

    Raises:
        UserError: when the name is not that of a file right in the pack.
    """
    try:
        return right_in(folder, name, folder / PACK)
    except UserError as error:
        raise UserError(f"{error}; {_AGAIN}") from None

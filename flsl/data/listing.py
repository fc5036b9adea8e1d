"""Which files belong to a data set: its folders by kind, and a fast listing of what lies in them."""

from __future__ import annotations

import contextlib
import gc
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from flsl.config.data import CocoSettings, DavisDataSettings, ImageFolderSettings, UavdtSettings
from flsl.data.decode import EXTENSIONS
from flsl.data.reading import patiently
from flsl.runtime.errors import UserError, inside, require_folder

KindSettings: TypeAlias = ImageFolderSettings | CocoSettings | UavdtSettings | DavisDataSettings
Holds = Literal["images", "masks", "tables"]
KINDS: dict[type[KindSettings], str] = {
    ImageFolderSettings: "images",
    CocoSettings: "coco",
    UavdtSettings: "uavdt",
    DavisDataSettings: "davis",
}
_IGNORED = frozenset({"Thumbs.db", "ehthumbs.db", "desktop.ini", "__MACOSX", "@eaDir"})
# stat waits for a network file system more than it computes: more threads than cores
_LISTING_THREADS = 16


@dataclass(frozen=True)
class Source:
    """A part of a data set.

    Attributes:
        path: folder or file below the root.
        setting: dotted name of the setting that says so, for messages.
        holds: how its files are inspected: images, indexed masks, or tables (any bytes).
        split: name of the split that its files belong to; ``""`` when each kind's check says it by sequence.
        classes: whether the first folder level names the class.
        needed: whether the data set cannot be used without it.
    """

    path: str
    setting: str
    holds: Holds
    split: str = ""
    classes: bool = False
    needed: bool = True


class Entry(NamedTuple):
    """One file as the listing sees it; ``problem`` says why it cannot even be opened, ``""`` if it can."""

    path: str
    split: str
    class_name: str
    holds: Holds
    size: int
    mtime_ns: int
    problem: str


@dataclass
class Listing:
    """What lies in a data set.

    Attributes:
        entries: every file, sorted by its path below the root.
        folders: for each folder its modification time (ns) and number of entries; for each source that is a single
            file its modification time and size.
        links: number of symbolic links among files and folders; they are followed.
    """

    entries: list[Entry] = field(default_factory=list)
    folders: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: int = 0


class _Folder(NamedTuple):
    source: Source
    path: str
    ancestors: tuple[tuple[int, int], ...]


def sources(settings: KindSettings) -> list[Source]:
    """Return the parts of the data set that the settings describe."""
    name = f"data.{KINDS[type(settings)]}"
    match settings:
        case ImageFolderSettings():
            parts = [Source(settings.train, f"{name}.train", "images", "train", classes=True)]
            if settings.val is not None:
                parts.append(Source(settings.val, f"{name}.val", "images", "val", classes=True))
            if settings.boxes is not None:
                parts.append(Source(settings.boxes, f"{name}.boxes", "tables"))
        case CocoSettings():
            parts = [
                Source(settings.train_images, f"{name}.train_images", "images", "train"),
                Source(settings.train_annotations, f"{name}.train_annotations", "tables", "train"),
                Source(settings.val_images, f"{name}.val_images", "images", "val"),
                Source(settings.val_annotations, f"{name}.val_annotations", "tables", "val"),
            ]
        case UavdtSettings():
            parts = [
                # the ground truth alone is enough to evaluate detections made elsewhere
                Source(settings.frames, f"{name}.frames", "images", needed=False),
                Source(settings.ground_truth, f"{name}.ground_truth", "tables"),
            ]
        case DavisDataSettings():
            parts = [
                Source(settings.frames, f"{name}.resolution", "images"),
                Source(settings.masks, f"{name}.resolution", "masks"),
                Source(settings.lists, f"{name}.year", "tables"),
            ]
    return parts


def list_files(settings: KindSettings, strict: bool = True) -> Listing:
    """List a data set's files without opening them; hidden ones and those that desktops and storages leave are ignored.

    Args:
        settings: ``data.<kind>``.
        strict: whether a missing part is an error; else it counts as empty.

    Raises:
        UserError: when the root or a needed part is missing, or a part cannot be read or lies outside the root.
    """
    root = Path(settings.root)
    if strict:
        require_folder(root, f"data.{KINDS[type(settings)]}.root, the data set,")
    listing = Listing()
    level: list[_Folder] = []
    for source in sources(settings):
        path = inside(root, source.path, source.setting)
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {source.setting} needs it") from None
        if is_folder:
            level.append(_Folder(source, Path(source.path).as_posix(), ()))
        elif source.holds == "tables" and is_file:
            _add_file(listing, source, path)
        elif strict and source.needed:
            hint = "; set data.images.val=null if there is none" if source.split == "val" and source.classes else ""
            raise UserError(f"{path}: no such {_form(source)}; {source.setting} needs it{hint}")
    with no_collector(), ThreadPoolExecutor(_LISTING_THREADS) as pool:
        while level:
            following: list[_Folder] = []
            for found, inner in pool.map(lambda folder: _list_folder(root, folder), level):
                listing.entries += found.entries
                listing.folders |= found.folders
                listing.links += found.links
                following += inner
            level = following
        listing.entries.sort(key=itemgetter(0))
    return listing


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Keep Python's garbage collector from walking a million new tuples, none of them in a cycle, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def folder_facts(root: Path, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the present :attr:`Listing.folders` of the given paths; those that are gone are left out."""

    def facts(path: str) -> tuple[str, tuple[int, int] | None]:
        try:
            info = (root / path).stat()
            if not stat.S_ISDIR(info.st_mode):
                return path, (info.st_mtime_ns, info.st_size)
            with os.scandir(root / path) as found:
                return path, (info.st_mtime_ns, sum(1 for _ in found))
        except OSError:
            return path, None

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        return {path: fact for path, fact in pool.map(facts, paths) if fact is not None}


def _form(source: Source) -> str:
    return "file" if source.holds == "tables" and Path(source.path).suffix else "folder"


def _add_file(listing: Listing, source: Source, path: Path) -> None:
    info = path.stat()
    relative = Path(source.path).as_posix()
    listing.entries.append(Entry(relative, source.split, "", source.holds, info.st_size, info.st_mtime_ns, ""))
    listing.folders[relative] = (info.st_mtime_ns, info.st_size)
    listing.links += path.is_symlink()


def _list_folder(root: Path, folder: _Folder) -> tuple[Listing, list[_Folder]]:
    """Return what one folder holds, and the folders in it that are to be listed next."""
    source = folder.source
    listing = Listing()
    inner: list[_Folder] = []
    class_name = _class_name(folder)

    def add(path: str, size: int, mtime_ns: int, problem: str) -> None:
        listing.entries.append(Entry(path, source.split, class_name, source.holds, size, mtime_ns, problem))

    def look() -> tuple[os.stat_result, list[os.DirEntry[str]]]:
        # the time is taken before the names: a change in between shows at the next look
        info = (root / folder.path).stat()
        with os.scandir(root / folder.path) as found:
            return info, list(found)

    try:
        info, children = patiently(look)
    except OSError as error:
        add(folder.path, 0, 0, f"folder cannot be listed ({error.strerror})")
        return listing, inner
    listing.folders[folder.path] = (info.st_mtime_ns, len(children))
    identity = (info.st_dev, info.st_ino)
    if identity in folder.ancestors:
        add(folder.path, 0, 0, "a link to a folder around it")
        return listing, inner
    for child in children:
        if child.name.startswith(".") or child.name in _IGNORED:
            continue
        path = child.name if folder.path == "." else f"{folder.path}/{child.name}"
        listing.links += child.is_symlink()
        try:
            if child.is_dir():
                inner.append(_Folder(source, path, (*folder.ancestors, identity)))
                continue
            info = patiently(child.stat)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)  # what a link names, as the folder has just named the link
            add(path, 0, 0, "a link to nothing" if gone else f"cannot be read ({error.strerror})")
            continue
        add(path, info.st_size, info.st_mtime_ns, _problem(source, child.name, info.st_mode))
    return listing, inner


def _problem(source: Source, name: str, mode: int) -> str:
    """Return why a file will not even be opened: archives of many gigabytes may lie beside the images."""
    if not stat.S_ISREG(mode):
        return "not a regular file"
    _, dot, ending = name.rpartition(".")
    if source.holds == "tables" or f".{ending.lower()}" in EXTENSIONS:
        return ""
    return f"not an image (its name ends in .{ending})" if dot else "not an image (its name has no ending)"


def _class_name(folder: _Folder) -> str:
    if not folder.source.classes:
        return ""
    below = Path(folder.path).relative_to(folder.source.path).parts
    return below[0] if below else ""

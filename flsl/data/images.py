"""Image folders as ImageNet's: the images that training and the probes read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flsl.config.data import ImageFolderSettings
from flsl.data.decode import decode_rgb, load_rgb, read_bytes
from flsl.data.files import FILES, add_content, read_rows, some
from flsl.data.listing import list_files
from flsl.data.manifest import MANIFEST, load_manifest
from flsl.data.pack import PACK, Pack, named_pack
from flsl.data.pixels import decode_pixels
from flsl.data.strings import Strings
from flsl.runtime.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """The usable images of one split, sorted by path.

    Attributes:
        root: the data set's folder.
        split: ``"train"`` or ``"val"``, or the folder that was scanned.
        paths: the images below ``root``.
        labels: int64 (images,): index into ``class_names``; -1 for an image in no class folder.
        class_names: sorted; from a manifest the same for both splits, so that equal labels mean equal classes.
        pack: where the images are read instead of from their folder, if anywhere.
    """

    root: Path
    split: str
    paths: Strings
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    pack: Pack | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Return where image ``index`` lies."""
        return self.root / self.paths[index]

    def load(self, index: int) -> Image.Image:
        """Return image ``index`` in mode RGB."""
        path = self.path(index)
        return load_rgb(path) if self.pack is None else decode_rgb(BytesIO(self.pack.read(index)), path)

    def pixels(self, index: int) -> Tensor:
        """Return the pixels of image ``index``, (3, height, width), uint8: those of :meth:`load`, faster."""
        path = self.path(index)
        return decode_pixels(read_bytes(path) if self.pack is None else self.pack.read(index), path)

    @classmethod
    def from_manifest(cls, folder: Path | str, split: str, labelled: bool = False) -> ImageSet:
        """Take the images that ``flsl data check`` found usable, from their pack where ``flsl data pack`` named one.

        Args:
            folder: holds ``manifest.json`` and ``files.csv``.
            split: ``"train"`` or ``"val"``, or the name of the split's folder.
            labelled: refuse data without usable labels, as the probes need them.

        Raises:
            UserError: when there is no such manifest or split, or, if ``labelled``, when an image is in no class folder
                or ``val`` has a class that ``train`` lacks, or when the pack is not whole or holds other images.
        """
        folder = Path(folder)
        manifest = load_manifest(folder)
        if manifest["kind"] != "images":
            raise UserError(f"{folder / MANIFEST}: a manifest of kind {manifest['kind']}; an image folder is expected")
        folders = {name: manifest["settings"].get(name) for name in ("train", "val") if name in manifest["splits"]}
        name = next((name for name in folders if split in (name, folders[name])), None)
        if name is None:
            raise UserError(f"{folder / MANIFEST}: has no split '{split}'; there are {', '.join(folders)}")
        pack_folder = named_pack(folder)
        content = hashlib.sha256()
        found: list[tuple[str, str]] = []
        classes: dict[str, dict[str, str]] = {"train": {}, "val": {}}
        count = 0
        for row in read_rows(folder / FILES):
            count += 1
            if row.ok and row.format:
                # one string object a class, not one an image
                class_name = classes[row.split].setdefault(row.class_name, row.class_name)
                if row.split == name:
                    found.append((row.path, class_name))
                    if pack_folder is not None:
                        add_content(content, row)
        if count != manifest["files"]:
            raise UserError(
                f"{folder / FILES}: {count} files, but {MANIFEST} says {manifest['files']}; check them again"
            )
        if labelled:
            _require_labels(folder / MANIFEST, classes)
        pack = None
        if pack_folder is not None:
            try:
                pack = Pack(pack_folder, name, content.hexdigest())
            except UserError as error:
                remedy = f"or remove {folder / PACK} to read the images from their folder"
                raise UserError(f"{error}, {remedy}") from None
        return cls._of(Path(manifest["root"]), name, found, set().union(*classes.values()), pack)

    @classmethod
    def scan(cls, root: Path | str, split: str) -> ImageSet:
        """List a folder without a manifest: by names only, so that damaged files are in it too.

        Args:
            root: the data set's folder.
            split: the split's folder below it, ``.`` for ``root`` itself.

        Raises:
            UserError: when the folder is missing or holds no image.
        """
        listing = list_files(ImageFolderSettings(root=str(root), train=split, val=None))
        found = [(entry.path, entry.class_name) for entry in listing.entries if not entry.problem]
        if not found:
            raise UserError(f"{Path(root) / split}: holds no images; <class>/<image> is expected there")
        return cls._of(Path(root), split, found, {name for _, name in found})

    @classmethod
    def _of(
        cls, root: Path, split: str, found: Sequence[tuple[str, str]], classes: set[str], pack: Pack | None = None
    ) -> ImageSet:
        class_names = tuple(sorted(classes - {""}))
        index = {"": -1} | {name: label for label, name in enumerate(class_names)}
        labels = np.fromiter((index[name] for _, name in found), dtype=np.int64, count=len(found))
        return cls(root, split, Strings(path for path, _ in found), labels, class_names, pack)


def _require_labels(manifest: Path, classes: Mapping[str, Iterable[str]]) -> None:
    for split, names in classes.items():
        if "" in names:
            raise UserError(f"{manifest}: images of {split} lie in no class folder; <split>/<class>/<image> is needed")
    extra = sorted(set(classes["val"]) - set(classes["train"]))
    if extra:
        raise UserError(
            f"{manifest}: val has {len(extra)} class(es) without a readable training image ({some(extra)}); "
            f"both splits need the same classes"
        )

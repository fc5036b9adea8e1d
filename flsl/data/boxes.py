"""Object boxes of an image folder: one CSV file, or PASCAL VOC XML files as ImageNet's."""

from __future__ import annotations

import csv
import os
import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flsl.data.strings import Strings
from flsl.runtime.errors import UserError, inside, require_folder

Boxes = NDArray[np.float64]
Size = tuple[int, int]
_COLUMNS = ("path", "x0", "y0", "x1", "y1")
_LARGEST_XML = 2**20


@dataclass(frozen=True)
class CsvBoxes:
    """The boxes of images by their places in a list, in arrays that loading processes share.

    Attributes:
        images: int64 (images,), ascending: those that have boxes.
        rows: float64 (boxes, 4), an image's one after the other.
        ends: int64 (images,), where an image's rows end.
    """

    images: NDArray[np.int64]
    rows: Boxes
    ends: NDArray[np.int64]

    def read(self, image: int, size: Size) -> Boxes:
        """Return an image's boxes as :func:`find_boxes` says; it must be one of ``images``."""
        place = int(np.searchsorted(self.images, image))
        return self.rows[self.ends[place - 1] if place else 0 : self.ends[place]]


@dataclass(frozen=True)
class XmlBoxes:
    """The files of images' boxes by the images' places in a list, in arrays that loading processes share.

    Attributes:
        images: int64 (images,), ascending: those that have a file.
        folder: that the files are in.
        files: an image's file below ``folder``.
    """

    images: NDArray[np.int64]
    folder: Path
    files: Strings

    def read(self, image: int, size: Size) -> Boxes:
        """Return an image's boxes as :func:`find_boxes` says; it must be one of ``images``."""
        return read_xml(self.folder / self.files[int(np.searchsorted(self.images, image))], size)


def find_boxes(root: Path, boxes: str, paths: Sequence[str]) -> CsvBoxes | XmlBoxes:
    """Find the boxes of images; XML files are read one by one later, where their images are.

    Args:
        root: the data set's folder.
        boxes: CSV file or folder of XML files below ``root`` (``data.images.boxes``). The CSV file's header is
            ``path,x0,y0,x1,y1``, its paths are below ``root``. An XML file has its image's name and lies in folders
            named as its image's (``<class>/<name>.xml``, ``<split>/<class>/<name>.xml``, ``<split>/<name>.xml``) or
            flat.
        paths: the images below ``root``.

    Returns:
        what tells an image's boxes from its place in ``paths`` and its size (width, height): float64 (n, 4) of x0, y0,
        x1, y1 in its pixels, from 0, x1 and y1 exclusive. XML boxes are scaled from the size that their file names to
        the image's and clipped to it; one that lies wholly outside is left out, so that none may be left.

    Raises:
        UserError: naming the line of a CSV file that is wrong, or an XML file that fits several images.
    """
    place = inside(root, boxes, "data.images.boxes")
    index = {path: number for number, path in enumerate(paths)}
    if not place.is_file():
        files = {index[image]: file for file, image in match_xml(root, boxes, paths) if image is not None}
        images = np.array(sorted(files), dtype=np.int64)
        return XmlBoxes(images, place, Strings(files[image] for image in images.tolist()))
    named = [(index[path], box) for path, box in read_csv(root, place) if path in index]
    owners = np.array([image for image, _ in named], dtype=np.int64)
    rows = np.array([box for _, box in named], dtype=np.float64).reshape(-1, 4)
    images, counts = np.unique(owners, return_counts=True)
    return CsvBoxes(images, rows[np.argsort(owners, kind="stable")], np.cumsum(counts))


def read_csv(root: Path, file: Path) -> Iterator[tuple[str, Boxes]]:
    """Yield the path and the box (4,) of each row of a CSV file of boxes.

    Raises:
        UserError: naming the line that is wrong.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            header = next(lines, [])
            if tuple(name.strip() for name in header) != _COLUMNS:
                raise UserError(f"{file}: its first line must be {','.join(_COLUMNS)}, not '{','.join(header)[:60]}'")
            for line in lines:
                try:
                    path, *numbers = line
                    x0, y0, x1, y1 = (float(number) for number in numbers)
                except ValueError:
                    raise UserError(f"{file}: line {lines.line_num}: a path and four numbers are expected") from None
                inside(root, path, f"{file}: line {lines.line_num}")
                path = posixpath.normpath(path)
                if not (np.isfinite((x0, y0, x1, y1)).all() and x0 < x1 and y0 < y1):
                    raise UserError(f"{file}: line {lines.line_num}: a box needs x0 < x1 and y0 < y1")
                yield path, np.array((x0, y0, x1, y1))
    except (OSError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as CSV ({error})") from None


def match_xml(root: Path, folder: str, paths: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each XML file below ``root / folder`` (as a path below it) and the image of ``paths`` that it is about.

    Raises:
        UserError: when there is no such folder, or an XML file's name fits several images.
    """
    place = require_folder(inside(root, folder, "data.images.boxes"), "data.images.boxes, a folder or a CSV file,")
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(_stem(path).rpartition("/")[2], []).append(path)
    for base, folders, names in os.walk(place, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if not name.lower().endswith(".xml") or name.startswith("."):
                continue
            relative = (Path(base) / name).relative_to(place).as_posix()
            # `val/n01440764/x.xml` names its image best, `x.xml` least
            named, tail = by_stem.get(Path(name).stem, ()), "/" + _stem(relative)
            fits = [path for path in named if ("/" + _stem(path)).endswith(tail)]
            # `val/x.xml` of `val/n01440764/x.JPEG`: ImageNet's are not sorted into classes
            fits = fits or [path for path in named if _within(relative, path)]
            if len(fits) > 1:
                raise UserError(
                    f"{place / relative}: fits {len(fits)} images, {fits[0]} and {fits[1]} among them; "
                    f"put it in a folder like its image's, <split>/<class>"
                )
            yield relative, fits[0] if fits else None


def read_xml(file: Path, size: Size) -> Boxes:
    """Read one PASCAL VOC file (pixels from 1, corners included) of an image of this size as :func:`find_boxes` says.

    Raises:
        UserError: when it is not such a file, or declares a document type or entities.
    """
    declared, boxes = _parse_xml(file)
    width, height = size
    boxes[:, :2] -= 1
    if declared is not None:
        boxes *= np.array([width / declared[0], height / declared[1]] * 2)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    kept: Boxes = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
    return kept


def _parse_xml(file: Path) -> tuple[Size | None, Boxes]:
    """Return the image's size as the file has it (None where it has none) and the boxes (n, 4) as they stand there."""
    try:
        data = file.read_bytes()
        if len(data) > _LARGEST_XML:
            raise ValueError(f"larger than {_LARGEST_XML} bytes")
        text = data.decode("utf-8-sig")
        # entities can be declared in a document type only, so that without one none can expand or reach for a file
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError("it declares a document type or entities, which boxes do not need")
        tree = ET.fromstring(text)  # noqa: S314 (see above)
        width, height = (int(tree.findtext(f"size/{name}", "0")) for name in ("width", "height"))
        rows = [
            [float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in tree.iterfind("object/bndbox")
        ]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, ET.ParseError) as error:
        raise UserError(f"{file}: not a PASCAL VOC file of boxes ({error})") from None
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all() or (boxes[:, :2] > boxes[:, 2:]).any():
        raise UserError(f"{file}: a box needs xmin <= xmax and ymin <= ymax")
    return ((width, height) if width > 0 and height > 0 else None), boxes


def _within(one: str, other: str) -> bool:
    """Return whether the folders in the path ``one`` are, in their order, among those in ``other``."""
    left = iter(other.split("/")[:-1])
    return all(name in left for name in one.split("/")[:-1])


def _stem(path: str) -> str:
    """Return a path without the ending of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)

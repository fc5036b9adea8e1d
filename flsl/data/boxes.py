"""Object boxes of an image folder: one CSV file, or PASCAL VOC XML files as ImageNet's."""

from __future__ import annotations

import csv
import os
import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flsl.data.decode import EXTENSIONS, open_image, reason
from flsl.runtime.errors import UserError, inside, require_folder

Boxes = NDArray[np.float64]
Size = tuple[int, int]
_COLUMNS = ("path", "x0", "y0", "x1", "y1")
_LARGEST_XML = 2**20


def read_boxes(
    root: Path | str,
    boxes: str,
    paths: Iterable[str] | None = None,
    sizes: Mapping[str, Size] | None = None,
) -> dict[str, Boxes]:
    """Read the boxes of an image folder.

    Args:
        root: the data set's folder.
        boxes: CSV file or folder of XML files below ``root`` (``data.images.boxes``). The CSV file's header is
            ``path,x0,y0,x1,y1``, its paths are below ``root``. An XML file has its image's name and lies in a folder
            named as its image's (``<class>/<name>.xml``, ``<split>/<class>/<name>.xml``) or flat.
        paths: images to read boxes of, below ``root``; None takes all that ``root`` holds.
        sizes: width and height of images by path, where known; else an XML file's image is opened to learn it.

    Returns:
        for each image that has boxes a float64 array (n, 4) of x0, y0, x1, y1 in the image's pixels, from 0, x1 and y1
        exclusive. XML boxes are scaled from the size that their file names to the image's and clipped to it; a box that
        lies wholly outside is left out.

    Raises:
        UserError: naming the file and line that is wrong, or an XML file that fits several images.
    """
    root = Path(root)
    place = inside(root, boxes, "data.images.boxes")
    if place.is_file():
        chosen = None if paths is None else set(paths)
        found: dict[str, list[Boxes]] = {}
        for path, box in read_csv(root, place):
            if chosen is None or path in chosen:
                found.setdefault(path, []).append(box)
        return {path: np.stack(rows) for path, rows in found.items()}
    result: dict[str, Boxes] = {}
    for xml, image in match_xml(root, boxes, _images(root, place) if paths is None else paths):
        if image is not None:
            array = read_xml(place / xml, root / image, None if sizes is None else sizes.get(image))
            if len(array):
                result[image] = array
    return result


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
            tail = "/" + _stem(relative)
            fits = [path for path in by_stem.get(Path(name).stem, ()) if ("/" + _stem(path)).endswith(tail)]
            if len(fits) > 1:
                raise UserError(
                    f"{place / relative}: fits {len(fits)} images, {fits[0]} and {fits[1]} among them; "
                    f"put it in a folder like its image's, <split>/<class>"
                )
            yield relative, fits[0] if fits else None


def read_xml(file: Path, image: Path, size: Size | None = None) -> Boxes:
    """Read one PASCAL VOC file (pixels from 1, corners included) as :func:`read_boxes` says.

    Raises:
        UserError: when it is not such a file, declares a document type or entities, or its image cannot be opened.
    """
    declared, boxes = _parse_xml(file)
    width, height = size if size is not None else _size_of(image)
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


def _size_of(image: Path) -> Size:
    try:
        with image.open("rb") as stream, open_image(stream) as opened:
            return opened.size
    except Exception as error:  # whatever a parser of damaged bytes may raise
        raise UserError(f"{image}: not a readable image: {reason(error)}") from None


def _images(root: Path, boxes: Path) -> Iterator[str]:
    """Yield the images below ``root`` that are not in the folder of the boxes."""
    for base, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(base, name) != boxes)
        for name in sorted(names):
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                yield Path(base, name).relative_to(root).as_posix()


def _stem(path: str) -> str:
    """Return a path without the ending of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)

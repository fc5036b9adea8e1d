"""Which images are looked at, and the two views of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from flsl.data.crops import CROP_DRAWS, random_resized_boxes
from flsl.data.decode import EXTENSIONS, load_rgb
from flsl.data.files import FILES, read_rows
from flsl.data.images import ImageSet
from flsl.data.manifest import MANIFEST, load_manifest
from flsl.runtime.errors import UserError, require_folder

# of the student's view, as a share of the teacher's: small enough to be told apart, large enough for context
_AREA = (0.3, 0.6)


@dataclass(frozen=True)
class Source:
    """An image that may be looked at.

    Attributes:
        path: where it lies, or lay before it was packed.
        load: reads it in mode RGB.
    """

    path: Path
    load: Callable[[], Image.Image]


class Sources(Protocol):
    """Images by their number; a list of them, or what makes each when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Source: ...


class _Checked:
    """The images of splits of a checked image folder, read from their pack where there is one."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self._sets = sets

    def __len__(self) -> int:
        return sum(len(images) for images in self._sets)

    def __getitem__(self, index: int, /) -> Source:
        for images in self._sets:
            if index < len(images):
                return Source(images.path(index), partial(images.load, index))
            index -= len(images)
        raise IndexError(index)


@dataclass(frozen=True)
class View:
    """One image as the teacher and the student see it, without changes of colour.

    Attributes:
        path: the image.
        teacher: its central square, side S.
        box: top, left, height and width of the student's crop in the teacher's view, in pixels.
        student: that crop, resized to side S.
    """

    path: Path
    teacher: Image.Image
    box: tuple[int, int, int, int]
    student: Image.Image

    @property
    def name(self) -> str:
        """The file's name with its folder's, which is the class in many data sets."""
        return f"{self.path.parent.name}/{self.path.name}".lstrip("/")


def files(paths: Iterable[Path]) -> list[Source]:
    """Return image files as what may be looked at."""
    return [Source(path, partial(load_rgb, path)) for path in paths]


def images_of(folder: Path, split: str) -> Sources:
    """Return a data set's usable images, by path.

    Args:
        folder: what ``flsl data check`` wrote for images, COCO, UAVDT or DAVIS; or any folder of images.
        split: of a checked set; a set without that split gives all of its images.

    Raises:
        UserError: when there is no image.
    """
    require_folder(folder, "a checked data set or a folder of images")
    if (folder / MANIFEST).is_file():
        manifest = load_manifest(folder)
        root, every = Path(manifest["root"]), split not in manifest["splits"]
        if manifest["kind"] == "images":
            return _Checked(
                [ImageSet.from_manifest(folder, name) for name in manifest["splits"] if every or name == split]
            )
        # masks are images, too
        start = "JPEGImages" if manifest["kind"] == "davis" else ""
        rows = (row for row in read_rows(folder / FILES) if (every or row.split == split) and row.ok and row.format)
        found = [root / row.path for row in rows if row.path.startswith(start) and Path(row.path).suffix]
    else:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise UserError(f"{folder}: holds no images; a checked data set or a folder of images is expected")
    return files(found)


def evenly(images: Sources, count: int) -> list[Source]:
    """Return ``count`` of the images, evenly spaced, or all if there are fewer."""
    picked = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[int(index)] for index in picked]


def square(image: Source, size: int) -> Image.Image:
    """Return the image's largest central square, resized (bicubic) to ``size`` pixels a side."""
    return ImageOps.fit(image.load(), (size, size), Image.Resampling.BICUBIC)


def view(image: Source, size: int, seed: int) -> View:
    """Make both views of an image; the student's crop is a function of the seed and the file's name."""
    teacher = square(image, size)
    name = np.frombuffer(image.path.name.encode("utf-8", "surrogateescape"), dtype=np.uint8)
    numbers = np.random.default_rng((seed, *name.tolist())).random((1, CROP_DRAWS))
    top, left, height, width = (int(number) for number in random_resized_boxes(numbers, size, size, _AREA)[0])
    crop = teacher.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    return View(image.path, teacher, (top, left, height, width), crop)


def pixels(images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """Return equally large RGB images as (batch, 3, height, width) in [0, 1]."""
    stacked: NDArray[np.uint8] = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float() / 255


def batches(images: Sequence[Source], size: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the images' central squares (batch, 3, size, size) in [0, 1], in order."""
    for start in range(0, len(images), batch_size):
        yield pixels([square(image, size) for image in images[start : start + batch_size]], device)

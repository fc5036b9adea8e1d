"""Sequences of DAVIS 2017 in the official layout: which there are, their frames, their masks.

``ImageSets/<year>/<split>.txt`` lists the sequences, ``JPEGImages/<resolution>/<sequence>/%05d.jpg`` are the frames and
``Annotations/<resolution>/<sequence>/%05d.png`` the masks: one channel, 0 the background, 1…n the objects, 255 void.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flsl.config.data import DavisDataSettings
from flsl.data.davis import LEAST_FRAMES, read_list
from flsl.data.decode import open_image, reason
from flsl.runtime.errors import UserError, nearest, require_folder, right_in
from flsl.runtime.progress import counted

LabelMap: TypeAlias = NDArray[np.uint8]
VOID = 255


@dataclass(frozen=True)
class Video:
    """A sequence to propagate labels through.

    Attributes:
        name: the sequence's name.
        frames: paths of the frames in order, at least one.
        first_mask: path of the first frame's mask.
    """

    name: str
    frames: tuple[Path, ...]
    first_mask: Path


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turn the system's refusal to look into a folder into a one-line ``UserError``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def split_list(data: DavisDataSettings, split: str) -> Path:
    """Return the path of the split's list of sequences."""
    return Path(data.root) / data.lists / f"{split}.txt"


@reading()
def sequence_names(data: DavisDataSettings, split: str, only: Iterable[str] = ()) -> list[str]:
    """Return the names of the split's sequences, or those of ``only`` where it names any.

    Args:
        data: the folders.
        split: the list's name.
        only: names of sequences, of the split or of the data set.

    Raises:
        UserError: when the list is missing, unreadable or empty, or a sequence is unknown.
    """
    root = require_folder(data.root, "DAVIS (JPEGImages, Annotations, ImageSets)")
    path = split_list(data, split)
    if not path.exists():
        splits = [list_.stem for list_ in files_of(path.parent, ".txt")]
        known = f"; there {'are' if len(splits) > 1 else 'is'} {', '.join(splits)}" if splits else ""
        raise UserError(f"{path}: no such list of sequences{known}")
    names = list(dict.fromkeys(read_list(path)))
    wanted = list(dict.fromkeys(only))
    frames = root / data.frames
    for name in wanted:
        if name not in names and not right_in(frames, name, "--sequences").is_dir():
            raise UserError(f"--sequences: '{name}' is not a sequence of {path}{nearest(name, names)}")
    for name in names:
        right_in(frames, name, path)
    if not names:
        raise UserError(f"{path}: lists no sequence; one name per line is expected")
    return wanted or names


@reading()
def open_video(data: DavisDataSettings, name: str) -> Video:
    """Return a sequence's frames and its first mask's path.

    Raises:
        UserError: when frames are missing, are not numbered in equal steps or without leading zeros, or the first mask
            is missing.
    """
    root = Path(data.root)
    frames = _numbered(require_folder(root / data.frames / name, f"frames of {name}"), ".jpg")
    mask = root / data.masks / name / f"{frames[0].stem}.png"
    if not mask.is_file():
        raise UserError(f"{mask}: no such file; the mask of the first frame of {name} is expected there")
    return Video(name, frames, mask)


@reading()
def ground_truth(data: DavisDataSettings, name: str) -> tuple[Path, ...]:
    """Return the paths of a sequence's masks, one for every frame where its frames are at hand.

    Raises:
        UserError: when masks are missing, or there are too few to evaluate.
    """
    folder = require_folder(Path(data.root) / data.masks / name, f"masks of {name}")
    masks = _numbered(folder, ".png")
    frames = [path.stem for path in files_of(Path(data.root) / data.frames / name, ".jpg")]
    missing = sorted(set(frames) - {mask.stem for mask in masks})
    if missing and len(masks) == 1:
        raise UserError(
            f"{folder}: only the first frame is annotated, as in DAVIS' test splits; such sequences can be propagated, "
            "not evaluated"
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder}: the mask {missing[0]}.png of a frame{more} is missing")
    if len(masks) < LEAST_FRAMES:
        raise UserError(
            f"{folder}: {counted(len(masks), 'frame')}; the first and the last are not evaluated, "
            f"so that at least {LEAST_FRAMES} are needed"
        )
    return masks


@reading()
def is_annotated(data: DavisDataSettings, name: str) -> bool:
    """Tell whether more than the first frame of a sequence has a mask."""
    return len(files_of(Path(data.root) / data.masks / name, ".png")) > 1


@reading()
def predicted(folder: Path, name: str, truth: Sequence[Path]) -> tuple[Path, ...]:
    """Return the predicted masks' paths, named as the masks of the ground truth ``truth``.

    Raises:
        UserError: when the sequence or masks of it are missing.
    """
    folder = require_folder(folder / name, f"predicted masks of {name}")
    paths = tuple(folder / mask.name for mask in truth)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder}: the predicted mask {missing[0]}{more} of {len(paths)} is missing")
    return paths


def files_of(folder: Path, suffix: str) -> list[Path]:
    """Return the files right in a folder whose names end so, in order; hidden ones, as macOS leaves them, are none."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.suffix == suffix and not path.name.startswith("."))


def read_mask(path: Path) -> LabelMap:
    """Read a mask's ids (height, width), void included.

    Raises:
        UserError: when it is no image of one channel of ids.
    """
    try:
        with path.open("rb") as stream, open_image(stream) as image:
            mode = image.mode
            labels = np.asarray(image) if mode in ("P", "L", "1") else None
    except Exception as error:  # whatever a parser of damaged bytes may raise
        raise UserError(f"{path}: cannot be read as an image ({reason(error)}); a mask is an indexed PNG") from None
    if labels is None:
        raise UserError(f"{path}: an image of mode {mode}; a mask is an indexed PNG whose pixels are object ids 0…n")
    return labels.astype(np.uint8)


def read_first_mask(path: Path) -> LabelMap:
    """Read a first frame's mask with void made background, and see to it that it names objects.

    Raises:
        UserError: when it is empty or a 0/255 mask.
    """
    labels = read_mask(path)
    objects = labels[(labels != 0) & (labels != VOID)]
    if not objects.size:
        if (labels == VOID).any():
            raise UserError(f"{path}: a 0/255 mask; objects are given by ids 1…n (write 1 for 255), 255 is void")
        raise UserError(f"{path}: the first mask is empty; there is no object to follow")
    return np.where(labels == VOID, np.uint8(0), labels)


def _numbered(folder: Path, suffix: str) -> tuple[Path, ...]:
    """List a folder's images in order, and refuse a list with a hole."""
    paths = tuple(files_of(folder, suffix))
    if not paths:
        raise UserError(f"{folder}: holds no {suffix} files; frames are numbered 00000{suffix}, 00001{suffix}, …")
    if not all(path.stem.isdecimal() for path in paths):
        return paths
    numbers = [int(path.stem) for path in paths]
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if steps and min(steps) <= 0:
        # as the official tool sorts them
        raise UserError(f"{folder}: names are sorted as text; write numbers with leading zeros, e.g. 00000{suffix}")
    if len(steps) > 1:
        step = min(steps)
        for path, before, after in zip(paths, numbers, numbers[1:], strict=False):
            if after - before != step:
                hole = f"{before + step:0{len(path.stem)}d}{suffix}"
                raise UserError(
                    f"{folder}: {hole} is missing; {path.name} and {after:0{len(path.stem)}d}{suffix} exist"
                )
    return paths

"""Feature files: safetensors that are written batch by batch, so that memory does not grow with the data set."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import atomic

_ALIGNMENT = 8
_CHECKED = 4096  # rows


@dataclass(frozen=True)
class Features:
    """One split's frozen features.

    Attributes:
        features: (n, C), float32: the mean patch token of one block, or of several, concatenated.
        labels: (n,), int64.
        classes: the classes' names.
        paths: the images' paths below their root.
        about: the file's metadata: how the features were made.
    """

    features: Tensor
    labels: Tensor
    classes: list[str]
    paths: list[str]
    about: dict[str, str]


@contextlib.contextmanager
def feature_file(
    path: Path,
    shape: tuple[int, int, int],
    labels: Tensor,
    classes: Sequence[str],
    paths: Sequence[str],
    about: Mapping[str, str],
) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function that appends features to a new file, which appears under its name when all are in.

    Args:
        path: the ``.safetensors`` file.
        shape: of ``features``: n, blocks, C; the function is called with (batch, blocks, C), image by image.
        labels: (n,), int64.
        classes: the classes' names.
        paths: the images' paths below their root.
        about: further metadata.

    Raises:
        UserError: when the file cannot be written.
    """
    # paths as one tensor of bytes, each ended by NUL: a header may not hold the names of millions of images
    names = b"".join(os.fsencode(name) + b"\0" for name in paths)
    names += b"\0" * (-len(names) % _ALIGNMENT)
    tensors = {"labels": ("I64", (shape[0],), 8), "paths": ("U8", (len(names),), 1), "features": ("F32", shape, 4)}
    left = shape[0]
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(_header(tensors, {**about, "classes": json.dumps(list(classes))}))
        file.write(labels.numpy().astype("<i8").tobytes())
        file.write(names)

        def append(features: Tensor) -> None:
            nonlocal left
            left -= len(features)
            file.write(features.numpy().astype("<f4").tobytes())

        yield append
        if left:
            raise ValueError(f"{path}: features of {left} of {shape[0]} images are missing")


def _header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors header of tensors that follow each other; each is type, shape and bytes an element."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (kind, shape, size) in tensors.items():
        end = at + size * math.prod(shape)
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_features(path: Path, blocks: int = 1) -> Features:
    """Read the features of the last ``blocks`` blocks, and nothing of the others.

    Raises:
        UserError: when the file is missing or no feature file, or holds fewer blocks or features that are not finite.
    """
    require_file(path, "frozen features, made by `flsl features`,")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            stored = file.get_slice("features")
            count = stored.get_shape()[1]
            features = stored[:, max(0, count - blocks) :].flatten(1)
            labels = file.get_tensor("labels")
            names = bytes(file.get_tensor("paths").numpy())
            classes = json.loads(about["classes"])
    except Exception as error:  # the reader has an error class of its own beside the usual ones
        raise UserError(f"{path}: not a file of frozen features ({error}); make it with `flsl features`") from None
    if count < blocks:
        raise UserError(
            f"{path}: holds features of {count} blocks where {blocks} are needed; set features.blocks={blocks} and "
            "run `flsl features` again"
        )
    paths = [os.fsdecode(name) for name in names.split(b"\0")[: len(labels)]]
    check_finite(features, paths)
    return Features(features, labels, classes, paths, about)


def check_finite(features: Tensor, paths: Sequence[str]) -> None:
    """Refuse features with NaN or infinity.

    Args:
        features: (n, …).
        paths: the n images that they are of.

    Raises:
        UserError: naming the first image that has them.
    """
    # in parts: all at once, a million features would need as much memory again
    finite = torch.cat([part.isfinite().flatten(1).all(1) for part in torch.split(features, _CHECKED)])
    if not bool(finite.all()):
        bad = finite.logical_not().nonzero()[:, 0].tolist()
        raise UserError(
            f"{paths[bad[0]]}: the encoder's features of this image are not finite (NaN or infinity; {len(bad)} of "
            f"{len(paths)} images); check the encoder's weights, or set features.precision=float32"
        )

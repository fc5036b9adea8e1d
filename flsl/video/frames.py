"""Frames to features: resized as the protocol says, decoded ahead on threads, encoded in batches, each once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flsl.config.video import DavisSettings
from flsl.data.decode import load_rgb
from flsl.model.backbone import Backbone
from flsl.runtime.errors import UserError

_BATCHES_AHEAD = 2
_THREADS = 2
_PREVIEW_SIDE = 320  # pixels


@dataclass(frozen=True)
class Frame:
    """A decoded frame: ``pixels`` (3, height, width), 8-bit, for the encoder, and a small ``picture`` for previews."""

    pixels: Tensor
    picture: Image.Image


def protocol_size(width: int, height: int, settings: DavisSettings, patch_size: int) -> tuple[int, int]:
    """Return the (width, height) that frames of ``width`` × ``height`` pixels are resized to.

    The short side becomes ``size``, the long side keeps the aspect and is rounded down to a multiple of ``multiple``.
    Patch sizes that do not divide these numbers (14, say) round both sides down to multiples of the patch.

    Raises:
        UserError: when a side would be smaller than one patch.
    """
    step = settings.multiple if settings.multiple % patch_size == 0 else patch_size
    short = settings.size // patch_size * patch_size
    long = settings.size * max(width, height) // min(width, height) // step * step
    if not short:
        raise UserError(f"davis.size: {settings.size} pixels are less than one patch of {patch_size}")
    if not long:
        raise UserError(
            f"davis.multiple: frames of {width}×{height} at davis.size {settings.size} are shorter than {step} pixels; "
            f"take a smaller multiple, e.g. {patch_size}"
        )
    return (long, short) if width >= height else (short, long)


def load_frame(path: Path, size: tuple[int, int], original: tuple[int, int]) -> Frame:
    """Decode a frame and resize it (bilinear) to ``size``, (width, height) in pixels.

    Raises:
        UserError: when it cannot be read, or is not of the ``original`` size, that of the first mask.
    """
    image = load_rgb(path)
    if image.size != original:
        raise UserError(
            f"{path}: {image.width}×{image.height} pixels, but the first mask has {original[0]}×{original[1]}; "
            "the frames and masks of a sequence are of one size"
        )
    resized = image.resize(size, Image.Resampling.BILINEAR)
    return Frame(torch.from_numpy(np.array(resized)).permute(2, 0, 1), preview_picture(image))


def preview_picture(image: Image.Image) -> Image.Image:
    """Return an image resized so that its long side is that of previews."""
    scale = _PREVIEW_SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def load_batches(
    paths: Sequence[Path], size: tuple[int, int], original: tuple[int, int], batch_size: int
) -> Iterator[list[Frame]]:
    """Yield the frames of ``paths`` in batches, while threads decode the next ones; memory holds a few batches."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Frame]] = deque()
        left = iter(paths)
        try:
            while True:
                for path in left:
                    waiting.append(pool.submit(load_frame, path, size, original))
                    if len(waiting) >= (1 + _BATCHES_AHEAD) * batch_size:
                        break
                if not waiting:
                    return
                yield [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
        finally:
            for future in waiting:
                future.cancel()


def encode(frames: Sequence[Frame], backbone: Backbone, device: torch.device, precision: str) -> Tensor:
    """Return the frames' patch features (frames, rows, columns, C), float32, of unit length.

    Args:
        frames: all of one size.
        backbone: on ``device``.
        device: where to compute.
        precision: ``auto`` (bf16 on CUDA, else float32), ``bf16`` or ``float32``.

    Raises:
        UserError: when the encoder gives numbers that are not finite.
    """
    mean = torch.tensor(backbone.mean, device=device)[:, None, None]
    std = torch.tensor(backbone.std, device=device)[:, None, None]
    images = (torch.stack([frame.pixels for frame in frames]).to(device).float() / 255 - mean) / std
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        tokens = backbone.tokens(images).float()
    if not tokens.isfinite().all():
        raise UserError(f"{backbone.name}: the encoder's features are not finite; are its weights damaged?")
    rows = images.shape[-2] // backbone.patch_size
    return F.normalize(tokens, dim=-1).view(len(frames), rows, -1, tokens.shape[-1])

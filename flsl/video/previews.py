"""What a person looks at: a sequence's masks over its frames, as an animation and as a contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flsl.data.palette import palette
from flsl.runtime.outputs import atomic
from flsl.video.sequences import LabelMap

_ANIMATED_FRAMES = 40
_SHEET_FRAMES = 8
_SHEET_COLUMNS = 4
_SECONDS = 4.0
_OPACITY = 0.5


def preview_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return where the animation and the contact sheet of the sequence ``name`` stand."""
    return folder / f"{name}.gif", folder / f"{name}.jpg"


class Previews:
    """Collects a sequence's overlays (some 40 small pictures) and writes ``<name>.gif`` and ``<name>.jpg``."""

    def __init__(self, frames: int) -> None:
        """Choose evenly spaced ones of ``frames`` frames."""
        self._sheet = _spaced(frames, _SHEET_FRAMES)
        self._animated = _spaced(frames, _ANIMATED_FRAMES)
        self._overlays: dict[int, Image.Image] = {}

    def add(self, index: int, picture: Image.Image, labels: LabelMap) -> None:
        """Take frame ``index``, a small ``picture`` of it and its label map (of any size)."""
        if index in self._sheet or index in self._animated:
            self._overlays[index] = overlay(picture, labels)

    def write(self, folder: Path, name: str) -> None:
        """Write the animation and the contact sheet into ``folder``."""
        images = [
            self._overlays[index].quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            for index in self._animated
        ]
        animation, sheet = preview_paths(folder, name)
        with atomic(animation) as path:
            milliseconds = round(1000 * _SECONDS / _ANIMATED_FRAMES)
            images[0].save(
                path,
                format="GIF",
                save_all=True,
                append_images=images[1:],
                duration=milliseconds,
                loop=0,
                optimize=False,
            )
        with atomic(sheet) as path:
            self._contact_sheet().save(path, format="JPEG", quality=88)

    def _contact_sheet(self) -> Image.Image:
        width, height = self._overlays[0].size
        columns = min(_SHEET_COLUMNS, len(self._sheet))
        sheet = Image.new("RGB", (columns * width, -(-len(self._sheet) // columns) * height))
        draw = ImageDraw.Draw(sheet)
        for place, index in enumerate(self._sheet):
            corner = (place % columns * width, place // columns * height)
            sheet.paste(self._overlays[index], corner)
            text = f"frame {index}" + (" (given)" if index == 0 else "")
            draw.text((corner[0] + 4, corner[1] + 2), text, fill="white", stroke_width=1, stroke_fill="black")
        return sheet


def overlay(picture: Image.Image, labels: LabelMap) -> Image.Image:
    """Lay a label map's colours over an RGB picture, whose size it is brought to (nearest), each object outlined."""
    pixels = np.asarray(picture).astype(np.float32)
    ids = np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)[ids].astype(np.float32)
    # DAVIS' colours are dark: twice their brightness shows on photographs
    tinted = (1 - _OPACITY) * pixels + _OPACITY * np.minimum(2 * colours, 255)
    shown = np.where((ids > 0)[..., None], tinted, pixels)
    edge = np.zeros(ids.shape, bool)
    edge[:-1] |= ids[:-1] != ids[1:]
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    shown[edge] = 255
    return Image.fromarray(shown.astype(np.uint8))


def _spaced(frames: int, count: int) -> list[int]:
    """Return up to ``count`` evenly spaced frame numbers, the first and the last among them, each once."""
    return sorted({round(float(place)) for place in np.linspace(0, frames - 1, min(frames, count))})

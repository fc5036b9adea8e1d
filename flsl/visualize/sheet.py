"""Sheets of pictures with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from flsl.runtime.outputs import atomic

_GAP, _TEXT, _SMALL, _TITLE = 6, 14, 12, 18
_INK, _GREY = (20, 20, 20), (110, 110, 110)


def sheet(
    title: str,
    note: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Image.Image | None]]],
    cell: int = 144,
) -> Image.Image:
    """Lay pictures out as a labelled grid.

    Args:
        title: over all.
        note: a line below it, saying how to read the sheet.
        columns: their labels.
        rows: each one's label and its pictures, left to right, which are resized to ``cell`` pixels; None stays empty.
        cell: side of a picture.
    """
    text, small, large = (ImageFont.load_default(size) for size in (_TEXT, _SMALL, _TITLE))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    names = [wrapped(label, text, pen, 170) for label, _ in rows]
    side = 2 * _GAP + max((round(pen.textlength(line, text)) for lines in names for line in lines), default=0)
    width = max(side + len(columns) * (cell + _GAP) + _GAP, 2 * _GAP + round(pen.textlength(title, large)))
    notes = wrapped(note, small, pen, max(width - 2 * _GAP, 320))
    width = max(width, 2 * _GAP + max(round(pen.textlength(line, small)) for line in notes))
    heads = [wrapped(label, text, pen, cell) for label in columns]
    line = _TEXT + 3
    body = 2 * _GAP + _TITLE + 6 + len(notes) * (_SMALL + 4) + _GAP + max(map(len, heads), default=0) * line + 4
    made = Image.new("RGB", (width, body + len(rows) * (cell + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(made)
    pen.text((_GAP, _GAP), title, _INK, large)
    for place, words in enumerate(notes):
        pen.text((_GAP, 2 * _GAP + _TITLE + 6 + place * (_SMALL + 4)), words, _GREY, small)
    for column, lines in enumerate(heads):
        for place, words in enumerate(lines):
            at = body - 4 - (len(lines) - place) * line
            pen.text((side + column * (cell + _GAP), at), words, _INK, text)
    for row, (lines, (_, pictures)) in enumerate(zip(names, rows, strict=True)):
        top = body + row * (cell + _GAP)
        for place, words in enumerate(lines):
            pen.text((_GAP, top + cell // 2 + round((place - len(lines) / 2) * line)), words, _INK, text)
        for column, picture in enumerate(pictures):
            if picture is not None:
                made.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), (side + column * (cell + _GAP), top))
    return made


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, pen: ImageDraw.ImageDraw, width: int
) -> list[str]:
    """Break a text into lines of at most ``width`` pixels; words, such as runs' names, only where they are longer."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
        while (cut := _cut(lines[-1], font, pen, width)) < len(lines[-1]):
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
    return lines


def _cut(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, pen: ImageDraw.ImageDraw, width: int) -> int:
    """Return how many letters of a word fit on a line: all, or those up to the last mark between its parts."""
    fit = next((count for count in range(len(word), 1, -1) if pen.textlength(word[:count], font) <= width), 1)
    mark = max(word.rfind(mark, 0, fit) for mark in "-_/=") + 1
    return mark if mark and fit < len(word) else fit

"""What a check found, put together as the manifest: small whatever the data set's size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flsl.data.files import Row, content_sha256, shown
from flsl.data.listing import KINDS, KindSettings, Listing

_LISTED = 100
_LONGEST_LINE = 500
_COMMON_SIZES = 5


@dataclass
class Findings:
    """What the check of one kind of data set adds to what all have in common.

    Attributes:
        splits: figures of each split beyond its files, e.g. its number of annotations.
        extra: further tables of the manifest by name, e.g. ``classes``.
        inconsistencies: one line each: what stages may stumble over.
        notes: one line each: what is worth knowing and harmless.
        rows: the files with their splits, where only the check can tell these; None leaves them as they are.
    """

    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    inconsistencies: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] | None = None


def describe(
    settings: KindSettings, listing: Listing, rows: Sequence[Row], findings: Findings, revision: str
) -> dict[str, Any]:
    """Return the manifest: plain JSON data below about 1 MB, without times, so that equal content reads equally."""
    images = [row for row in rows if row.ok and row.format]
    quarantined = [row for row in rows if not row.ok]
    splits = dict.fromkeys(sorted({row.split for row in rows} | set(findings.splits)))
    files, good, sizes = (
        Counter(row.split for row in part) for part in (rows, (row for row in rows if row.ok), images)
    )
    return {
        "kind": KINDS[type(settings)],
        "root": settings.root,
        "settings": {name: value for name, value in settings.plain().items() if name not in ("root", "pack", "watch")},
        "revision": revision,
        "content_sha256": content_sha256(rows),
        "files": len(rows),
        "bytes": sum(row.bytes for row in rows),
        "links": listing.links,
        "splits": {
            split: {"files": files[split], "ok": good[split], "images": sizes[split], **findings.splits.get(split, {})}
            for split in splits
        },
        "image_sizes": _sizes(images),
        "formats": _counts(row.format for row in images),
        "modes": _counts(row.mode for row in images),
        **findings.extra,
        "quarantined": {
            "count": len(quarantined),
            "first": [{"path": _line(row.path), "reason": _line(row.status)} for row in quarantined[:_LISTED]],
        },
        "inconsistencies": _limited(findings.inconsistencies),
        "notes": _limited([*_format_notes(images), *_duplicate_notes(images), *findings.notes]),
    }


def _sizes(images: Sequence[Row]) -> dict[str, Any]:
    """Return the smallest, median and largest width and height, and the most common sizes."""
    if not images:
        return {}
    sizes = np.array([(row.width, row.height) for row in images])
    common = Counter(map(tuple, sizes.tolist())).most_common(_COMMON_SIZES)
    return {
        "min": sizes.min(0).tolist(),
        "median": np.median(sizes, axis=0).tolist(),
        "max": sizes.max(0).tolist(),
        "most_common": [{"size": list(size), "images": count} for size, count in common],
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _limited(lines: Sequence[str]) -> dict[str, Any]:
    return {"count": len(lines), "first": [_line(line) for line in lines[:_LISTED]]}


def _line(text: str) -> str:
    """Return ``text`` as one printable line of bounded length."""
    text = shown(text).replace("\n", "\\n").replace("\r", "\\r")
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 3] + "..."


def _format_notes(images: Sequence[Row]) -> list[str]:
    """Note files whose name tells another format than their bytes do; they are read by their bytes."""
    endings = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".pgm": "PPM"}
    other = []
    for row in images:
        ending = "." + row.path.rpartition(".")[2].lower()
        named = endings.get(ending, ending[1:].upper())
        if row.format not in (named, "MPO"):
            other.append(f"{row.path} is a {row.format}")
    return [f"{len(other)} file(s) are named as another format than they have, e.g. {other[0]}"] if other else []


def _duplicate_notes(images: Sequence[Row]) -> list[str]:
    """Note equal files, above all those that a training and a test split share."""
    first: dict[str, Row] = {}
    equal: list[str] = []
    across: list[str] = []
    for row in images:
        twin = first.setdefault(row.digest, row)
        if twin is not row and not row.ids:  # masks of nothing are equal, rightly
            (equal if twin.split == row.split else across).append(f"{row.path} = {twin.path}")
    return [
        f"{len(found)} image(s) have the same bytes as another {where}, e.g. {found[0]}"
        for found, where in ((across, "of another split"), (equal, "of their split"))
        if found
    ]

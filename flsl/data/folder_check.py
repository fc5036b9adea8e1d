"""The check of an image folder whose files were inspected: classes, splits and boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from flsl.config.data import ImageFolderSettings
from flsl.data.boxes import match_xml, read_csv, read_xml
from flsl.data.files import Row, content_sha256, shown, some
from flsl.data.findings import Findings
from flsl.data.listing import Listing
from flsl.runtime.errors import UserError

_LISTED_CLASSES = 4000


def check_images(settings: ImageFolderSettings, listing: Listing, rows: Sequence[Row]) -> Findings:
    """Check classes, splits and boxes of an image folder whose files were inspected.

    Raises:
        UserError: when a split has no readable image.
    """
    findings = Findings()
    counts: dict[str, Counter[str]] = {}
    for split, folder in (("train", settings.train), ("val", settings.val)):
        if folder is not None:
            counts[split] = _count_classes(settings, split, folder, listing, rows, findings)
    if len(counts) == 2:
        for one, other in (("val", "train"), ("train", "val")):
            missing = sorted(set(counts[one]) - set(counts[other]) - {""})
            if missing:
                findings.inconsistencies.append(
                    f"{len(missing)} class(es) of {one} have no image in {other}: {some(missing)}"
                )
    names = sorted(set().union(*counts.values()) - {""})
    findings.extra["classes"] = {
        "count": len(names),
        "listed": {
            shown(name): {split: count[name] for split, count in counts.items()} for name in names[:_LISTED_CLASSES]
        },
    }
    if settings.boxes is not None:
        findings.extra["boxes"] = _check_boxes(settings, settings.boxes, rows, findings)
    return findings


def _count_classes(
    settings: ImageFolderSettings,
    split: str,
    folder: str,
    listing: Listing,
    rows: Sequence[Row],
    findings: Findings,
) -> Counter[str]:
    """Return the number of readable images per class of one split, and note what is odd."""
    place = Path(settings.root) / folder
    mine = [row for row in rows if row.split == split]
    counts = Counter(row.class_name for row in mine if row.ok)
    if not mine:
        raise UserError(f"{place}: holds no images; data.images.{split} is expected to hold <class>/<image>")
    if not counts:
        raise UserError(
            f"{place}: none of its {len(mine)} file(s) is a readable image; {shown(mine[0].path)}: {mine[0].status}"
        )
    above = PurePosixPath(folder)
    folders = {path.name for path in map(PurePosixPath, listing.folders) if path != above and path.parent == above}
    empty = sorted(folders - set(counts))
    if empty:
        findings.inconsistencies.append(f"{len(empty)} class(es) of {split} have no readable image: {some(empty)}")
    if counts[""]:
        findings.inconsistencies.append(
            f"{counts['']} image(s) of {split} lie in no class folder ({folder}/<class>/<image> is expected): "
            f"they can be pretrained on, but have no labels"
        )
    findings.splits[split] = {
        "folder": folder,
        "classes": len(set(counts) - {""}),
        "content_sha256": content_sha256(row for row in mine if row.ok and row.format),
    }
    return counts


def _check_boxes(settings: ImageFolderSettings, boxes: str, rows: Sequence[Row], findings: Findings) -> dict[str, int]:
    """Read every box, and report what :func:`find_boxes` would refuse or leave out."""
    root = Path(settings.root)
    sizes = {row.path: (row.width, row.height) for row in rows if row.ok and row.format}
    boxed: set[str] = set()
    count = outside = unknown = 0
    try:
        if (root / boxes).is_file():
            for path, box in read_csv(root, root / boxes):
                count += 1
                boxed.add(path)
                width, height = sizes.get(path, (np.inf, np.inf))
                outside += bool((box[:2] < 0).any() or box[2] > width or box[3] > height)
            unknown = len(boxed - sizes.keys())
            boxed &= sizes.keys()
        else:
            for xml, image in match_xml(root, boxes, sizes):
                if image is None:
                    unknown += 1
                    continue
                try:
                    count += len(read_xml(root / boxes / xml, sizes[image]))
                    boxed.add(image)
                except UserError as error:
                    findings.inconsistencies.append(str(error))
    except UserError as error:
        findings.inconsistencies.append(str(error))
    if not boxed:
        findings.inconsistencies.append(f"{boxes}: holds no box of a readable image")
    if outside:
        findings.inconsistencies.append(f"{boxes}: {outside} box(es) reach out of their image")
    if unknown:
        findings.notes.append(f"{boxes}: boxes of {unknown} image(s) that are not there or not readable")
    return {"images": len(boxed), "boxes": count}

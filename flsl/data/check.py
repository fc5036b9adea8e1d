"""``flsl data check``: read a data set once, before anything is trained on it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flsl.config.data import CocoSettings, DavisDataSettings, ImageFolderSettings, UavdtSettings
from flsl.data.files import Row, inspect_all
from flsl.data.findings import Findings, describe
from flsl.data.listing import KINDS, KindSettings, Listing, list_files
from flsl.data.manifest import MANIFEST, load_manifest
from flsl.data.revision import FIRST, known_rows, write
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import writing
from flsl.runtime.progress import bar


def check_data(
    settings: KindSettings,
    out: Path,
    revision: str | None = None,
    jobs: int | None = None,
    decode: bool = False,
    fresh: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Check a data set and write its manifest; nothing is written into the data set itself.

    Args:
        settings: ``data.<kind>``.
        out: folder of ``manifest.json``, ``files.csv`` and ``folders.json``; what they say about unchanged files is
            taken over.
        revision: what :func:`flsl.data.revision.revision` said; None keeps the manifest's.
        jobs: processes; None takes one a core.
        decode: decode every image, also where the settings do not ask for it.
        fresh: read every file, also those whose size and time are unchanged; ``decode`` implies it.

    Returns:
        the manifest, and whether ``manifest.json`` was written (else nothing had changed).

    Raises:
        UserError: in one line, when the data set or a needed part is missing or empty, or ``out`` cannot be written.
    """
    listing = list_files(settings)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK | os.X_OK):  # better said now than after an hour of reading
        raise UserError(f"{out}: no permission to write there; choose another folder or change its permissions")
    before: dict[str, Any] = {}
    if (out / MANIFEST).exists():
        with suppress(UserError):
            before = load_manifest(out)
    known = {} if fresh or decode else known_rows(Path(settings.root), out, settings.decode)
    decode = decode or settings.decode
    with bar(f"checking {KINDS[type(settings)]}", len(listing.entries)) as shown:
        rows = inspect_all(Path(settings.root), listing.entries, known, out, jobs, decode, shown.advance)
    findings = _findings(settings, listing, rows)
    rows = rows if findings.rows is None else findings.rows
    manifest = describe(settings, listing, rows, findings, revision or before.get("revision", FIRST))
    return manifest, write(out, manifest, listing, rows, known, decode)


def _findings(settings: KindSettings, listing: Listing, rows: list[Row]) -> Findings:
    """Run the check of the settings' kind; each is imported only for its own."""
    match settings:
        case ImageFolderSettings():
            from flsl.data.folder_check import check_images

            return check_images(settings, listing, rows)
        case CocoSettings():
            from flsl.data.coco import check_coco

            return check_coco(settings, rows)
        case UavdtSettings():
            from flsl.data.uavdt import check_uavdt

            return check_uavdt(settings, rows)
        case DavisDataSettings():
            from flsl.data.davis import check_davis

            return check_davis(settings, rows)


def summary(manifest: dict[str, Any]) -> list[str]:
    """Return the manifest in a few lines for the terminal."""
    size = manifest["bytes"] / 2**20
    lines = [f"{manifest['kind']} in {manifest['root']}: {manifest['files']} files, {size:.1f} MiB"]
    for split, figures in manifest["splits"].items():
        shown = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in figures.items() if name != "folder")
        lines.append(f"  {split or 'no split'}: {shown}")
    if "classes" in manifest:
        lines.append(f"  {manifest['classes']['count']} classes")
    lines += [f"  note: {note}" for note in manifest["notes"]["first"]]
    for what in ("quarantined", "inconsistencies"):
        lines.append(f"  {what}: {manifest[what]['count']}")
    lines.append(f"  content {manifest['content_sha256']}")
    return lines

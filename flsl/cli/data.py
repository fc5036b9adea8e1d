"""``flsl data …``: the made scenes, checking real data sets, and packing them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flsl.cli.common import Commands, command, config_arguments, experiment


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = commands.add_parser("data", help="Make the demo's data; check and pack data sets.")
    sub = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_scenes(sub)
    _add_check(sub)
    _add_pack(sub)


def _add_scenes(sub: Commands) -> None:
    """Add ``flsl data scenes``."""
    parser = command(
        sub,
        "scenes",
        _scenes,
        "Make the demo's data sets from nothing.",
        "\n\nTextured objects in the layouts of an image folder, COCO, UAVDT and DAVIS 2017, below DIR/images,\n"
        "DIR/coco, DIR/uavdt and DIR/davis; settings are those below data.scenes, e.g. data.scenes.seed=1. What was\n"
        "made from the same settings stays as it is.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: data.scenes.root)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes that draw at once (default: the machine's cores)"
    )
    parser.add_argument("--preview", type=Path, metavar="PNG", help="also write a picture of samples of each data set")
    config_arguments(parser)


def _scenes(args: argparse.Namespace) -> None:
    from flsl.config.data import ScenesSettings
    from flsl.data.scenes.make import make_scenes
    from flsl.data.scenes.preview import draw_preview
    from flsl.runtime.errors import UserError

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least one process is needed")
    settings = experiment(args).data.scenes or ScenesSettings()
    out = args.out or Path(settings.root)
    made = make_scenes(settings, out, args.jobs)
    for name, counts in made["sets"].items():
        print(f"{out / name}: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()))
    if args.preview:
        draw_preview(out, args.preview)
        print(f"{args.preview}: samples")


def _add_check(sub: Commands) -> None:
    """Add ``flsl data check``."""
    parser = sub.add_parser("check", help="Read a data set once and write what it holds.")
    kinds = parser.add_subparsers(metavar="KIND", required=True, title="kinds of data sets")
    stop = "stages that need them say so before they begin"
    for kind, what, damaged in (
        ("images", "an image folder, <split>/<class>/<image>", "all stages leave them out"),
        ("coco", "COCO's images and instances_*.json", stop),
        ("uavdt", "UAVDT's frames and ground truth", stop),
        ("davis", "DAVIS 2017", "sequences that have some cannot be propagated"),
    ):
        _add_kind(kinds, kind, what, damaged)


def _add_kind(kinds: Commands, kind: str, what: str, damaged: str) -> None:
    parser = command(
        kinds,
        kind,
        _check,
        f"Check {what}.",
        "\n\nReads every file whose size or time changed since the last check, and writes manifest.json (counts,\n"
        "classes, sizes, content hash, what was quarantined and why) and files.csv (one row per file). Damaged files\n"
        f"are quarantined: {damaged}. Nothing is written into the data set.",
    )
    parser.set_defaults(kind=kind)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--root", metavar="DIR", help=f"the data set (instead of the setting data.{kind}.root)")
    parser.add_argument("--decode", action="store_true", help="decode every image wholly; takes several times longer")
    parser.add_argument("--fresh", action="store_true", help="read every file, also those that seem unchanged")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that read (default: one a core)")
    parser.add_argument("--revision", metavar="VALUE", help="value to store for the workflow (default: keep the old)")
    config_arguments(parser)


def _check(args: argparse.Namespace) -> None:
    from flsl.data.check import check_data, summary
    from flsl.data.pack import PACK
    from flsl.data.packing import pack_images
    from flsl.runtime.errors import UserError
    from flsl.runtime.progress import warn

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs: {args.jobs}; a number of processes from 1 on is expected")
    if args.root is not None:
        # before the other overrides, which may change the layout below it
        args.overrides.insert(0, f"data.{args.kind}.root={json.dumps(args.root)}")
    settings = getattr(experiment(args).data, args.kind)
    if settings is None:
        raise UserError(f"data.{args.kind}: not set; give --root DIR or data.{args.kind}.root=DIR")
    manifest, written = check_data(settings, args.out, args.revision, args.jobs, args.decode, args.fresh)
    for line in summary(manifest):
        print(line)
    for line in manifest["inconsistencies"]["first"]:
        warn(line)
    for entry in manifest["quarantined"]["first"]:
        warn(f"quarantined {entry['path']}: {entry['reason']}")
    print(f"{args.out / 'manifest.json'}: {'written' if written else 'unchanged'}")
    if args.kind == "images":
        if settings.pack is None:
            (args.out / PACK).unlink(missing_ok=True)
        else:
            _report_pack(Path(settings.pack), pack_images(args.out, Path(settings.pack)))


def _add_pack(sub: Commands) -> None:
    """Add ``flsl data pack``."""
    parser = command(
        sub,
        "pack",
        _pack,
        "Copy a checked image folder into a few large files.",
        """

For file systems that are slow to open many files. The tar files hold the usable images as they are; whoever reads the
manifest in DIR reads them from there from now on, in the same order and to the same results. Killed? Start it again.
With the setting data.images.pack, `flsl data check` does the same; without it, the next check goes back to the
folder.""",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder that `flsl data check` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="PACK", help="folder to write the tar files into")
    parser.add_argument("--shard-mb", type=int, default=1024, metavar="N", help="size of a tar file (default: 1024)")


def _pack(args: argparse.Namespace) -> None:
    from flsl.data.packing import pack_images
    from flsl.runtime.errors import UserError

    if args.shard_mb < 1:
        raise UserError(f"--shard-mb: {args.shard_mb}; a number of megabytes from 1 on is expected")
    _report_pack(args.out, pack_images(args.images, args.out, args.shard_mb))


def _report_pack(folder: Path, pack: dict[str, Any]) -> None:
    for split, found in pack["splits"].items():
        size = sum(shard["bytes"] for shard in found["shards"]) / 2**20
        print(f"{folder}: {found['images']} images of {split} in {len(found['shards'])} file(s), {size:.1f} MiB")

"""``flsl data …``: the made scenes, and checking real data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import Commands, command, config_arguments, experiment


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = commands.add_parser("data", help="Make the demo's data; check data sets.")
    sub = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_scenes(sub)
    # `flsl data check` goes here: _add_check(sub); its function was overwritten by an edit of `flsl data scenes`


def _add_scenes(sub: Commands) -> None:
    """Add ``flsl data scenes``."""
    parser = command(
        sub,
        "scenes",
        _scenes,
        "Make the demo's data sets from nothing.",
        "Textured objects in the layouts of an image folder, COCO, UAVDT and DAVIS 2017, below DIR/images, DIR/coco,\n"
        "DIR/uavdt and DIR/davis; settings are those below data.scenes, e.g. data.scenes.seed=1. What was\n"
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

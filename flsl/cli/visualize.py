"""``flsl visualize``: pictures of what an encoder has learnt."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import Commands, command, config_arguments, experiment, sampled

_DETAILS = """

Writes attention.png (each query's mean-shift attention over both views) and pca.png; and, for our checkpoint.pth, whose
projection head they need, segments.png (modes assigned to prototypes), usage.png and prototypes.png (nearest patches);
and metrics.json. Several encoders, or one at several epochs (compute.keep_epochs), stand side by side."""


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = command(commands, "visualize", sampled(_visualize), "Draw what encoders have learnt.", _DETAILS)
    parser.add_argument(
        "--encoder",
        dest="encoders",
        action="append",
        required=True,
        metavar="[LABEL=]FILE",
        help="checkpoint.pth, backbone.safetensors or another encoder; may be given again, to compare",
    )
    parser.add_argument(
        "--epochs", action="store_true", help="also show the teachers that the runs kept of single epochs"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder that `flsl data check` wrote, or any folder of images"
    )
    parser.add_argument(
        "--show",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="show this image instead of some of the data set; may be given again",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--name", metavar="NAME", help="the run's name in the record (default: --run, or base)")
    config_arguments(parser)


def _visualize(args: argparse.Namespace) -> None:
    from flsl.runtime.distributed import use_threads
    from flsl.visualize.stage import visualize

    settings = experiment(args)
    use_threads(settings.compute.threads)
    name = args.name or args.run_name or "base"
    record = visualize(settings, args.encoders, args.images, args.show, args.out, name, args.epochs)
    for figure, value in record["metrics"].items():
        print(f"{figure}\t{value:.2f}")

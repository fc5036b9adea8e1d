"""``flsl davis …``: video object segmentation by label propagation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from flsl.cli.common import (
    Commands,
    command,
    config_arguments,
    encoder,
    encoder_arguments,
    experiment,
    sampled,
)

if TYPE_CHECKING:
    from flsl.config import Experiment
    from flsl.config.data import DavisDataSettings
    from flsl.video.stage import Method


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = commands.add_parser(
        "davis",
        help="Segment and evaluate videos (DAVIS 2017, semi-supervised).",
        description="Video object segmentation by label propagation, DINO's protocol on DAVIS 2017.",
    )
    sub = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_propagate(sub)
    _add_evaluate(sub)


def _add_propagate(sub: Commands) -> None:
    parser = command(
        sub,
        "propagate",
        _propagate,
        "Propagate each sequence's first mask through its frames by an encoder's features.",
        "Sequences that an earlier call made with the same settings and inputs are kept; where one fails, the others "
        "are still made, and the exit code is 2.",
    )
    _data_arguments(parser, "the model")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="MASKS", help="folder for indexed PNGs, MASKS/<sequence>/00000.png"
    )
    _previews_argument(parser, "folder for each sequence's animation, contact sheet and record")
    parser.add_argument("--fresh", action="store_true", help="make again what is there already")
    encoder_arguments(parser).add_argument(
        "--copy-first-mask", action="store_true", help="no encoder: repeat the first mask, the baseline to beat"
    )


def _add_evaluate(sub: Commands) -> None:
    parser = command(
        sub, "evaluate", sampled(_evaluate), "Evaluate masks as davis2017-evaluation does: J, F and J&F, in percent."
    )
    _data_arguments(parser, "that of MASKS")
    parser.add_argument(
        "--masks", type=Path, required=True, metavar="MASKS", help="predicted masks, as propagate writes"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="file for the figures and tables")
    _previews_argument(parser, "folder of the records of `propagate`, which tell the settings")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="copy the sequences' contact sheets there")
    parser.add_argument(
        "--where-annotated",
        action="store_true",
        help="of a split with no annotations but the first frames' (test-dev), write a record without figures",
    )
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="processes at most (default: one a processor)")


def _data_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    config_arguments(parser)
    parser.add_argument("--name", metavar="NAME", help=f"the run's name in the record (default: --run, or {name})")
    parser.add_argument(
        "--davis",
        type=Path,
        metavar="DIR",
        help="folder of JPEGImages, Annotations and ImageSets (default: data.davis.root)",
    )
    parser.add_argument("--split", metavar="NAME", help="list of sequences, e.g. val, test-dev (default: davis.split)")
    parser.add_argument("--year", type=int, metavar="YEAR", help="folder of the lists (default: data.davis.year)")
    parser.add_argument("--sequences", nargs="+", default=[], metavar="NAME", help="only these sequences")


def _previews_argument(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--previews", type=Path, metavar="DIR", help=f"{help} (default: MASKS-previews)")


def _propagate(args: argparse.Namespace) -> None:
    from flsl.video.records import previews_beside
    from flsl.video.sequences import sequence_names
    from flsl.video.stage import Outputs, propagate_sequences

    settings = _experiment(args)
    data = _data(settings)
    names = sequence_names(data, settings.davis.split, args.sequences)
    outputs = Outputs(args.out, args.previews or previews_beside(args.out))
    propagate_sequences(data, names, _method(args, settings), outputs, args.fresh)


def _method(args: argparse.Namespace, settings: Experiment) -> Method:
    from flsl.runtime.distributed import choose_device, use_threads
    from flsl.runtime.errors import UserError
    from flsl.video.stage import by_copying, by_encoder

    choice = encoder(args)
    name = args.name or args.run_name
    if args.copy_first_mask:
        if choice.given:
            raise UserError("--copy-first-mask: needs no encoder; drop --backbone, --model or --random-init")
        return by_copying(name or "copy-first-mask")
    use_threads(settings.compute.threads)
    device = choose_device(settings.compute.device)
    backbone = choice.load(settings).requires_grad_(False).eval().to(device)
    return by_encoder(backbone, name or choice.name, settings.davis, device, choice.inputs)


def _evaluate(args: argparse.Namespace) -> None:
    from flsl.data.manifest import checked
    from flsl.video.figures import Made, write_figures
    from flsl.video.records import previews_beside

    settings = _experiment(args)
    data = _data(settings)
    record = write_figures(
        data,
        settings.davis.split,
        Made(args.masks, args.previews or previews_beside(args.masks)),
        args.out,
        args.name or args.run_name or args.masks.name,
        args.sequences,
        args.jobs,
        args.sheets,
        args.where_annotated,
        checked(settings, "davis"),
    )
    for metric, value in record["metrics"].items():
        print(f"{metric}\t{value:.2f}")


def _experiment(args: argparse.Namespace) -> Experiment:
    # a list of names ends where settings begin
    args.overrides += [name for name in args.sequences if "=" in name]
    args.sequences = [name for name in args.sequences if "=" not in name]
    root = None if args.davis is None else str(args.davis)
    for setting, value in {"data.davis.root": root, "data.davis.year": args.year, "davis.split": args.split}.items():
        if value is not None:
            args.overrides.append(f"{setting}={json.dumps(value)}")
    return experiment(args)


def _data(settings: Experiment) -> DavisDataSettings:
    from flsl.runtime.errors import UserError

    if settings.data.davis is None:
        raise UserError("--davis: name the folder that holds JPEGImages, Annotations and ImageSets, or set data.davis")
    return settings.data.davis

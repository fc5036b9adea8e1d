"""``flsl features``, ``flsl knn``, ``flsl linear`` and ``flsl aligned-knn``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from flsl.probe.images import ImageSource


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    extract = _probe(
        commands, "features", _features, "Extract frozen features: the mean patch tokens of the last blocks."
    )
    _data_arguments(extract, needed=True)
    knn = _probe(
        commands,
        "knn",
        _knn,
        "Classify frozen features by their nearest neighbours (DINO's protocol).",
        "Reads what `flsl features` wrote, or, given an encoder and images, extracts to OUT/features first.",
    )
    knn.add_argument("--features", type=Path, metavar="DIR", help="what `flsl features` wrote")
    _data_arguments(knn, needed=False)
    linear = _probe(
        commands,
        "linear",
        _linear,
        "Train a grid of linear probes on a frozen encoder, and report the one that is best on validation.",
        "A stage that was killed goes on after its last whole epoch when started again.",
    )
    _data_arguments(linear, needed=True)
    aligned = _probe(
        commands, "aligned-knn", _aligned, "Classify patches of each image's largest box (bbox-aligned k-NN)."
    )
    _data_arguments(aligned, needed=True)
    aligned.add_argument(
        "--boxes",
        metavar="PATH",
        help="CSV file or folder of XML files below the images' root (default: as the data say)",
    )


def _probe(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str, details: str = ""
) -> argparse.ArgumentParser:
    parser = command(commands, name, sampled(run), help, details)
    config_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--name", metavar="NAME", help="the run's name in the record (default: --run, the features' run, or the model)"
    )
    return parser


def _data_arguments(parser: argparse.ArgumentParser, needed: bool) -> None:
    encoder_arguments(parser)
    images = parser.add_argument_group("images")
    images.add_argument(
        "--images",
        type=Path,
        required=needed,
        metavar="DIR",
        help="folder with the manifest of `flsl data check`, or an image folder",
    )
    images.add_argument(
        "--train-split", default="train", metavar="NAME", help="training folder of an image folder (default: train)"
    )
    images.add_argument(
        "--val-split", default="val", metavar="NAME", help="validation folder of an image folder (default: val)"
    )


def _features(args: argparse.Namespace) -> None:
    from flsl.probe.features import extract

    _show(extract(_experiment(args), encoder(args), _images(args), args.out, _name(args)))


def _knn(args: argparse.Namespace) -> None:
    from flsl.probe.features import extract
    from flsl.probe.knn import classify
    from flsl.runtime.errors import UserError

    settings, features = _experiment(args), args.features
    if (features is None) == (args.images is None):
        raise UserError("--features: give either --features DIR, or --images DIR with an encoder")
    if features is None:
        features = args.out / "features"
        extract(settings, encoder(args), _images(args), features, _name(args))
    elif encoder(args).given:
        raise UserError("--features: features are already of an encoder; drop --backbone, --model or --random-init")
    _show(classify(settings, features, args.out, args.name or args.run_name))


def _linear(args: argparse.Namespace) -> None:
    from flsl.probe.linear import train

    _show(train(_experiment(args), encoder(args), _images(args), args.out, _name(args)))


def _aligned(args: argparse.Namespace) -> None:
    from flsl.probe.aligned import classify

    settings, images = _experiment(args), _images(args)
    boxes = args.boxes or images.boxes or (settings.data.images.boxes if settings.data.images else None)
    _show(classify(settings, encoder(args), images, boxes, args.out, _name(args)))


def _experiment(args: argparse.Namespace) -> Experiment:
    from flsl.runtime.distributed import use_threads

    settings = experiment(args)
    use_threads(settings.compute.threads)
    return settings


def _images(args: argparse.Namespace) -> ImageSource:
    from flsl.probe.images import ImageSource

    return ImageSource(args.images, args.train_split, args.val_split)


def _name(args: argparse.Namespace) -> str:
    return args.name or args.run_name or encoder(args).name


def _show(record: Mapping[str, Any]) -> None:
    for name, value in record["metrics"].items():
        print(f"{name}\t{value:.2f}")

"""What the subcommands share: reading the config and naming the files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from flsl.config import Experiment
    from flsl.model.choice import EncoderChoice

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str, details: str = ""
) -> argparse.ArgumentParser:
    """Add the subcommand ``name``; ``run`` is called with the parsed arguments."""
    text = f"{help} {details}".strip()
    # what has lines of its own keeps them, and the rest is broken to the terminal's width
    kind = argparse.RawDescriptionHelpFormatter if "\n" in text else argparse.HelpFormatter
    parser = commands.add_parser(name, help=help, description=text, formatter_class=kind)
    parser.set_defaults(run=run)
    return parser


def sampled(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """Return ``run`` with the machine's load recorded in its ``--out`` meanwhile.

    Stages that are submitted as jobs of their own record it themselves.
    """

    def run_sampled(args: argparse.Namespace) -> None:
        from flsl.runtime.machine import sampling

        with sampling(args.out if args.out.suffix != ".json" else args.out.parent):
            run(args)

    return run_sampled


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--run`` and ``setting=value`` overrides, which :func:`experiment` reads."""
    parser.add_argument("--config", type=Path, metavar="YAML", help="the experiment's settings (default: all defaults)")
    parser.add_argument("--run", dest="run_name", metavar="NAME", help="apply the changes of this entry of `runs`")
    parser.add_argument(
        "overrides", nargs="*", metavar="setting=value", help="single settings by dotted name, e.g. pretrain.epochs=10"
    )


def previous_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--previous``, the earlier encoder of multi-stage pretraining."""
    parser.add_argument(
        "--previous",
        type=Path,
        metavar="FILE",
        help="multi-stage: an earlier run's backbone.safetensors, or another encoder of the same patch size, "
        "as a frozen prior of the cross-attention (pretrain.prior.*)",
    )


def encoder_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add ``--backbone``, ``--model``, ``--checkpoint`` and ``--random-init``, which :func:`encoder` reads."""
    group = parser.add_argument_group("encoder")
    group.add_argument("--backbone", type=Path, metavar="FILE", help="backbone.safetensors, or another checkpoint")
    group.add_argument(
        "--model", metavar="NAME", help="timm model; its own weights are fetched unless others are given"
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights for --model")
    group.add_argument(
        "--random-init", action="store_true", help="untrained weights, of --model or of the experiment's encoder"
    )
    return group


def encoder(args: argparse.Namespace) -> EncoderChoice:
    """Return what the arguments of :func:`encoder_arguments` name."""
    from flsl.model.choice import EncoderChoice

    return EncoderChoice(args.backbone, args.model, args.checkpoint, args.random_init)


def experiment(args: argparse.Namespace) -> Experiment:
    """Return the experiment that the arguments of :func:`config_arguments` describe."""
    from flsl.config.checking import check
    from flsl.config.experiment import Experiment
    from flsl.config.loading import load_experiment, run_experiment, set_overrides

    if args.config is not None:
        loaded = load_experiment(args.config, args.overrides)
    else:
        loaded = check(Experiment, set_overrides({"project": "flsl"}, args.overrides), "the command line")
    return run_experiment(loaded, args.run_name) if args.run_name else loaded

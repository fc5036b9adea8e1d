"""``flsl pretrain``, ``flsl export`` and ``flsl baseline``."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import Commands, command, config_arguments, experiment, previous_argument


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = command(
        commands,
        "pretrain",
        _pretrain,
        "Pretrain an encoder with FLSL.",
        """

Started again with the same settings, it goes on after the newest checkpoint in DIR/checkpoints, and ends with the
weights that it would have had without the interruption. Other settings or data start anew, and move the old files
aside. Several processes: torchrun --nproc-per-node 8 -m flsl pretrain …, or srun flsl pretrain …""",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder that `flsl data check` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--name", metavar="NAME", help="the run's name in the record (default: --run, or base)")
    previous_argument(parser)
    config_arguments(parser)

    parser = command(
        commands,
        "export",
        _export,
        "Write a checkpoint's encoder as a file that plain timm loads.",
        """

Reads our checkpoint.pth, the authors' and DINO's checkpoints and timm's state dictionaries. The file's metadata holds
timm_model and timm_arguments: timm.create_model(timm_model, checkpoint_path=FILE, **timm_arguments) loads it. Where the
images' mean and standard deviation are not ImageNet's, image_mean_and_std holds them.""",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="what to read")
    parser.add_argument("--model", metavar="NAME", help="timm model, where the checkpoint's shapes do not tell it")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")

    parser = command(commands, "baseline", _baseline, "Write the encoder of an entry of `baselines`.")
    parser.add_argument("--name", required=True, metavar="NAME", help="the entry")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    config_arguments(parser)


def _pretrain(args: argparse.Namespace) -> None:
    from flsl.pretrain.stage import pretrain_folder
    from flsl.runtime.place import is_main_process
    from flsl.track.start import start_following

    settings = experiment(args)
    following = start_following(args.out, settings) if is_main_process() else None
    try:
        name = args.name or args.run_name or "base"
        metrics = pretrain_folder(settings, args.images, args.out, name, args.previous)
    finally:
        if following is not None:
            following.stop()
    for name, value in metrics.items():
        print(f"{name}: {value:.4g}")


def _export(args: argparse.Namespace) -> None:
    from flsl.pretrain.export import export

    backbone = export(args.checkpoint, args.out, args.model)
    print(f"{args.out}: {backbone.name}, width {backbone.width}, depth {backbone.depth}, patch {backbone.patch_size}")


def _baseline(args: argparse.Namespace) -> None:
    from flsl.pretrain.export import write_baseline

    write_baseline(experiment(args), args.name, args.out)
    print(f"{args.out}: written")

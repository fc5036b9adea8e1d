"""``flsl submit …``: a stage as a job of its own, on SLURM or this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import Commands, command, config_arguments, encoder, experiment, previous_argument
from flsl.cli.detect import train_arguments

_DETAILS = """
{asked}.
The job is told to save before its time limit and when it is preempted, is requeued and goes on where it was.
This command waits and shows its progress. Started again, it finds the job that is queued or running, or takes its
result, and submits nothing. Interrupting it leaves the job running (cluster.cancel_on_interrupt).
Logs: DIR/job/<job>_<rank>_log.err"""


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    group = commands.add_parser("submit", help="run a stage as a job of its own", description="Submit a job.")
    stages = group.add_subparsers(metavar="COMMAND", required=True, title="commands")
    asked = "`cluster.*` says what to ask for: nodes, GPUs, processes, memory, time, partition and more"
    help = "Pretrain on several nodes, and wait for it."
    parser = command(stages, "pretrain", _pretrain, help, _DETAILS.format(asked=asked))
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder that `flsl data check` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shared folder to write into")
    parser.add_argument("--name", metavar="NAME", help="the run's name in the record (default: --run, or base)")
    previous_argument(parser)
    config_arguments(parser)
    _waiting_arguments(parser)

    asked = "`cluster.detection.*` says how many nodes, GPUs and processes, and `cluster.*` the rest"
    help = "Fine-tune a detector on several nodes, and wait for it."
    parser = command(stages, "detect", _detect, help, _DETAILS.format(asked=asked))
    train_arguments(parser)
    _waiting_arguments(parser)


def _waiting_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="cancel a job of other settings, and submit anew")
    parser.add_argument("--no-wait", action="store_true", help="return once the job is submitted")


def _pretrain(args: argparse.Namespace) -> None:
    from flsl.launch import pretraining, submit_work

    name = args.name or args.run_name or "base"
    work = pretraining(experiment(args), args.images, args.out, name, args.previous)
    submit_work(work, args.force, not args.no_wait)


def _detect(args: argparse.Namespace) -> None:
    from flsl.launch import detection, submit_work

    name = args.name or args.run_name or "base"
    work = detection(experiment(args), args.stage, encoder(args), args.out, name)
    submit_work(work, args.force, not args.no_wait)

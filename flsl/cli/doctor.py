"""``flsl doctor``."""

from __future__ import annotations

import argparse

from flsl.cli.common import Commands, command, config_arguments, experiment


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = command(
        commands,
        "doctor",
        _doctor,
        "Check whether this site can do what a config asks for.",
        """

Python, torch, CUDA and NCCL, the data sets, disk space, MLflow; on a cluster SLURM's commands and accounting, the
partition's limits against `cluster.*`, and a compute node by a tiny job: its GPUs, and whether it shares the results
folder. One line a check; exit code 1 if something would fail.""",
    )
    parser.add_argument("--no-job", action="store_true", help="do not look at a compute node by a tiny job")
    config_arguments(parser)


def _doctor(args: argparse.Namespace) -> None:
    from flsl.doctor import examine

    failed = 0
    for finding in examine(experiment(args), job=not args.no_job):
        print(finding, flush=True)
        failed += finding.level == "FAIL"
    if failed:
        raise SystemExit(1)

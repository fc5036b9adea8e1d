"""``flsl track …``: MLflow from the files."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flsl.cli.common import Commands, command

if TYPE_CHECKING:
    from flsl.config.experiment import TrackingSettings

_LIMIT = 1800.0  # seconds that a workflow waits for a slow server
_SYNC = """

Reads results/<project> and sends what MLflow does not show yet: one MLflow run a run of the project, with its
pretraining settings, and those of evaluations that any run varies, as params and the final figures of all stages as
metrics, and below it one a stage with its settings, curves and files. Called again, it updates and never duplicates.
Runs whose settings changed, and runs whose files are gone, move to MLflow's trash (`mlflow gc` empties it). Names:
'@' is written '_at_' and '&' '_and_'.

The store is --uri, else tracking.uri of the config (without --config, of the newest runs/<run>/config.yaml), else
MLFLOW_TRACKING_URI, else results/<project>/mlflow.db, which
`mlflow ui --backend-store-uri sqlite:///results/<project>/mlflow.db` shows."""
_FOLLOW = """

Ends when metrics.json appears or the process PID ends. `flsl pretrain` starts it by itself (tracking.live)."""


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    group = commands.add_parser("track", help="show results in MLflow", description="Show results in MLflow.")
    tracks = group.add_subparsers(metavar="COMMAND", required=True, title="commands")

    parser = command(tracks, "sync", _sync, "Bring MLflow to what a project's files say.", _SYNC)
    parser.add_argument("--project-folder", type=Path, metavar="DIR", help="results/<project> (default: the config's)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="the experiment's settings, for tracking.*")
    _settings_arguments(parser)
    parser.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help="stop after so long; the next sync goes on (default: never; with --best-effort 1800)",
    )
    parser.add_argument(
        "--best-effort",
        action="store_true",
        help="a store that is down or slow is a warning, not an error (exit code 0)",
    )

    parser = command(tracks, "follow", _follow, "Send a stage's curves while it runs.", _FOLLOW)
    parser.add_argument("stage_dir", type=Path, metavar="STAGE_DIR", help="folder of its history.jsonl")
    parser.add_argument("--project", required=True, help="the project's name")
    parser.add_argument("--run", dest="run_name", required=True, metavar="NAME", help="the run's name")
    parser.add_argument("--parent-pid", type=int, required=True, metavar="PID", help="the process that runs the stage")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="time between two looks (default: 5)")
    _settings_arguments(parser)


def _settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what changes single settings of ``tracking``."""
    parser.add_argument("--uri", help="the tracking store, e.g. http://HOST:5000 or sqlite:///FILE")
    parser.add_argument("--experiment", metavar="NAME", help="the MLflow experiment (default: the project's name)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="patience with a server (default: 10)")
    parser.add_argument("--artifact-mb", type=float, metavar="MB", help="largest file to store (default: 100)")


def _settings(args: argparse.Namespace, base: TrackingSettings | None = None) -> TrackingSettings:
    from flsl.config.checking import check
    from flsl.config.experiment import TrackingSettings

    given = {
        "uri": args.uri,
        "experiment": args.experiment,
        "timeout": args.timeout,
        "artifact_mb": args.artifact_mb,
        "live_seconds": getattr(args, "every", None),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return check(TrackingSettings, {**(base.plain() if base else {}), **changes}, "the command line: tracking")


def _sync(args: argparse.Namespace) -> None:
    from flsl.config import load_experiment
    from flsl.runtime.errors import UserError
    from flsl.runtime.progress import counted, warn
    from flsl.track.store import TrackingError, default_uri, shown
    from flsl.track.sync import recorded_settings, sync
    from flsl.track.table import address

    experiment = load_experiment(args.config) if args.config is not None else None
    folder = args.project_folder
    if folder is None:
        if experiment is None:
            raise UserError("--project-folder: say which project: --project-folder results/<project>, or --config YAML")
        folder = Path(experiment.results) / experiment.project
    base = experiment.tracking if experiment is not None else recorded_settings(folder)
    settings = _settings(args, base)
    try:
        limit = args.within if args.within is not None else _LIMIT if args.best_effort else None
        done = sync(folder, settings=settings, within=limit)
    except TrackingError as error:
        if not args.best_effort:
            raise
        warn(f"MLflow does not show the newest results: {error}")
        return
    print(
        f"{folder}: {counted(done.runs, 'run')} with {counted(done.stages, 'stage')} sent "
        f"({counted(done.points, 'point')} of curves), {done.unchanged} unchanged, {done.replaced} replaced, "
        f"{done.removed} removed"
    )
    uri = settings.uri or default_uri(folder)
    server = shown(uri) if uri.startswith("http") else "http://localhost:5000"
    store = shlex.quote(shown(uri))
    start = "" if uri.startswith("http") else f" after `mlflow ui --backend-store-uri {store} --port 5000`"
    print(f"settings and figures of all runs: {address(server, done.experiment)}{start}")


def _follow(args: argparse.Namespace) -> None:
    from flsl.track.follow import follow

    follow(args.stage_dir, args.project, args.run_name, args.parent_pid, _settings(args))
    # threads of the store's libraries must not keep the process once its work is done
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

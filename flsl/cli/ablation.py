"""``flsl ablation``: tables and figures of ablations, and the stages that runs share."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import Commands, command

_TABLE = """

Reads the figures of results/<project>/runs and what results/<project>/ablations/<name>/ablation.json says of the points
(the workflow writes it; --config does as well), and writes table.csv, table.md, table.html and figure.png beside it.
Points without figures are shown as missing, with the end of their log."""
_SHARE = """

For runs that differ only in what does not concern the stage. Large files are linked, metrics.json is written under the
run's own name; `shared_from` in it names the run that made it."""


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    group = commands.add_parser(
        "ablation", help="tables and figures of ablations", description="Tables and figures of a project's ablations."
    )
    parts = group.add_subparsers(metavar="COMMAND", required=True, title="commands")

    parser = command(parts, "table", _table, "Write the tables and the figure of ablations.", _TABLE)
    parser.add_argument("names", nargs="*", metavar="NAME", help="ablation (default: all of the project)")
    parser.add_argument("--project-folder", type=Path, metavar="DIR", help="results/<project> (default: the config's)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="the experiment's settings: what the points are")

    parser = command(parts, "share", _share, "Give a run a stage that another run has made.", _SHARE)
    parser.add_argument(
        "--stage-folder", type=Path, required=True, metavar="DIR", help="runs/<run>/<stage> that is made"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="the run's name in the record")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill")


def _table(args: argparse.Namespace) -> None:
    from flsl.report.ablations import write_ablation
    from flsl.runtime.ablations import ABLATION, FOLDER, ablation_names, read_ablation
    from flsl.runtime.errors import UserError, nearest
    from flsl.runtime.progress import warn
    from flsl.runtime.results import read_project

    folder = args.project_folder
    if args.config is not None:
        folder = _write_records(args.config, folder)
    if folder is None:
        raise UserError("--project-folder: say which project: --project-folder results/<project>, or --config YAML")
    project = read_project(folder)
    for problem in project.problems:
        warn(problem)
    known = ablation_names(folder)
    if not known:
        raise UserError(
            f"{folder}: has no ablations; name them under `ablations` of the config, and give it by --config"
        )
    for name in args.names:
        if name not in known:
            raise UserError(f"{name}: no such ablation{nearest(name, known)}; {folder} has {', '.join(known)}")
    for name in args.names or known:
        for path in write_ablation(project, read_ablation(folder / FOLDER / name / ABLATION)):
            print(path)


def _write_records(config: Path, folder: Path | None) -> Path:
    """Write what the config says of its ablations into the project's folder, and return that."""
    from flsl.config import load_experiment
    from flsl.config.sweep import plan, record
    from flsl.runtime.ablations import ABLATION, FOLDER
    from flsl.runtime.outputs import write_json

    experiment = load_experiment(config)
    folder = folder or Path(experiment.results) / experiment.project
    whole = plan(experiment)
    for name in whole.ablations:
        write_json(folder / FOLDER / name / ABLATION, record(whole, name))
    return folder


def _share(args: argparse.Namespace) -> None:
    from flsl.runtime.sharing import share_stage

    record = share_stage(args.stage_folder, args.out, args.name)
    print(f"{args.out}: made by {record['shared_from']}")

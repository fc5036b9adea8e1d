"""``flsl report``: tables and figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flsl.cli.common import Commands, command

if TYPE_CHECKING:
    from flsl.runtime.results import Project


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    group = commands.add_parser(
        "report", help="tables and figures of a project", description="Tables and figures of a project's results."
    )
    reports = group.add_subparsers(metavar="COMMAND", required=True, title="commands")

    parser = _report(reports, "summary", _summary, "Write what ran, on what data, and all figures of all runs.")
    parser.add_argument("--out-md", type=Path, metavar="FILE", help="page to read, e.g. summary.md (default: printed)")
    parser.add_argument("--out-html", type=Path, metavar="FILE", help="the same page for the browser, whole in a file")
    parser.add_argument("--out-csv", type=Path, metavar="FILE", help="table of all runs and all figures")
    parser.add_argument(
        "--out-pages", type=Path, metavar="DIR", help="a page about each run, as `flsl report run` does"
    )

    parser = _report(reports, "run", _run, "Write a page about one run: figures, times, origin and settings.")
    parser.add_argument("--run", dest="run_name", required=True, metavar="NAME", help="the run or baseline")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page, as HTML (default: printed, as Markdown)")

    parser = _report(reports, "curves", _curves, "Draw losses, learning rate and signs of health over training.")
    _outputs(parser)
    parser.add_argument(
        "--run", dest="names", action="append", default=[], metavar="NAME", help="this run only; may be given again"
    )

    parser = _report(reports, "bars", _bars, "Draw the headline figures of all runs and baselines as bars.")
    _outputs(parser)


def _report(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str
) -> argparse.ArgumentParser:
    parser = command(commands, name, run, help)
    parser.add_argument("--project-folder", type=Path, required=True, metavar="DIR", help="results/<project>")
    return parser


def _outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help=".png, .svg or .pdf; may be given again",
    )


def _project(args: argparse.Namespace) -> Project:
    from flsl.runtime.progress import warn
    from flsl.runtime.results import read_project

    project = read_project(args.project_folder)
    for problem in project.problems:
        warn(problem)
    return project


def _summary(args: argparse.Namespace) -> None:
    from flsl.report.run_page import write_run_pages
    from flsl.report.summary import summary, write_summary

    project = _project(args)
    write_summary(project, args.out_md, args.out_csv, args.out_html)
    if args.out_pages is not None:
        write_run_pages(project, args.out_pages)
    if args.out_md is None and args.out_html is None:
        print(summary(project), end="")


def _run(args: argparse.Namespace) -> None:
    from flsl.report.run_page import run_page, write_run_page

    project = _project(args)
    if args.out is None:
        print(run_page(project, args.run_name), end="")
    else:
        write_run_page(project, args.run_name, args.out)


def _curves(args: argparse.Namespace) -> None:
    from flsl.report.figures import plot_curves

    plot_curves(_project(args), args.out, args.names)


def _bars(args: argparse.Namespace) -> None:
    from flsl.report.figures import plot_bars

    plot_bars(_project(args), args.out)

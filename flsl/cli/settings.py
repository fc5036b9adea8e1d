"""``flsl config``: the resolved settings of an experiment or one of its runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import Commands, command, config_arguments, experiment


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = command(
        commands,
        "config",
        _config,
        "Check settings and write them out whole: files merged, changes applied, defaults in.",
    )
    parser.add_argument("--out", type=Path, metavar="YAML", help="file to write (default: standard output)")
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="instead, generate the workflow's schema and the tables of config/README.md (in the project's root)",
    )
    config_arguments(parser)


def _config(args: argparse.Namespace) -> None:
    import yaml

    from flsl.config.docs import write_docs
    from flsl.config.whole import check_whole
    from flsl.runtime.outputs import write_text

    if args.write_docs:
        write_docs()
        return
    found = experiment(args)
    if args.config is not None and args.run_name is None:
        # what the workflow refuses; one run's settings may be for stages by hand, which need less
        check_whole(found)
    text = yaml.safe_dump(found.plain(), sort_keys=False, allow_unicode=True)
    if args.out is None:
        print(text, end="")
    else:
        write_text(args.out, text)

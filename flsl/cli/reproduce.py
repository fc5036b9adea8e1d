"""``flsl reproduce``: how a run was made, as commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import Commands, command

_DETAILS = """

Prints a shell script with the commit, the environment, the data with their digests and the exact commands; it ends
with an error where the images or the weights come out otherwise. What differs now from then stands in its first lines.
Each run keeps the versions of all packages in pretrain/requirements.lock."""


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = command(commands, "reproduce", _reproduce, "Print the commands that make a run again.", _DETAILS)
    parser.add_argument("run_name", metavar="RUN", help="the run's name, or its folder")
    parser.add_argument(
        "--project-folder", type=Path, metavar="DIR", help="results/<project> (default: the project in ./results)"
    )
    parser.add_argument(
        "--into", type=Path, default=Path("again"), metavar="DIR", help="where the commands write to (default: again)"
    )
    parser.add_argument(
        "--here", action="store_true", help="without the checkout and the installation: use what is installed"
    )


def _reproduce(args: argparse.Namespace) -> None:
    from flsl.reproduce.differences import differences
    from flsl.reproduce.find import find_run
    from flsl.reproduce.script import comment, script
    from flsl.runtime.outputs import git_origin

    run = find_run(args.run_name, args.project_folder)
    text = script(run, args.into, args.here, git_origin())
    changed = differences(run)
    print("# what differs now: nothing that was recorded" if not changed else "# what differs now:")
    for line in changed:
        print(comment(line, indent=3))
    print(text, end="")

"""``flsl data …``: the made scenes, and checking real data sets."""

from __future__ import annotations

from flsl.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    parser = commands.add_parser("data", help="Make the demo's data; check data sets.")
    sub = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_scenes(sub)


def _add_scenes(sub: Commands) -> None:
    """Add ``flsl data scenes``."""

"""``flsl features``, ``flsl knn``, ``flsl linear`` and ``flsl aligned-knn``."""

from __future__ import annotations

from flsl.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the commands of this group."""

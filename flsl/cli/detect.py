"""``flsl detect …``, ``flsl coco evaluate`` and ``flsl uavdt evaluate``."""

from __future__ import annotations

from flsl.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the commands of this group."""

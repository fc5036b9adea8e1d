"""What the workflow plans in a project, which may hold the runs of other configs and of earlier ones as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import read_json

PLANNED = "planned.json"


@dataclass(frozen=True)
class Planned:
    """The names of what the workflow was started with last; several configs may share a project, in turns."""

    runs: Sequence[str]
    baselines: Sequence[str]
    ablations: Sequence[str]

    def plain(self) -> dict[str, list[str]]:
        """Return what stands in ``planned.json``."""
        return {kind: list(names) for kind, names in asdict(self).items()}


def read_planned(project_folder: Path) -> Planned | None:
    """Return what is planned, or ``None`` where no workflow has said so, or what it said cannot be read."""
    try:
        return Planned(**read_json(project_folder / PLANNED, "what the workflow plans"))
    except (UserError, TypeError):
        return None

"""What MLflow shows of ablations: which runs are points of which, and their tables and figures.

MLflow has no place for files of an experiment as a whole: an ablation's lie with the run that is its base (where the
base is not among its points, with the first point), below ``ablations/<name>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flsl.runtime.ablations import FOLDER, membership, read_ablations
from flsl.runtime.outputs import sha256_json
from flsl.track.files import listing

MEMBER = "flsl.ablations"
"""Tag of a run: the names of the ablations that it is a point of, each in commas, so that ``LIKE '%,name,%'`` holds."""
_FILES = "flsl.ablation_files"
_SHOWN = ("table.csv", "table.md", "figure.png")


@dataclass
class Part:
    """What a run shows of ablations.

    Attributes:
        names: the ablations that it is a point of.
        files: tables and figures by the folder that they are stored in.
    """

    names: list[str] = field(default_factory=list)
    files: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        """The tags that say so; the second changes with the files."""
        stamps = {into: listing(paths[0].parent, [path.name for path in paths]) for into, paths in self.files.items()}
        names = f",{','.join(self.names)}," if self.names else ""
        return {MEMBER: names, _FILES: sha256_json(stamps)[:16] if stamps else ""}


def parts(project_folder: Path) -> Mapping[str, Part]:
    """Return what each run shows of ablations; runs that are no points are not named."""
    ablations = read_ablations(project_folder, [])
    found = {run: Part(names) for run, names in membership(ablations).items()}
    for name, ablation in ablations.items():
        base = next((point for point in ablation.points if point.base), ablation.points[0])
        folder = project_folder / FOLDER / name
        if files := [folder / file for file in _SHOWN if (folder / file).is_file()]:
            found[base.run].files[f"{FOLDER}/{name}"] = files
    return found


def shown(part: Part, tags: Mapping[str, str]) -> bool:
    """Tell whether a run's tags say all that its part says."""
    return all(tags.get(key, "") == value for key, value in part.tags.items())

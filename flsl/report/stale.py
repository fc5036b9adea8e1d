"""Results whose settings, inputs or package code have changed since they were made, and what it was that changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flsl.runtime.code import code_now
from flsl.runtime.outputs import sha256_file, stamp
from flsl.runtime.results import PRETRAIN, Project, Run, Stage, flat, mapping

_SMALL = 64 * 2**20  # bytes that are hashed where size and time do not tell that a file is the same
_NAMED = 3


@dataclass(frozen=True)
class Stale:
    """A result that is not what its stage would make now.

    Attributes:
        run: the run's name.
        stage: the stage's.
        reasons: what has changed, in words.
    """

    run: str
    stage: str
    reasons: tuple[str, ...]


def stale_stages(project: Project) -> list[Stale]:
    """Return the project's stale results, those of a run after one another.

    Settings are compared with the run's ``config.yaml``, which the workflow keeps at what is planned; inputs by size
    and time and, where these differ, small ones by content; code by the digests of the modules that the stage used.
    A stage that rests on a stale one of its run is not named for that.
    """
    look = _Look(project)
    found = []
    for run in project.runs:
        for stage in run.stages.values():
            if stage.record is not None and (reasons := look.reasons(run, stage)):
                found.append(Stale(run.name, stage.name, tuple(reasons)))
    return found


class _Look:
    """Compares with how things are now; asks for each file once."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._module = cache(lambda name: code_now([name])[name])
        self._sha256 = cache(sha256_file)

    def reasons(self, run: Run, stage: Stage) -> list[str]:
        return [*_settings(run, stage), *self._inputs(stage), *self._code(stage)]

    def _inputs(self, stage: Stage) -> list[str]:
        recorded = stage.provenance.get("inputs")
        stamps = stage.provenance.get("input_stamps")
        changed = []
        for name, digest in recorded.items() if isinstance(recorded, Mapping) else ():
            path = self._find(name)
            if path is None:
                changed.append(f"input `{name}` is gone")
                continue
            known = stamps.get(name) if isinstance(stamps, Mapping) else None
            now = stamp(path)
            if known == now:
                continue
            if path.stat().st_size <= _SMALL:
                same = self._sha256(path) == digest
            else:
                # another time alone is no other content: files are copied and touched
                same = known is None or known.split()[0] == now.split()[0]
            if not same:
                changed.append(f"input `{name}` is another")
        return changed

    def _find(self, name: str) -> Path | None:
        """Return where an input lies: as it was named, or in the same place of a project that was moved."""
        path = Path(name)
        if path.is_file():
            return path
        parts = path.parts
        if self._project.name in parts:
            moved = self._project.folder.joinpath(*parts[parts.index(self._project.name) + 1 :])
            if moved.is_file():
                return moved
        return None

    def _code(self, stage: Stage) -> list[str]:
        recorded = stage.provenance.get("code")
        if not isinstance(recorded, Mapping):
            return []
        changed = [name for name, digest in recorded.items() if self._module(name) != digest]
        if not changed:
            return []
        return [f"code of {_some(changed)}"]


def _settings(run: Run, stage: Stage) -> list[str]:
    recorded, now = flat(stage.params), flat(_planned(run, stage))
    changed = [
        f"`{name}` {value} → {now[name]}" for name, value in recorded.items() if name in now and now[name] != value
    ]
    return [f"setting {text}" for text in changed[:_NAMED]] + (
        [f"{len(changed) - _NAMED} more settings"] if len(changed) > _NAMED else []
    )


def _planned(run: Run, stage: Stage) -> Mapping[str, Any]:
    """Return a stage's settings as the run's config has them now, by the names that the stage records them by."""
    config, kind = run.config, str((stage.record or {}).get("stage", stage.name))
    seed = {"seed": config["seed"]} if "seed" in config else {}
    if kind == PRETRAIN:
        return {**seed, **mapping(config.get(PRETRAIN))}
    if kind == "baseline":
        return {**seed, **mapping(mapping(config.get("baselines")).get(run.name))}
    if kind in ("coco", "uavdt"):
        detection = mapping(config.get("detection"))
        chosen = {name: detection[name] for name in ("engine", "model") if name in detection}
        return {**seed, **chosen, "recipe": mapping(detection.get(kind))}
    return mapping(config.get(kind))


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more modules"

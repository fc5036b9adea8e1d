"""Results whose settings, inputs or package code have changed since they were made, and what it was that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from flsl.runtime.ablations import Ablation, read_ablations
from flsl.runtime.code import code_now
from flsl.runtime.outputs import sha256_file, stamp
from flsl.runtime.results import FEATURES, PRETRAIN, Project, Run, Stage, flat

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

    Settings are compared with the run's ``config.yaml``, which the workflow keeps at what is planned, and between the
    points of an ablation, whose runs other configs may have made again; inputs by size and time and, where these
    differ, small ones by content; code by the digests of the modules that the stage used. A stage that rests on a stale
    one of its run is not named for that.
    """
    look, unlike = _Look(project), _unlike(project)
    found = []
    for run in project.runs:
        for stage in run.stages.values():
            if stage.record is not None and (
                reasons := [*look.reasons(run, stage), *unlike.get((run.name, stage.name), [])]
            ):
                found.append(Stale(run.name, stage.name, tuple(reasons)))
    return found


class _Look:
    """Compares with how things are now; asks for each file once."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._module = cache(lambda name: code_now([name])[name])
        self._sha256 = cache(sha256_file)

    def reasons(self, run: Run, stage: Stage) -> list[str]:
        return [*_named("setting ", _changed(run, stage)), *self._inputs(run, stage), *self._code(stage)]

    def _inputs(self, run: Run, stage: Stage) -> list[str]:
        recorded = stage.provenance.get("inputs")
        stamps = stage.provenance.get("input_stamps")
        changed = []
        for name, digest in recorded.items() if isinstance(recorded, Mapping) else ():
            path = self._find(run, stage, name)
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

    def _find(self, run: Run, stage: Stage, name: str) -> Path | None:
        """Return where an input lies: as it was named, or in the same place of a run or a project that was moved."""
        path = Path(name)
        parts = path.parts
        before = ("runs", (stage.record or {}).get("run", run.name))
        if before[1] != run.name and before in (pairs := list(pairwise(parts))):
            # another run may have the old name by now
            own = run.folder.joinpath(*parts[pairs.index(before) + 2 :])
            if own.is_file():
                return own
        if path.is_file():
            return path
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


def _named(kind: str, changed: list[str]) -> list[str]:
    rest = [f"{len(changed) - _NAMED} more settings"] if len(changed) > _NAMED else []
    return [f"{kind}{text}" for text in changed[:_NAMED]] + rest


def _changed(run: Run, stage: Stage) -> list[str]:
    """Return the settings of a stage that have other values in the run's config now, with both values."""
    now = flat(run.config)
    return [
        f"`{name}` {value} → {now[place]}"
        for name, place, value in _recorded(run, stage)
        if place in now and now[place] != value
    ]


def _unlike(project: Project) -> dict[tuple[str, str], list[str]]:
    """Return by run and stage how points of ablations differ from their base in what the ablation does not vary.

    The plan allows none of it: other configs of the project have made one of them again, or the plan has changed. What
    is stale by its own config is told already.
    """
    runs = {run.name: run for run in project.runs}
    found: dict[tuple[str, str], list[str]] = {}
    for ablation in read_ablations(project.folder, []).values():
        points = sorted(ablation.points, key=lambda point: not point.base)
        names = list(dict.fromkeys(point.run for point in points if point.run in runs))
        for stage in (PRETRAIN, FEATURES, *ablation.stages):
            made = [
                (name, _by_place(runs[name], own))
                for name in names
                if (own := runs[name].stages.get(stage)) is not None
                and own.record is not None
                and not _changed(runs[name], own)
            ]
            for name, settings in made[1:]:
                base, theirs = made[0]
                changed = [
                    f"`{place}` {value}, there {theirs[place]}"
                    for place, value in settings.items()
                    if place in theirs and theirs[place] != value and not _varied(place, ablation)
                ]
                found.setdefault((name, stage), []).extend(
                    _named(f"unlike `{base}` in the ablation `{ablation.name}`: ", changed)
                )
    return found


def _varied(place: str, ablation: Ablation) -> bool:
    return any(place == axis or place.startswith(f"{axis}.") for axis in ("seed", *ablation.axes))


def _by_place(run: Run, stage: Stage) -> dict[str, Any]:
    """Return the settings of the config that a stage was made with, by dotted name."""
    now = flat(run.config)
    return {place: value for _, place, value in _recorded(run, stage) if place in now}


def _recorded(run: Run, stage: Stage) -> Iterator[tuple[str, str, Any]]:
    """Yield what a stage was made with: a setting's name among the stage's, its name in the config, and the value."""
    kind = str((stage.record or {}).get("stage", stage.name))
    for recorded, value in flat(stage.params).items():
        name = recorded.removeprefix("made_from.")
        head, _, rest = name.partition(".")
        if name != recorded or head in ("seed", FEATURES):
            place = name
        elif kind == "baseline":
            place = f"baselines.{run.name}.{name}"
        elif kind in ("coco", "uavdt"):
            place = f"detection.{kind}.{rest}" if head == "recipe" else f"detection.{name}"
        else:
            place = f"{kind}.{name}"
        yield name, place, value


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more modules"

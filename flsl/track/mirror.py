"""A run's files as MLflow runs: one for the run, below it one for each stage; made, updated or replaced as needed.

MLflow's params cannot be changed, and points of a metric cannot be taken back. Where the files no longer say what was
sent (other settings, a history that was cut back, a figure that is gone), the MLflow run is moved to MLflow's trash and
a new one takes its place; in all other cases the same MLflow run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flsl.config.experiment import TrackingSettings
from flsl.runtime.attempts import read_attempts
from flsl.runtime.environment import LOCK
from flsl.runtime.machine import SYSTEM
from flsl.runtime.outputs import sha256_json
from flsl.runtime.planned import read_planned
from flsl.runtime.progress import warn
from flsl.runtime.results import CONFIG, HISTORY, PRETRAIN, Run, Stage, stage_folders
from flsl.track.ablations import Part, shown
from flsl.track.files import artifacts, listing, signature
from flsl.track.history import Mark, Point, milliseconds, new_points
from flsl.track.names import config_hash, is_curve, mlflow_name, mlflow_params
from flsl.track.store import Seen, Store, TrackingError

# the files of points, and the tags that say how far they were sent
_POINTS = {HISTORY: "flsl.history", SYSTEM: "flsl.system"}


@dataclass
class Counts:
    """What a sync did, and the id of the experiment that it was done to."""

    runs: int = 0
    stages: int = 0
    unchanged: int = 0
    points: int = 0
    removed: int = 0
    replaced: int = 0
    experiment: str = ""


@dataclass(frozen=True)
class Place:
    """Where a run belongs.

    Attributes:
        project: the project's name.
        folder: what the view is of; its runs are removed from the view when they are gone from there.
    """

    project: str
    folder: Path


@dataclass
class Wanted:
    """What a run should look like in the store."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    figures: dict[str, float]
    start: int
    end: int | None
    status: str
    kept: Callable[[str], bool] = field(default=is_curve)
    """Whether a metric that is not among the figures may stay."""


class Mirror:
    """Brings the MLflow runs of an experiment to what files say.

    Args:
        store: the tracking store.
        experiment: the experiment's id.
        place: where the runs belong.
        settings: what to send.
        begun: when a stage began that has not said so yet, in milliseconds since 1970; ``None`` is now.
        ablations: what each run shows of ablations; ``None`` leaves that as it is.
        varied: the settings that any run varies; the others' params have them as well.

    Attributes:
        counts: what was done so far.
    """

    def __init__(
        self,
        store: Store,
        experiment: str,
        place: Place,
        settings: TrackingSettings,
        begun: int | None = None,
        ablations: Mapping[str, Part] | None = None,
        varied: Collection[str] = (),
    ) -> None:
        self._ablations, self._varied = ablations, varied
        self._store, self._experiment, self._place, self._settings = store, experiment, place, settings
        self._begun = begun or now()
        self._planned = read_planned(place.folder)
        self._uploads = True
        self.counts = Counts()

    def run(self, run: Run, seen: list[Seen], whole: bool = True, state: str | None = None) -> None:
        """Bring a run and its stages up to date.

        Args:
            run: what the files say.
            seen: the MLflow runs that carry its name.
            whole: whether ``run`` holds all of its stages; without, others are left as they are.
            state: MLflow's status of stages that are not complete; ``None`` leaves it.
        """
        known = self._index(seen)
        files = self._signature(run.folder) if whole else ""
        parent = self._bring(known.get(""), self._wanted_run(run, known.get(""), whole, state))
        self._upload(parent, run.folder, listing(run.folder, {CONFIG}), {})
        self._show_ablations(parent, run.name)
        for stage in run.stages.values():
            self._stage(run, stage, parent, known.get(stage.name), state)
            self.counts.stages += 1
        if whole:
            for name in known.keys() - set(run.stages) - set(run.broken) - {""}:
                self.remove(known[name])
            if not run.broken and self._uploads:
                self._store.log(parent.run_id, tags={"flsl.files": files})
        self.counts.runs += 1

    def up_to_date(self, folder: Path, seen: list[Seen]) -> bool:
        """Tell whether the store already shows a run's files as they are."""
        parents = [one for one in seen if "flsl.stage" not in one.tags]
        stages = sorted(one.tags["flsl.stage"] for one in seen if "flsl.stage" in one.tags)
        return (
            len(parents) == 1
            and parents[0].tags.get("flsl.files") == self._signature(folder)
            and parents[0].tags.get("flsl.folder") == str(self._place.folder)
            and stages == sorted(path.name for path in stage_folders(folder))
            and {one.tags.get("mlflow.parentRunId") for one in seen} <= {None, parents[0].run_id}
            and (self._ablations is None or shown(self._ablations.get(folder.name, Part()), parents[0].tags))
        )

    def remove(self, seen: Seen) -> None:
        """Move a run whose files are gone to MLflow's trash."""
        self._store.delete(seen.run_id, "its files are gone")
        self.counts.removed += 1

    def _index(self, seen: list[Seen]) -> dict[str, Seen]:
        """Return the runs by stage ("" for the parent), and mend what two processes at once may have made twice."""
        known: dict[str, Seen] = {}
        for one in sorted(seen, key=lambda one: (one.start, one.run_id)):
            stage = one.tags.get("flsl.stage", "")
            if stage in known:
                self._store.delete(one.run_id, "the same run twice")
                self.counts.removed += 1
            else:
                known[stage] = one
        return known

    def _bring(self, seen: Seen | None, wanted: Wanted) -> Seen:
        """Make, update or replace a run; return it as it is then."""
        if seen is not None and (reason := _conflict(seen, wanted)):
            self._store.delete(seen.run_id, reason)
            self.counts.replaced += 1
            seen = None
        if seen is None:
            seen = self._store.create(self._experiment, wanted.name, wanted.start, wanted.tags)
        at = wanted.end or wanted.start
        points = [
            # where a figure was another, the newer time makes this one the latest
            Point(key, value, max(at, self._store.latest(seen.run_id, key) + 1) if key in seen.metrics else at, 0)
            for key, value in wanted.figures.items()
            if seen.metrics.get(key) != value
        ]
        params = {key: value for key, value in wanted.params.items() if key not in seen.params}
        tags = {key: value for key, value in wanted.tags.items() if seen.tags.get(key) != value}
        self._store.log(seen.run_id, points, params, tags)
        if seen.status != wanted.status or (wanted.end is not None and seen.end != wanted.end):
            self._store.status(seen.run_id, wanted.status, wanted.end)
        seen.tags.update(tags)
        return seen

    def _stage(self, run: Run, stage: Stage, parent: Seen, seen: Seen | None, state: str | None) -> None:
        if seen is not None and any(
            not Mark.parse(seen.tags.get(tag)).holds(stage.folder / name) for name, tag in _POINTS.items()
        ):
            self._store.delete(seen.run_id, "its history was cut back or written anew")
            self.counts.replaced += 1
            seen = None
        child = self._bring(seen, self._wanted_stage(run, stage, parent, seen, state))
        for name, tag in _POINTS.items():
            sent = Mark.parse(child.tags.get(tag))
            for points, mark in new_points(stage.folder / name, sent, child.start):
                self._store.curves(child.run_id, points, {tag: str(mark)})
                self.counts.points += len(points)
        if stage.record is not None:
            packages = stage.provenance.get("packages")
            texts = {}
            if isinstance(packages, Mapping) and not (stage.folder / LOCK).is_file():
                texts["environment.txt"] = "".join(f"{name}=={version}\n" for name, version in packages.items())
            self._upload(child, stage.folder, artifacts(stage.folder, self._settings.artifact_mb), texts)

    def _upload(self, seen: Seen, folder: Path, names: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Store the files ``names`` with a run, unless they already are."""
        stored = sha256_json({**names, **texts})[:16]
        if not names or not self._uploads or seen.tags.get("flsl.artifacts") == stored:
            return
        try:
            for name in names:
                self._store.upload(seen.run_id, folder / name, Path(name).parent.name or None)
            for name, text in texts.items():
                self._store.upload_text(seen.run_id, name, text)
        except TrackingError as error:
            # figures and curves may still arrive: a server's files often lie elsewhere than its database
            warn(f"files are not stored: {error}")
            self._uploads = False
            return
        self._store.log(seen.run_id, tags={"flsl.artifacts": stored})

    def _show_ablations(self, parent: Seen, run: str) -> None:
        """Say which ablations a run is a point of, and store the tables and figures that lie with it."""
        if self._ablations is None or shown(part := self._ablations.get(run, Part()), parent.tags):
            return
        if part.files and not self._uploads:
            return
        try:
            for into, paths in part.files.items():
                for path in paths:
                    self._store.upload(parent.run_id, path, into)
        except TrackingError as error:
            warn(f"files are not stored: {error}")
            self._uploads = False
            return
        self._store.log(parent.run_id, tags=part.tags)

    def _wanted_run(self, run: Run, seen: Seen | None, whole: bool, state: str | None) -> Wanted:
        settings = run.settings
        begun = bool(run.stages)
        complete = begun and all(stage.record is not None for stage in run.stages.values())
        pretrain = run.stages.get(PRETRAIN)
        tags = self._tags(run, "baseline" if run.baseline else "run", pretrain) | {
            "flsl.config": config_hash(settings),
            "mlflow.note.content": _note(run),
        }
        left = tuple(f"{mlflow_name(name)}/" for name in run.broken)
        starts, ends = _times(run.stages.values())
        return Wanted(
            name=run.name,
            tags=tags,
            params=self._params(run, seen),
            figures={mlflow_name(name): value for name, value in run.figures.items()},
            start=min(starts, default=self._begun),
            end=max(ends, default=None) if complete else None,
            status="FINISHED" if complete else _unfinished(seen, state) if begun else self._waiting(run.name),
            kept=(lambda name: name.startswith(left)) if whole else (lambda name: True),
        )

    def _waiting(self, name: str) -> str:
        """Return the status of a run that has not begun."""
        return "SCHEDULED" if self._is_planned(name) else "KILLED"

    def _is_planned(self, name: str) -> bool:
        return self._planned is None or name in (*self._planned.runs, *self._planned.baselines)

    def _signature(self, folder: Path) -> str:
        return signature(folder, self._settings.artifact_mb, self._varied, self._is_planned(folder.name))

    def _params(self, run: Run, seen: Seen | None) -> dict[str, str]:
        """Return a run's own settings, and what its config says of those that others vary.

        Those that it was sent with stay while the config says the same, whether or not others still vary them: live
        following sees one run only.
        """
        own = mlflow_params(run.settings)
        if run.baseline:
            return own
        known = {mlflow_name(name) for name in self._varied} | (seen.params.keys() if seen is not None else set())
        config = mlflow_params(run.config) if known - own.keys() else {}
        return own | {name: config[name] for name in sorted(known - own.keys()) if name in config}

    def _wanted_stage(self, run: Run, stage: Stage, parent: Seen, seen: Seen | None, state: str | None) -> Wanted:
        tags = self._tags(run, "stage", stage) | {
            "flsl.stage": stage.name,
            "flsl.config": config_hash(stage.params),
            "mlflow.parentRunId": parent.run_id,
        }
        starts, ends = _times([stage])
        complete = stage.record is not None
        return Wanted(
            name=f"{run.name}/{stage.name}",
            tags=tags if complete else {key: value for key, value in tags.items() if key != "flsl.config"},
            params=mlflow_params(_named(stage)),
            figures={mlflow_name(name): value for name, value in stage.figures.items()},
            start=min(starts, default=self._begun),
            end=max(ends, default=None),
            status="FINISHED" if complete else _unfinished(seen, state),
        )

    def _tags(self, run: Run, kind: str, stage: Stage | None) -> dict[str, str]:
        tags = {
            "flsl.project": self._place.project,
            "flsl.run": run.name,
            "flsl.kind": kind,
            "flsl.folder": str(self._place.folder),
            "mlflow.source.name": f"flsl {stage.name if stage is not None else 'run'}",
        }
        origin = stage.provenance if stage is not None else {}
        for tag, key in (("flsl.git", "git"), ("flsl.host", "host"), ("flsl.device", "device")):
            if origin.get(key):
                tags[tag] = str(origin[key])
        if stage is not None and (attempts := read_attempts(stage.folder)):
            tags["flsl.attempts"] = str(len(attempts))
            tags["flsl.jobs"] = " ".join(dict.fromkeys(str(attempt["job_id"]) for attempt in attempts))
        if "flsl.git" in tags:
            tags["mlflow.source.git.commit"] = tags["flsl.git"].removesuffix("-dirty")
        return tags


def _conflict(seen: Seen, wanted: Wanted) -> str | None:
    """Say why a run cannot be brought to what is wanted, or ``None`` when it can."""
    if any(wanted.params.get(key) != value for key, value in seen.params.items()) and wanted.params:
        return "its settings changed"
    if any(key not in wanted.figures and not wanted.kept(key) for key in seen.metrics):
        return "a figure of it is gone"
    return None


def _named(stage: Stage) -> dict[str, Any]:
    """Return a stage's settings below its name, as they stand in the config; the seed is everybody's."""
    params = dict(stage.params)
    seed = {"seed": params.pop("seed")} if "seed" in params else {}
    return {**seed, str((stage.record or {}).get("stage", stage.name)): params} if params else seed


def _unfinished(seen: Seen | None, state: str | None) -> str:
    """Return the status of what is not complete: whether it still runs, only its own process knows."""
    return state or ("KILLED" if seen is not None and seen.status == "KILLED" else "RUNNING")


def _times(stages: Iterable[Stage]) -> tuple[list[int], list[int]]:
    starts: list[int] = []
    ends: list[int] = []
    for stage in stages:
        start = milliseconds(stage.started)
        if start is not None:
            starts.append(start)
            ends.append(start + round(1000 * stage.seconds))
    return starts, ends


def _note(run: Run) -> str:
    if run.baseline:
        return f"Baseline `{run.name}`: an encoder that was not pretrained here, evaluated as the runs are."
    return f"FLSL pretraining `{run.name}` with the final figures of all its stages; the runs below it are the stages."


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return round(datetime.now(UTC).timestamp() * 1000)

"""From ``runs`` and ``ablations`` to the runs that there are: their names, settings, stages, and what they share.

A run of an ablation is named after what it changes in the experiment's own settings, so that its name depends neither
on the ablation, nor on the order of the points, nor on the other points: adding a point renames nothing. Points that
come to the same settings are one run, also across ablations, and are the entry of ``runs`` that has these settings.

A stage whose figures depend on a part of what a run changes is made by the run that changes just that part, and shared
by the others: points that differ in ``knn.temperature`` have one pretraining, one set of features, and each a k-NN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from flsl.config.ablation import AblationSettings
from flsl.config.base import Stage
from flsl.config.changes import changes_of, check_name, key_of, leaves, run_name, value_of
from flsl.config.checking import check, set_dotted
from flsl.config.experiment import Experiment
from flsl.runtime.errors import UserError

PRETRAIN = "pretrain"
FEATURES = "features"
# what the figures of a stage depend on besides the pretrained encoder, by dotted name
_CONCERNS = {
    PRETRAIN: (),
    FEATURES: ("features",),
    "knn": ("features", "knn"),
    "linear": ("features", "linear"),
    "aligned_knn": ("features", "aligned_knn"),
    "coco": ("detection.engine", "detection.model", "detection.coco"),
    "uavdt": ("detection.engine", "detection.model", "detection.uavdt"),
    "davis": ("davis",),
    "visualize": ("visualize",),
}


@dataclass
class PlannedRun:
    """One run of the experiment.

    Attributes:
        name: its folder's name.
        settings: its resolved config.
        changes: what it changes in the experiment's own settings, by dotted name.
        stages: the evaluations that it has.
        shares: by stage (``pretrain`` and ``features`` too), the run that makes it, where that is another one.
    """

    name: str
    settings: Experiment
    changes: Mapping[str, Any]
    stages: set[str] = field(default_factory=set)
    shares: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One point of an ablation with one seed.

    Attributes:
        run: the run that it is.
        name: what the config calls it, where it does; of several of its points that are the same, all their names.
        values: of the varied settings, by dotted name.
        seed: the seed.
        base: whether it varies nothing: the experiment's own settings, with what all points share.
    """

    run: str
    name: str | None
    values: Mapping[str, Any]
    seed: int
    base: bool


@dataclass(frozen=True)
class PlannedAblation:
    """One ablation.

    Attributes:
        name: its name.
        settings: what the config says.
        axes: the varied settings by dotted name.
        stages: the evaluations of its points.
        points: in the config's order, seeds innermost.
    """

    name: str
    settings: AblationSettings
    axes: list[str]
    stages: list[Stage]
    points: list[Point]


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment and its ablations, by name."""

    runs: dict[str, PlannedRun]
    ablations: dict[str, PlannedAblation]


def plan(experiment: Experiment) -> Plan:
    """Work out which runs the experiment and its ablations consist of.

    Raises:
        UserError: naming the ablation or the run whose changes do not fit, or whose name is taken.
    """
    return _Planner(experiment).plan()


def resolve(experiment: Experiment, changes: Mapping[str, Any], source: str) -> Experiment:
    """Return the experiment with some settings changed, by dotted name.

    Raises:
        UserError: when a setting is unknown, or may not differ between runs, or has a value that does not fit.
    """
    data = experiment.plain() | {"ablations": {}}
    for name, value in changes.items():
        check_name(name, source)
        set_dotted(data, name, value, source)
    return check(Experiment, data, source)


def record(whole: Plan, name: str) -> dict[str, Any]:
    """Return an ablation as plain data: what its table is made from, and what stands in ``ablation.json``.

    Besides what the config says, each point has its run and, by stage, the run that makes the stage (``made_by``).
    """
    ablation = whole.ablations[name]

    def made_by(run: PlannedRun) -> dict[str, str]:
        stages = [PRETRAIN, *([FEATURES] if "knn" in ablation.stages else []), *ablation.stages]
        return {stage: run.shares.get(stage, run.name) for stage in stages}

    return {
        "name": name,
        "caption": ablation.settings.caption,
        "categorical": ablation.settings.categorical,
        "axes": ablation.axes,
        "shared": ablation.settings.shared,
        "stages": ablation.stages,
        "points": [{**asdict(point), "made_by": made_by(whole.runs[point.run])} for point in ablation.points],
    }


class _Planner:
    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._base = dict(leaves(experiment))
        self._runs: dict[str, PlannedRun] = {}
        self._by_changes: dict[str, str] = {}

    def plan(self) -> Plan:
        for name, changes in self._experiment.runs.items():
            run = self._add(name, resolve(self._experiment, changes, f"runs.{name}"))
            run.stages.update(self._experiment.stages)
        ablations = {name: self._ablation(name, one) for name, one in self._experiment.ablations.items()}
        # runs that exist for others' sake are added on the way
        queue = list(self._runs.values())
        for run in queue:
            queue += self._share(run)
        for run in self._runs.values():
            stages = [stage for stage in get_args(Stage) if stage in run.stages]
            # the resolved config says what was resolved, for those who read it beside other runs'
            runs = {**self._experiment.runs, run.name: dict(run.changes)}
            run.settings = run.settings.model_copy(update={"stages": stages, "runs": runs})
        return Plan(self._runs, ablations)

    def _add(self, name: str, settings: Experiment) -> PlannedRun:
        changes = changes_of(settings, self._base)
        run = PlannedRun(name, settings, changes)
        self._runs[name] = run
        self._by_changes.setdefault(key_of(changes), name)
        return run

    def _ablation(self, name: str, settings: AblationSettings) -> PlannedAblation:
        source = f"ablations.{name}"
        entries = list(_entries(settings, source))
        axes = list(dict.fromkeys(key for entry in entries for key in entry.changes if key != "seed"))
        shared = resolve(self._experiment, settings.shared, f"{source}.shared")
        stages = list(self._experiment.stages if settings.stages is None else settings.stages)
        points: list[Point] = []
        taken: dict[str, _Entry] = {}
        for entry in entries:
            for seed in settings.seeds or [entry.changes.get("seed", shared.seed)]:
                changes = {**settings.shared, **entry.changes, "seed": seed}
                run = self._run_of(resolve(self._experiment, changes, entry.source), entry.source)
                if (same := taken.setdefault(run.name, entry)) is not entry:
                    if same.changes.keys() == entry.changes.keys():
                        raise UserError(
                            f"{entry.source}: is the same point as {same.source} (run {run.name}); name each once"
                        )
                    # one of them says what the other leaves as it is, for instance since an override
                    if entry.name is not None:
                        points = [_also_named(entry.name, one) if one.run == run.name else one for one in points]
                    continue
                run.stages.update(stages)
                own = dict(leaves(run.settings))
                base = {**dict(leaves(shared)), "seed": seed} == own
                values = {axis: value_of(run.settings, axis) for axis in axes}
                points.append(Point(run.name, entry.name, values, seed, base))
        for axis in axes:
            if not any(_concerns(stage, axis) for stage in (PRETRAIN, *stages)):
                measured = ", ".join(stages) or "nothing"
                raise UserError(
                    f"{source}: {axis} is varied, but no figure depends on it: the points have {measured}; "
                    f"name its stage in {source}.stages"
                )
        return PlannedAblation(name, settings, axes, stages, points)

    def _run_of(self, settings: Experiment, source: str) -> PlannedRun:
        """Return the run with these settings, made where there is none yet."""
        changes = changes_of(settings, self._base)
        known = self._by_changes.get(key_of(changes))
        if known is not None:
            return self._runs[known]
        name = run_name(changes)
        kind = "runs" if name in self._runs else "baselines" if name in self._experiment.baselines else None
        if kind is not None:
            raise UserError(
                f"{source}: its run would be called {name}, as {kind}.{name}, which is another one; rename that entry"
            )
        return self._add(name, settings)

    def _share(self, run: PlannedRun) -> list[PlannedRun]:
        """Find who makes each stage of a run; return the runs that were made for that."""
        made = []
        needed = [PRETRAIN, *([FEATURES] if "knn" in run.stages else []), *sorted(run.stages)]
        for stage in needed:
            changes = {key: value for key, value in run.changes.items() if _concerns(stage, key)}
            owner = self._by_changes.get(key_of(changes))
            if owner is None and run.name not in self._experiment.runs:
                source = f"ablations: what the run {run.name} shares with others"
                other = self._run_of(resolve(self._experiment, changes, source), source)
                made.append(other)
                owner = other.name
            if owner is None or owner == run.name or changes == run.changes:
                continue
            run.shares[stage] = owner
            if stage in get_args(Stage) and stage not in self._runs[owner].stages:
                self._runs[owner].stages.add(stage)
                made.append(self._runs[owner])
        return made


@dataclass(frozen=True)
class _Entry:
    source: str
    name: str | None
    changes: Mapping[str, Any]


def _entries(settings: AblationSettings, source: str) -> Iterator[_Entry]:
    """Yield the points of an ablation as the config says them."""
    if settings.points:
        for where, changes in settings.named_points():
            name = where.removeprefix("points.") if isinstance(settings.points, dict) else None
            yield _Entry(f"{source}.{where}", name, changes)
        return
    for name in settings.grid:
        check_name(name, f"{source}.grid")
    for values in itertools.product(*settings.grid.values()):
        yield _Entry(f"{source}.grid", None, dict(zip(settings.grid, values, strict=True)))


def _also_named(name: str, point: Point) -> Point:
    return replace(point, name=f"{point.name} = {name}")


def _concerns(stage: str, name: str) -> bool:
    """Tell whether the figures of a stage depend on a setting."""
    return any(name == part or name.startswith(f"{part}.") for part in ("seed", PRETRAIN, *_CONCERNS[stage]))

"""What runs are compared by: the headline figures, and the settings that differ between them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flsl.runtime.results import Run, flat

# (what it is, its name; `@20` stands for the nearest k that a run evaluated), in the order of the tables
_HEADLINES = (
    ("k-NN top-1", "knn/top1@20"),
    ("linear top-1", "linear/top1"),
    ("aligned k-NN patch top-1", "aligned_knn/patch_top1@20"),
    ("COCO box AP", "coco/bbox/AP"),
    ("COCO box AP50", "coco/bbox/AP50"),
    ("COCO mask AP", "coco/segm/AP"),
    ("UAVDT AP@0.7", "uavdt/AP@0.7"),
    ("DAVIS J&F", "davis/J&F-Mean"),
)
NO_RESULTS = ("pretrain", "baseline", "features")
"""Stages that make an encoder or prepare its evaluation, and judge nothing."""


@dataclass(frozen=True)
class Headline:
    """A figure that a run is judged by; all of them are percentages, and more is better."""

    label: str
    metric: str


def changed_settings(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return for each run (baselines have none) the settings that are not the same in all runs, lists as JSON text."""
    pretrainings = [run for run in runs if not run.baseline]
    varied = {name for run in pretrainings for name in own_settings(run)}
    own = {run.name: {} if run.baseline else complete_settings(run, varied) for run in runs}
    pretrained = [values for values in own.values() if values]
    names = {name for values in pretrained for name in values}
    differ = {name for name in names if len({json.dumps(values.get(name)) for values in pretrained}) > 1}
    return {
        run: {
            name: json.dumps(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in differ
        }
        for run, values in own.items()
    }


def headlines(runs: Iterable[Iterable[str]]) -> list[Headline]:
    """Return the figures that runs are judged by, of those that there are.

    Args:
        runs: the names of each run's figures. Runs that were evaluated with other numbers of neighbours are judged by
            figures of their own.
    """
    each = [set(metrics) for metrics in runs]
    found = []
    for label, metric in _HEADLINES:
        base, _, usual = metric.partition("@")
        if usual.isdecimal():
            nearest = {k for known in each if (k := _nearest(known, f"{base}@", int(usual))) is not None}
            found += [Headline(f"{label} (k = {k})", f"{base}@{k}") for k in sorted(nearest)]
        elif any(metric in known for known in each):
            found.append(Headline(label, metric))
    return found


def _nearest(metrics: Iterable[str], start: str, usual: int) -> int | None:
    """Return the k nearest to the usual one, of the figures called ``<start><k>``; the smaller of two as near."""
    endings = (name.removeprefix(start) for name in metrics if name.startswith(start))
    ks = [int(ending) for ending in endings if ending.isdecimal()]
    return min(ks, key=lambda k: (abs(k - usual), k), default=None)


def ordered(metrics: Iterable[str]) -> list[str]:
    """Sort figures by stage, in the order of the headlines, and within a stage as they were written."""
    stages = list(NO_RESULTS) + list(dict.fromkeys(metric.split("/")[0] for _, metric in _HEADLINES))

    def place(metric: str) -> tuple[int, str]:
        stage = metric.split("/")[0]
        return (stages.index(stage), "") if stage in stages else (len(stages), stage)

    return sorted(metrics, key=place)


def complete_settings(run: Run, varied: set[str]) -> dict[str, Any]:
    """Return a run's settings with those that another run changes, which have a value in this one as well."""
    own = own_settings(run)
    missing = varied - own.keys()
    everything = flat(run.config) if missing else {}
    return own | {name: everything[name] for name in sorted(missing) if name in everything}


def own_settings(run: Run) -> dict[str, Any]:
    """Return the settings that make a run what it is, by dotted name; the seed is none of them."""
    settings = flat(run.settings)
    settings.pop("seed", None)
    return settings

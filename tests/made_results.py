"""A project's results folder as the stages would have left it, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import yaml

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.config.loading import run_experiment
from flsl.config.sweep import plan, record
from flsl.report.ablations import AblationTable, tabulate
from flsl.runtime.ablations import read_ablation
from flsl.runtime.outputs import sha256_json, write_json, write_text
from flsl.runtime.results import read_project

BEGIN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KNN = {"knn/top1@10": 50.0, "knn/top1@20": 52.5, "knn/top5@20": 91.0}
LINEAR = {"linear/top1": 61.25, "linear/top5": 95.0}
PARAMS: dict[str, dict[str, Any]] = {
    "knn": {"k": [10, 20], "temperature": 0.07},
    "linear": {"epochs": 100, "learning_rates": [0.001, 0.01]},
    "davis": {"radius": 12, "size": 480},
}


def experiment(project: str = "demo", **settings: Any) -> Experiment:
    return check(Experiment, {"project": project, **settings}, "the test")


class Results:
    """``results/<project>``; every method writes what a stage would."""

    def __init__(self, root: Path, settings: Experiment | None = None) -> None:
        self.experiment = settings or experiment()
        self.folder = root / self.experiment.project
        self.folder.mkdir(parents=True)

    def config(self, run: str) -> Path:
        known = run in self.experiment.runs
        resolved = run_experiment(self.experiment, run) if known else self.experiment
        path = self.folder / "runs" / run / "config.yaml"
        write_text(path, yaml.safe_dump(resolved.plain()))
        return path

    def stage(
        self, run: str, name: str, metrics: Mapping[str, float], params: Mapping[str, Any] | None = None, kind: str = ""
    ) -> Path:
        params = dict(PARAMS.get(name, {}) if params is None else params)
        path = self.folder / "runs" / run / name / "metrics.json"
        record = {
            "stage": kind or name,
            "run": run,
            "metrics": dict(metrics),
            "params": params,
            "provenance": {
                "git": "0123abcd" * 5,
                "packages": {"python": "3.12.1", "torch": "2.6.0"},
                "host": "node7",
                "device": "cuda: NVIDIA H100",
                "started": BEGIN.isoformat(timespec="seconds"),
                "seconds": 12.5,
                "config_sha256": sha256_json(params),
                "inputs": {},
            },
        }
        write_json(path, record)
        return path

    def pretrained(self, run: str, steps: Iterable[int] = (), metrics: Mapping[str, float] | None = None) -> Path:
        settings = yaml.safe_load(self.config(run).read_text())
        self.history(run, steps)
        write_text(self.folder / "runs" / run / "pretrain" / "backbone.safetensors", "weights")
        final = {"pretrain/loss": 1.5, "pretrain/images_per_second": 800.0} if metrics is None else metrics
        return self.stage(run, "pretrain", final, {"seed": settings["seed"], **settings["pretrain"]})

    def baseline(self, name: str = "untrained") -> Path:
        self.config(name)
        write_text(self.folder / "runs" / name / "pretrain" / "backbone.safetensors", "weights")
        return self.stage(name, "pretrain", {}, {"kind": "random", "seed": 0}, kind="baseline")

    def history(self, run: str, steps: Iterable[int], again: int = 0) -> Path:
        """Append lines; ``again`` counts the restarts, as the time of day is another then."""
        path = self.folder / "runs" / run / "pretrain" / "history.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            for step in steps:
                time = BEGIN + timedelta(seconds=step, hours=again)
                shared = {"step": step, "epoch": step / 10, "time": time.isoformat(timespec="milliseconds")}
                parts = {"loss": 8 - 0.01 * step, "intra_view": 0.5, "inter_view": 7.0, "volume": 0.1}
                line = {"kind": "step", **shared, **parts, "learning_rate": 1e-3, "images_per_second": 800.0}
                stream.write(json.dumps(line) + "\n")
                if step % 10 == 0:
                    health = {"position_information": 20.0 + step, "online_knn": 40.0 + step / 10}
                    stream.write(json.dumps({"kind": "epoch", **shared, **health}) + "\n")
        return path

    def manifest(self, name: str = "images", **facts: Any) -> Path:
        path = self.folder / "data" / name / "manifest.json"
        write_json(
            path,
            {
                "kind": "images",
                "root": f"data/{name}",
                "content_sha256": "ab" * 32,
                "files": 120,
                "bytes": 3_400_000,
                "splits": {
                    "train": {"files": 100, "ok": 99, "images": 99},
                    "val": {"files": 20, "ok": 20, "images": 20},
                },
                "image_sizes": {"min": [48, 48], "median": [48.0, 48.0], "max": [48, 48]},
                "classes": {"count": 10},
                "quarantined": {"count": 1, "first": [{"path": "train/a/3.jpg", "reason": "truncated"}]},
                "inconsistencies": {"count": 0, "first": []},
                "notes": {"count": 0, "first": []},
                **facts,
            },
        )
        return path


def demo(root: Path, **settings: Any) -> Results:
    """Two runs of two seeds of figures, and the untrained baseline, with k-NN and linear probes."""
    results = Results(root, experiment(runs={"base": {}, "wide": {"pretrain.prototypes": 8192}}, **settings))
    for run, gain in (("base", 0.0), ("wide", 3.0)):
        results.pretrained(run, range(1, 21))
        results.stage(run, "knn", {name: value + gain for name, value in KNN.items()})
        results.stage(run, "linear", {name: value + gain for name, value in LINEAR.items()})
    results.baseline()
    results.stage("untrained", "knn", {name: value - 10 for name, value in KNN.items()})
    results.stage("untrained", "linear", {name: value + 1 for name, value in LINEAR.items()})
    results.manifest()
    return results


def ablated(root: Path, ablations: dict[str, Any], lacking: tuple[str, ...] = (), **settings: Any) -> Results:
    """A project in which every planned run has k-NN and linear figures, but for those of ``lacking``."""
    random = Random(0)
    whole = experiment(ablations=ablations, stages=["knn", "linear"], **settings)
    results = Results(root, whole)
    planned = plan(whole)
    for name in planned.ablations:
        write_json(results.folder / "ablations" / name / "ablation.json", record(planned, name))
    for run in planned.runs.values():
        write_text(results.folder / "runs" / run.name / "config.yaml", yaml.safe_dump(run.settings.plain()))
        if run.name in lacking:
            continue
        recipe = {"seed": run.settings.seed, **run.settings.pretrain.plain()}
        results.stage(run.name, "pretrain", {"pretrain/loss": 1.0}, recipe)
        for stage in run.settings.stages:
            figures = {f"{stage}/top1" + "@20" * (stage == "knn"): random.uniform(20, 80)}
            results.stage(run.name, stage, figures, getattr(run.settings, stage).plain())
    return results


def table_of(results: Results, name: str = "a") -> AblationTable:
    """The table of an ablation of a project."""
    return tabulate(read_project(results.folder), read_ablation(results.folder / "ablations" / name / "ablation.json"))

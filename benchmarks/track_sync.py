"""How much does sending results to MLflow cost beyond MLflow's own work, and what does a sync cost with nothing new?

Compares, in one run on a made project (runs with curves, k-NN and linear figures) and stores in SQLite:
- ours: ``flsl.track.sync.sync`` into an empty store;
- bare: the same points by ``MlflowClient.log_batch``, 1000 a call, and nothing else: no reading, settings, files; of
  the first ten runs, a run's cost compared;
- again: ``sync`` a second time, when nothing is new.

    python benchmarks/track_sync.py --runs 20 --points 10000 --out results/bench-track-sync.json
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from common import options, report

from flsl.config.experiment import Experiment, TrackingSettings
from flsl.config.loading import check
from flsl.runtime.outputs import StageRecord, write_text
from flsl.track.history import Mark, new_points
from flsl.track.store import open_store
from flsl.track.sync import sync

KEYS = ("loss", "intra_view", "inter_view", "volume", "perplexity", "prototypes_used", "teacher_entropy", "momentum")
BARE_RUNS = 10  # MLflow's own way takes minutes for hundreds
KEYS += ("learning_rate", "images_per_second")


def make(project: Path, runs: int, points: int) -> None:
    """Write a project: each run with ``points`` values in its history, settings, k-NN and linear figures."""
    lines = [
        json.dumps(
            {"kind": "step", "step": 50 * step, "epoch": step / 10, "time": 1.7e9 + step}
            | {key: step / (place + 3) for place, key in enumerate(KEYS)}
        )
        for step in range(1, points // len(KEYS) + 1)
    ]
    for seed in range(runs):
        folder = project / "runs" / f"seed_{seed}"
        settings = check(Experiment, {"project": project.name, "seed": seed}, "the benchmark").plain()
        write_text(folder / "config.yaml", yaml.safe_dump(settings))
        write_text(folder / "pretrain" / "history.jsonl", "".join(f"{line}\n" for line in lines))
        recipe = {"seed": seed, **settings["pretrain"]}
        StageRecord("pretrain", folder.name, recipe).write(folder / "pretrain" / "metrics.json", {"pretrain/loss": 2.0})
        for stage in ("knn", "linear"):
            figures = {f"{stage}/top1@{k}": 50.0 + k for k in range(8)}
            StageRecord(stage, folder.name, settings[stage]).write(folder / stage / "metrics.json", figures)


def bare(project: Path, uri: str) -> None:
    """Send the curves and nothing else."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    with open_store(uri, 10.0):
        client = MlflowClient(uri)
        experiment = client.create_experiment("bare")
        for path in sorted(project.glob("runs/*/pretrain/history.jsonl"))[:BARE_RUNS]:
            points = [point for batch, _ in new_points(path, Mark(), 0) for point in batch]
            metrics = [Metric(point.name, point.value, point.timestamp, point.step) for point in points]
            run = client.create_run(experiment).info.run_id
            for start in range(0, len(metrics), 1000):
                client.log_batch(run, metrics=metrics[start : start + 1000])


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that passed, and those that this process computed."""
    wall, computed = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - computed


def one_turn(project: Path, store: str) -> dict[str, tuple[float, float]]:
    """Time all three with new stores."""
    uris = {name: f"{store}-{name}.db" for name in ("ours", "bare")}
    for uri in uris.values():
        with open_store(uri, 10.0) as opened:  # the tables are made once a store, whoever uses it
            opened.runs("0", {"none": "such"})
    settings = TrackingSettings(uri=uris["ours"])
    return {
        "ours": timed(lambda: sync(project, settings)),
        "bare": timed(lambda: bare(project, uris["bare"])),
        "again": timed(lambda: sync(project, settings)),
    }


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--points", type=int, default=10_000, help="values in a run's history")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "bench"
        make(project, args.runs, args.points)
        turns = [one_turn(project, f"sqlite:///{folder}/{turn}") for turn in range(args.repeats + 1)]
    # the first turn warms up
    seconds = {
        name: tuple(statistics.median(turn[name][part] for turn in turns[1:]) for part in range(2)) for name in turns[0]
    }
    figures = {
        "seconds": {name: wall for name, (wall, _) in seconds.items()},
        "computing_seconds": {name: computed for name, (_, computed) in seconds.items()},
        "ours_over_bare": seconds["ours"][1] / args.runs / (seconds["bare"][1] / min(args.runs, BARE_RUNS)),
        "again_over_ours": seconds["again"][1] / seconds["ours"][1],
        "points_per_computing_second": args.runs * args.points / seconds["ours"][1],
        "runs": args.runs,
        "points": args.points,
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

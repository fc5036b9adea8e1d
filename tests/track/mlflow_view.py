"""What a user sees of a project in MLflow."""

from __future__ import annotations

from typing import Any

from made_results import Results
from mlflow import MlflowClient
from mlflow.entities import Run


def client(results: Results) -> MlflowClient:
    return MlflowClient(f"sqlite:///{results.folder / 'mlflow.db'}")


def shown_runs(results: Results, api: MlflowClient | None = None) -> dict[str, Run]:
    api = api or client(results)
    found = api.search_runs([api.get_experiment_by_name("demo").experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert len(runs) == len(found), "a run is there twice"
    return runs


def curve(results: Results, run: str, metric: str) -> list[tuple[int, float]]:
    return points_of(client(results), shown_runs(results)[run], metric)


def points_of(api: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in api.get_metric_history(run.info.run_id, metric)]


def picture(results: Results, api: MlflowClient | None = None) -> dict[str, Any]:
    """All that a user sees, without what MLflow makes up (ids, times of its own)."""
    api = api or client(results)
    runs = shown_runs(results, api)
    names = {run.info.run_id: name for name, run in runs.items()}
    return {
        name: {
            "params": run.data.params,
            "metrics": {key: points_of(api, run, key) for key in run.data.metrics},
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
            "files": sorted(file.path for file in api.list_artifacts(run.info.run_id)),
            "tags": {key: value for key, value in run.data.tags.items() if key.startswith("flsl.")},
        }
        for name, run in runs.items()
    }

"""A server shows what SQLite shows."""

from __future__ import annotations

import pytest
from made_results import Results
from mlflow import MlflowClient
from mlflow_view import picture

from flsl.config.experiment import TrackingSettings
from flsl.track.sync import sync


@pytest.mark.slow
def test_a_server_shows_what_sqlite_shows(results: Results, server: str) -> None:
    sync(results.folder)
    patient = TrackingSettings(uri=server, timeout=30.0)
    done = sync(results.folder, patient)
    assert (done.runs, done.stages) == (3, 9)
    results.history("base", range(21, 25))
    assert sync(results.folder, patient).points == 4 * 6
    assert sync(results.folder, patient).unchanged == 3
    sync(results.folder)
    assert picture(results, MlflowClient(server)) == picture(results)

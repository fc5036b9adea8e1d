"""A store that is down, slow or locked is one line, and never in the way."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_results import Results, experiment

from flsl.cli import main
from flsl.config.experiment import TrackingSettings
from flsl.runtime.errors import UserError
from flsl.track.history import Point
from flsl.track.store import Store, TrackingError, open_store, shown
from flsl.track.sync import recorded_settings, sync


def run_sync(results: Results, *options: str) -> int:
    return main(["track", "sync", "--project-folder", str(results.folder), "--timeout=1", *options])


@pytest.mark.parametrize("kind", ["dead", "silent", "failing", "locked", "kind", "folder", "no address"])
def test_a_store_that_does_not_answer_is_one_line(
    kind: str,
    results: Results,
    silent_port: int,
    dead_port: int,
    failing_port: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uris = {
        "dead": (f"http://me:secret@127.0.0.1:{dead_port}", "refused"),
        "silent": (f"http://127.0.0.1:{silent_port}", "does not answer within 1 s"),
        "failing": (f"http://me:secret@127.0.0.1:{failing_port}", "answers with HTTP error 500"),
        "locked": (f"sqlite:///{results.folder}/mlflow.db", "keeps the database locked"),
        "kind": ("ftp://host/x", "tracking.uri: 'ftp://host/x'"),
        "folder": (f"sqlite:///{results.folder}/none/mlflow.db", "no folder"),
        "no address": ("http://me:secret@[::1:5000", "tracking.uri: 'http://…@[::1:5000' is no address"),
    }
    uri, says = uris[kind]
    with sqlite3.connect(results.folder / "mlflow.db", isolation_level=None) as database:
        if kind == "locked":
            database.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        assert run_sync(results, f"--uri={uri}") == 2
        error = capsys.readouterr().err
        assert run_sync(results, f"--uri={uri}", "--best-effort") == 0
        assert time.monotonic() - start < 30  # MLflow alone asks for minutes
    line = error.splitlines()[-1]
    assert line.startswith("flsl: error: ")
    assert says in line
    assert "secret" not in error
    warning = capsys.readouterr().err
    assert "MLflow does not show the newest results" in warning
    assert "Traceback" not in error + warning
    database.close()


@pytest.mark.parametrize("where", ["own", "another"])
@pytest.mark.parametrize("what", ["no database", "malformed", "old"])
def test_a_store_that_is_of_no_use_says_what_to_do(
    where: str, what: str, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.folder = results.folder.rename(tmp_path / "my results")
    path = (results.folder if where == "own" else tmp_path) / "mlflow.db"
    if where == "another":
        (results.folder / "mlflow.db").rename(path)
    if what == "no database":
        path.write_bytes(b"a log" * 1000)
    elif what == "malformed":
        path.write_bytes(path.read_bytes()[:8192] + b"x" * 50_000)
    else:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    uri = f"sqlite:///{path}"
    assert run_sync(results, f"--uri={uri}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"flsl: error: {uri}: the database is ")
    assert (f"`mlflow db upgrade {shlex.quote(uri)}`" in error) == (what == "old")
    # a store elsewhere may hold what no file of this project does
    assert (f"remove '{path}': the next `flsl track sync` makes it again" in error) == (where == "own")


def test_the_command_that_is_told_can_be_pasted(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.folder = results.folder.rename(tmp_path / "my results")
    assert run_sync(results) == 0
    told = capsys.readouterr().out.split("`")[1]
    uri = f"sqlite:///{results.folder}/mlflow.db"
    assert shlex.split(told) == ["mlflow", "ui", "--backend-store-uri", uri, "--port", "5000"]


@pytest.mark.slow
def test_a_database_that_is_locked_later_is_one_line(results: Results) -> None:
    uri = f"sqlite:///{results.folder}/mlflow.db"
    with open_store(uri, 1.0) as store, sqlite3.connect(results.folder / "mlflow.db", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        # MLflow's own patience with SQLite is 20 s
        with pytest.raises(TrackingError, match="another program keeps the database locked"):
            store.experiment("other", {})
    database.close()


def test_a_limit_stops_and_the_next_sync_goes_on(results: Results) -> None:
    with pytest.raises(TrackingError, match="not done within 0 s"):
        sync(results.folder, within=0.0)
    assert sync(results.folder).runs == 3


def test_the_projects_own_config_says_where_to(
    tmp_path: Path, dead_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path, experiment(tracking={"uri": f"http://127.0.0.1:{dead_port}", "timeout": 1.0}))
    results.pretrained("base")
    assert run_sync(results) == 2
    assert f"http://127.0.0.1:{dead_port}: cannot be reached" in capsys.readouterr().err
    assert recorded_settings(results.folder) == results.experiment.tracking
    assert recorded_settings(tmp_path) == TrackingSettings()


def test_bad_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        sync(tmp_path / "none")
    with pytest.raises(UserError, match="holds no runs"):
        sync(tmp_path)
    assert main(["track", "sync"]) == 2


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host:1/db") == "postgresql://…@host:1/db"
    assert shown("http://me:se@cret@host/a@b") == "http://…@host/a@b"
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"
    # what MLflow says of a connection that broke has the address in it, and may be cut in the middle of it
    uri = f"http://me:{'secret' * 50}@host:5000"

    def break_off(max_results: int) -> None:
        raise OSError(f"API request to {uri}/api failed")

    with pytest.raises(TrackingError) as refused:
        Store(SimpleNamespace(search_experiments=break_off), uri, 1.0).reach()
    assert "secret" not in str(refused.value)


def written(database: Path, by_client: bool, points: list[Point]) -> tuple[list[tuple[object, ...]], dict[str, float]]:
    """Send ``points`` in two parts, the first of them twice; return all rows, and the latest values."""
    uri = f"sqlite:///{database}"
    with open_store(uri, 10.0) as store:
        run = store.create(store.experiment("e", {}), "run", 0, {})
        for part in (points[:300], points[:300], points[300:]):
            if by_client:
                store.log(run.run_id, part)
            else:
                store.curves(run.run_id, part, {"sent": "yes"})
        (seen,) = store.runs(store.experiment("e", {}), {} if by_client else {"sent": "yes"})
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT key, value, timestamp, step, is_nan FROM metrics ORDER BY 1, 4, 3, 2")
        return [tuple(row) for row in rows], seen.metrics


@pytest.mark.parametrize("table", ["known", "another"])
def test_points_that_are_written_straight_are_what_mlflow_would_write(
    tmp_path: Path, empty_store: Path, table: str
) -> None:
    odd = {5: float("inf"), 6: -float("inf"), 7: float("nan"), 8: -0.0, 9: 1e-300}
    points = [
        Point(f"train/{key}", odd.get(n, n / 7), 1000 + n // 2, n // 2 if key == "b" else n)
        for n in range(400)
        for key in "ab"
    ]
    stores = [tmp_path / "bulk.db", tmp_path / "client.db"]
    for path in stores:
        shutil.copy(empty_store, path)
        if table == "another":
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("ALTER TABLE metrics ADD COLUMN later INTEGER")
    straight, by_client = (written(path, place == 1, points) for place, path in enumerate(stores))
    assert straight == by_client
    assert len(straight[0]) == 800

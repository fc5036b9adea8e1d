"""An MLflow tracking store, asked with bounded patience; every refusal becomes one line.

This module imports mlflow (in the functions), so that it belongs in the processes that do nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import re
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import without_secrets
from flsl.track.bulk import insert
from flsl.track.history import Point
from flsl.track.moved import ARTIFACTS, bring_home

Result = TypeVar("Result")
_SQL = ("sqlite", "postgresql", "mysql", "mssql")
_LONGEST_BATCH = 900  # MLflow takes 1000 metrics and 100 params or tags a call
_FEW = 90
_PAGE = 1000


class TrackingError(UserError):
    """The tracking store is down, slow, locked, or refuses; the files are not concerned."""


@dataclass
class Seen:
    """A run as it stands in the store."""

    run_id: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    status: str
    start: int
    end: int | None


def default_uri(project_folder: Path) -> str:
    """Return ``MLFLOW_TRACKING_URI`` where it is set, else SQLite in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_folder.resolve() / 'mlflow.db'}"


def shown(text: str) -> str:
    """Return a store's address, or what is told of it, without a password."""
    return without_secrets(text, "…@")


class Store:
    """The calls that are needed of MLflow, each of which raises :class:`TrackingError` and nothing else.

    Args:
        client: an ``MlflowClient``.
        uri: its address.
        timeout: seconds that a server has for an answer.
        within: seconds for all calls together; ``None`` sets no limit.
        own: the file, where the store is a project's own and can be made again from the project's files.
    """

    def __init__(
        self, client: Any, uri: str, timeout: float, within: float | None = None, own: Path | None = None
    ) -> None:
        self._client, self._uri, self._timeout, self._within, self._own = client, uri, timeout, within, own
        self._started = time.monotonic()

    def reach(self) -> None:
        """Ask for something small, so that a store that does not answer is found out."""
        self._call(self._client.search_experiments, max_results=1)

    def experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """Return the id of the experiment ``name``, made or restored where it is not there."""
        found = self._call(self._client.get_experiment_by_name, name)
        if found is None:
            artifacts = _artifacts(self._uri)
            about = {**tags, "mlflow.experimentKind": "custom_model_development"}  # which of MLflow's views suits it
            return str(self._call(self._client.create_experiment, name, artifacts, about))
        if found.lifecycle_stage == "deleted":
            self._call(self._client.restore_experiment, found.experiment_id)
        for key, value in tags.items():
            if found.tags.get(key) != value:
                self.tag_experiment(str(found.experiment_id), key, value)
        return str(found.experiment_id)

    def tag_experiment(self, experiment: str, key: str, value: str) -> None:
        """Set a tag of an experiment."""
        self._call(self._client.set_experiment_tag, experiment, key, value)

    def runs(self, experiment: str, tags: Mapping[str, str]) -> list[Seen]:
        """Return the experiment's runs that are not deleted and carry ``tags``."""
        query = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())
        found: list[Seen] = []
        token = None
        while True:
            page = self._call(
                self._client.search_runs, [experiment], query, max_results=_PAGE, page_token=token
            )  # eager: one query for tags, params and latest metrics each
            found += [
                Seen(
                    run.info.run_id,
                    dict(run.data.tags),
                    dict(run.data.params),
                    dict(run.data.metrics),
                    run.info.status,
                    run.info.start_time,
                    run.info.end_time,
                )
                for run in page
            ]
            token = page.token
            if not token:
                # some databases do not tell capitals from small letters
                return [run for run in found if tags.items() <= run.tags.items()]

    def create(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> Seen:
        """Make a run that began at ``start`` (milliseconds since 1970)."""
        run = self._call(
            self._client.create_run, experiment, start_time=start, tags=dict(list(tags.items())[:_FEW]), run_name=name
        )
        return Seen(run.info.run_id, dict(run.data.tags), {}, {}, "RUNNING", start, None)

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send metrics, params and, with the last of them, tags; as many calls as MLflow's limits ask for."""
        from mlflow.entities import Metric, Param, RunTag

        # the newest first: MLflow then writes a curve's latest value once a call, not once a point
        metrics = [Metric(point.name, point.value, point.timestamp, point.step) for point in reversed(points)]
        pairs = [Param(key, value) for key, value in (params or {}).items()]
        labels = [RunTag(key, value) for key, value in (tags or {}).items()]
        while True:
            now, metrics = metrics[:_LONGEST_BATCH], metrics[_LONGEST_BATCH:]
            some, pairs = pairs[:_FEW], pairs[_FEW:]
            # the tags say what has arrived: they come last
            last, labels = ([], labels) if metrics or pairs else (labels[:_FEW], labels[_FEW:])
            if not (now or some or last):
                return
            self._call(self._client.log_batch, run_id, metrics=now, params=some, tags=last)

    def curves(self, run_id: str, points: Sequence[Point], tags: Mapping[str, str]) -> None:
        """Send points of curves and, with the last of them, tags; much faster than :meth:`log` where it is SQLite."""
        if self._uri.startswith("sqlite:"):
            points = self._call(insert, _sqlite_path(self._uri), run_id, points, self._timeout)
        self.log(run_id, points, tags=tags)

    def latest(self, run_id: str, metric: str) -> int:
        """Return the time of a metric's newest point, in milliseconds since 1970."""
        points = self._call(self._client.get_metric_history, run_id, metric)
        return max((int(point.timestamp) for point in points), default=0)

    def status(self, run_id: str, status: str, end: int | None) -> None:
        """Set a run's status, and its end where it has one."""
        if end is None:
            self._call(self._client.update_run, run_id, status=status)
        else:
            self._call(self._client.set_terminated, run_id, status=status, end_time=end)

    def delete(self, run_id: str, reason: str) -> None:
        """Move a run to MLflow's trash, from where it can be restored; the tag ``flsl.deleted`` says why."""
        self._call(self._client.set_tag, run_id, "flsl.deleted", reason)
        self._call(self._client.delete_run, run_id)

    def upload(self, run_id: str, path: Path, into: str | None = None) -> None:
        """Store a file with a run, below the folder ``into``."""
        self._call(self._client.log_artifact, run_id, str(path), into)

    def upload_text(self, run_id: str, name: str, text: str) -> None:
        """Store a text with a run, as the file ``name``."""
        self._call(self._client.log_text, run_id, text, name)

    def _call(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        if self._within is not None and time.monotonic() - self._started > self._within:
            raise TrackingError(
                f"{shown(self._uri)}: not done within {self._within:g} s; the next `flsl track sync` goes on from here"
            )
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise _refusal(self._uri, error, self._timeout, self._own) from error


@contextlib.contextmanager
def open_store(
    uri: str, timeout: float, within: float | None = None, at_once: bool = False, project_folder: Path | None = None
) -> Iterator[Store]:
    """Connect to a tracking store.

    Args:
        uri: as in MLflow: ``sqlite:///…``, ``http(s)://…``, another database, ``databricks``.
        timeout: seconds after which a server that does not answer is left alone.
        within: seconds for all that is asked of it together.
        at_once: whether SQLite may wait until the end before it makes sure that the disk has everything: some times
            faster, and a power cut meanwhile can spoil the store, which is then removed and made again from the files.
        project_folder: where the project lies now; SQLite in it may have been moved with it.

    Raises:
        TrackingError: when there is no such store, or it does not answer.
    """
    try:
        scheme = urlsplit(uri).scheme.split("+")[0]
    except ValueError as error:
        raise TrackingError(f"tracking.uri: '{shown(uri)}' is no address ({error})") from None
    if scheme not in (*_SQL, "", "file", "http", "https", "databricks"):
        raise TrackingError(
            f"tracking.uri: '{shown(uri)}' is of a kind that MLflow does not know; write sqlite:///FILE, http://HOST:PORT,"
            " https://…, postgresql://…, mysql://… or databricks"
        )
    path = _sqlite_path(uri).resolve() if scheme == "sqlite" else None
    own = path if path is not None and path.parent == project_folder else None
    if scheme == "sqlite":
        _check_sqlite(uri, timeout, own)
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(timeout)),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # a view of local files has nobody to report its use to, least of all from a compute node
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
    }
    with _environment(settings), _young_garbage(), _one_flush(uri) if at_once else contextlib.nullcontext():
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise TrackingError(f"mlflow is not installed ({error}); `pip install flsl[workflow]` brings it") from error
        # each refusal reaches the user once, as our line
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            client = MlflowClient(uri)
        except Exception as error:
            raise _refusal(uri, error, timeout, own) from error
        yield Store(client, uri, timeout, within, own)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


@contextlib.contextmanager
def _one_flush(uri: str) -> Iterator[None]:
    """Have SQLite flush its files to the disk once, at the end, and not several times a call."""
    if not uri.startswith("sqlite:"):
        yield
        return
    try:
        from sqlalchemy import Engine, event
    except ImportError:  # without mlflow, which is said elsewhere
        yield
        return

    def relax(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "checkout", relax)
    try:
        yield
    finally:
        event.remove(Engine, "checkout", relax)
        with contextlib.suppress(OSError), _sqlite_path(uri).open("rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def _young_garbage() -> Iterator[None]:
    """Collect garbage seldom: SQLAlchemy makes hundreds of thousands of short-lived objects, and a third of the time
    would go into looking through them.
    """
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def _sqlite_path(uri: str) -> Path:
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))


def _check_sqlite(uri: str, timeout: float, own: Path | None) -> None:
    """Find out within ``timeout`` whether the database can be written; MLflow itself would try for minutes.

    The project's own is told where it lies.
    """
    path = _sqlite_path(uri)
    if path == Path() or not path.parent.is_dir():
        raise TrackingError(f"tracking.uri: '{uri}': no folder {path.parent}; write sqlite:///FILE with a folder there")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=timeout, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
        if own is not None:
            bring_home(own, timeout)
    except sqlite3.Error as error:
        raise _refusal(uri, error, timeout, own) from error


def _artifacts(uri: str) -> str | None:
    """Return where artifacts go: beside a SQLite database; anywhere else the server knows."""
    if not uri.startswith("sqlite:"):
        return None
    return (_sqlite_path(uri).resolve().parent / ARTIFACTS).as_uri()


def _refusal(uri: str, error: BaseException, timeout: float, own: Path | None) -> TrackingError:
    """Say in a line why the store refused, and what to do where that is known."""
    text = str(error)
    again = f"remove {shlex.quote(str(own))}: the next `flsl track sync` makes it again from the files" if own else ""
    if "file is not a database" in text or "database disk image is malformed" in text:
        return TrackingError(f"{shown(uri)}: the database is damaged" + f"; {again}" * bool(own))
    if "out-of-date database schema" in text:
        upgrade = f"copy it, then `mlflow db upgrade {shlex.quote(shown(uri))}`" + f"; or {again}" * bool(own)
        return TrackingError(f"{shown(uri)}: the database is of another version of MLflow; {upgrade}")
    return TrackingError(f"{shown(uri)}: {_reason(error, timeout)}")


def _reason(error: BaseException, timeout: float) -> str:
    """Say in a few words why the store refused."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(shown(str(error)).split())
    names = {type(link).__name__ for link in chain}
    if "database is locked" in text:
        return "another program keeps the database locked; try again when it is done"
    if names & {"ReadTimeoutError", "ConnectTimeoutError", "ReadTimeout", "ConnectTimeout", "TimeoutError"}:
        return f"does not answer within {timeout:g} s"
    if "ConnectionRefusedError" in names:
        return "cannot be reached: the connection is refused; is the server started?"
    if names & {"gaierror", "NameResolutionError"}:
        return "cannot be reached: there is no host of that name"
    if failed := re.search(r"too many (\d+) error responses", text):
        return f"answers with HTTP error {failed[1]}; its own log says why"
    if isinstance(error, ModuleNotFoundError):
        return f"the database's driver is not installed ({error})"
    return text[:200] or type(error).__name__

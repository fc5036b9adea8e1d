"""Sending a stage's curves while it runs: ``flsl track follow``, which :func:`flsl.track.start_following` starts."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from flsl.config.experiment import TrackingSettings
from flsl.runtime.errors import UserError, require_folder
from flsl.runtime.progress import say, warn
from flsl.runtime.results import CONFIG, HISTORY, PRETRAIN, RECORD, Run, read_config, read_stage
from flsl.track.lock import BusyError, sending
from flsl.track.mirror import Mirror, Place, now
from flsl.track.start import in_project
from flsl.track.store import default_uri, open_store, shown

_TICK = 0.25
_LONGEST_WAIT = 60.0


def follow(stage_dir: Path, project: str, run: str, parent_pid: int, settings: TrackingSettings) -> None:
    """Send new points every ``settings.live_seconds`` until the stage is complete or the process ``parent_pid`` ends.

    A store that does not answer is tried again, less and less often. A last look sends what is left, the figures
    included where the stage is complete; where its process ended before, the run is marked as killed.

    Raises:
        UserError: when there is no such folder.
    """
    stage_dir = require_folder(stage_dir, "a stage's results").resolve()
    folder = stage_dir.parents[2] if in_project(stage_dir) else stage_dir
    uri = settings.uri or default_uri(folder)
    look = _Look(stage_dir, Place(project, folder), run, uri, settings)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):
        # a cluster's warnings to a job are for the training
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(10)
    alive = _watch(parent_pid)
    before = _stamp(stage_dir / RECORD)
    wait = settings.live_seconds
    said = ""
    while True:
        complete = _stamp(stage_dir / RECORD) not in (None, before)
        over = complete or bool(stopped) or not alive()
        try:
            look.once(over)
            wait, said = settings.live_seconds, ""
        except BusyError:
            pass  # the other process sends these points, too
        except UserError as error:
            if str(error) != said:
                said = str(error)
                warn(f"curves are not sent: {error}")
            wait = min(2 * wait, _LONGEST_WAIT)
        if over:
            look.close()
            return
        end = time.monotonic() + wait
        while time.monotonic() < end and alive() and not stopped and _stamp(stage_dir / RECORD) in (None, before):
            time.sleep(_TICK)


class _Look:
    """One stage and the store that it is sent to, opened once there is something to send."""

    def __init__(self, stage_dir: Path, place: Place, run: str, uri: str, settings: TrackingSettings) -> None:
        self._stage_dir, self._place, self._run, self._uri, self._settings = stage_dir, place, run, uri, settings
        self._open = contextlib.ExitStack()
        self._begun = now()
        self._mirror: Mirror | None = None
        self._sent: object = None

    def once(self, last: bool) -> None:
        """Send what is new; ``last`` tells that the stage's process is done with it."""
        files = [_stamp(self._stage_dir / name) for name in (HISTORY, RECORD)]
        if files == [None, None] or (files == self._sent and not last):
            return
        # elsewhere than in a project, a stage's folder is all there is of a run
        inside = in_project(self._stage_dir)
        home = self._stage_dir.parent if inside else self._stage_dir
        stage = read_stage(self._stage_dir, None if inside else PRETRAIN)
        run = Run(self._run, home, read_config(home / CONFIG, []), {stage.name: stage})
        try:
            with sending(self._place.folder, self._settings.timeout if last else 1.0):
                if self._mirror is None:
                    store = self._open.enter_context(
                        open_store(self._uri, self._settings.timeout, project_folder=self._place.folder)
                    )
                    name = self._settings.experiment or self._place.project
                    self._experiment = store.experiment(name, {"flsl.project": self._place.project})
                    self._store = store
                    self._mirror = Mirror(store, self._experiment, self._place, self._settings, self._begun)
                    say(f"sending the curves of {self._stage_dir} to {shown(self._uri)}")
                seen = self._store.runs(self._experiment, {"flsl.project": self._place.project, "flsl.run": self._run})
                self._mirror.run(run, seen, whole=False, state="KILLED" if last else "RUNNING")
        except UserError:
            self.close()
            raise
        self._sent = files

    def close(self) -> None:
        """Let go of the store."""
        self._open.close()
        self._mirror = None


def _watch(pid: int) -> Callable[[], bool]:
    """Return a function that tells whether the process ``pid`` is alive.

    Its own parent's number changes when that dies, whatever becomes of the number; of another process only the number
    can be asked for.
    """
    if os.getppid() == pid:
        return lambda: os.getppid() == pid

    def exists() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    return exists


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns

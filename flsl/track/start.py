"""Starting the process that sends the curves of a stage while it runs; nothing here imports mlflow."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from flsl.config.experiment import Experiment
from flsl.runtime.errors import Stopped
from flsl.runtime.progress import say, warn

LOG = "tracking.log"


class Following:
    """The process that sends curves, or none."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process

    @property
    def pid(self) -> int | None:
        """Its number, while there is one to speak of."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """Ask it to send what is left and to end; returns at once.

        It ends by itself when the stage is complete or its process is gone.
        """
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.terminate()


def start_following(stage_dir: Path | str, experiment: Experiment, head: bool = False) -> Following:
    """Send the curves of ``stage_dir/history.jsonl`` to MLflow while this process goes on.

    A process of its own does it: a server that is slow or down costs this one nothing. Its warnings are in
    ``stage_dir/tracking.log``. To be called by one rank only. Never fails, never waits.

    Args:
        stage_dir: the stage's folder, as a rule ``results/<project>/runs/<run>/pretrain``. In another place, curves
            are sent only where a tracking server is named by ``tracking.uri`` or ``MLFLOW_TRACKING_URI``.
        experiment: its ``tracking`` says where to and whether at all.
        head: whether this process is on the machine that syncs the project. Within a SLURM job it is not, and then
            only a server is sent to: SQLite must not be written from several nodes.
    """
    try:
        return _start(Path(stage_dir).resolve(), experiment, head)
    except Stopped:
        raise  # a signal to the process that called
    except Exception as error:
        warn(f"curves are not sent to MLflow while training: {error}")
        return Following()


def in_project(stage_dir: Path) -> bool:
    """Tell whether a stage's folder lies in a project's: ``<project>/runs/<run>/<stage>``."""
    return len(stage_dir.parents) > 2 and stage_dir.parents[1].name == "runs"


def _start(stage_dir: Path, experiment: Experiment, head: bool) -> Following:
    tracking = experiment.tracking
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking.live or not (uri or in_project(stage_dir)):
        return Following()
    if not head and "SLURM_JOB_ID" in os.environ and (not uri or uri.startswith("sqlite:")):
        say("curves are sent to MLflow by `flsl track sync` afterwards: SQLite is not written from a cluster's nodes")
        return Following()
    if importlib.util.find_spec("mlflow") is None:
        say("mlflow is not installed here: curves are sent by `flsl track sync` afterwards")
        return Following()
    stage_dir.mkdir(parents=True, exist_ok=True)
    run = stage_dir.parent.name if in_project(stage_dir) else stage_dir.name
    command = [sys.executable, "-m", "flsl", "track", "follow", str(stage_dir)]
    command += ["--project", experiment.project, "--run", run, "--parent-pid", str(os.getpid())]
    command += [f"--timeout={tracking.timeout}", f"--every={tracking.live_seconds}"]
    command += [f"--artifact-mb={tracking.artifact_mb}"]
    if tracking.experiment:
        command += [f"--experiment={tracking.experiment}"]
    # the address may hold a password, which other users must not see in the list of processes
    environment = {**os.environ, **({"MLFLOW_TRACKING_URI": uri} if uri else {})}
    # its own session: Ctrl-C and a closing terminal are for the training; and no pipe of ours, whose reader would wait
    with (stage_dir / LOG).open("ab") as log:
        return Following(
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        )

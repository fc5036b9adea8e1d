"""Curves arrive while a stage runs, and cost it nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import Results, experiment
from mlflow_view import curve, shown_runs
from processes import alive, wait_for

from flsl.runtime.errors import Stopped
from flsl.track import start_following
from flsl.track.sync import sync


def test_curves_arrive_while_a_stage_runs_and_figures_at_its_end(tmp_path: Path, empty_store: Path) -> None:
    results = Results(tmp_path, experiment(tracking={"live_seconds": 0.2}))
    shutil.copy(empty_store, results.folder / "mlflow.db")
    results.config("base")
    history = results.history("base", range(1, 4))
    stage = history.parent
    following = start_following(stage, results.experiment)
    log = stage / "tracking.log"
    wait_for(lambda: "sending the curves" in log.read_text())

    def steps() -> list[int]:
        return [step for step, _ in curve(results, "base/pretrain", "train/loss")]

    wait_for(lambda: "base/pretrain" in shown_runs(results) and steps() == [1, 2, 3])
    assert shown_runs(results)["base"].data.params["pretrain.epochs"] == "300"
    assert shown_runs(results)["base"].info.status == "RUNNING"
    results.history("base", range(4, 7))
    wait_for(lambda: steps() == [1, 2, 3, 4, 5, 6])
    # a resumed run writes steps again
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:4]))
    results.history("base", range(5, 9), again=1)
    # a sync in between sends them, too, and neither sends them twice
    sync(results.folder)
    wait_for(lambda: steps() == list(range(1, 9)))
    results.pretrained("base")
    wait_for(lambda: not alive(following.pid))
    runs = shown_runs(results)
    assert runs["base"].data.metrics["pretrain/loss"] == 1.5
    assert (runs["base"].info.status, runs["base/pretrain"].info.status) == ("FINISHED", "FINISHED")
    assert steps() == list(range(1, 9))
    live = {name: run.info.run_id for name, run in runs.items()}
    assert sync(results.folder).points == 0
    assert {name: run.info.run_id for name, run in shown_runs(results).items()} == live


def test_following_ends_with_the_process_that_trains(tmp_path: Path, empty_store: Path) -> None:
    results = Results(tmp_path)
    shutil.copy(empty_store, results.folder / "mlflow.db")
    results.config("base")
    stage = results.history("base", range(1, 4)).parent
    code = (
        "import os, sys; from flsl.track import start_following; from flsl.config.loading import load_experiment\n"
        "pid = start_following(sys.argv[1], load_experiment(sys.argv[2])).pid\n"
        "print(pid, *(os.readlink(f'/proc/{pid}/fd/{stream}') for stream in (0, 1, 2)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(stage), str(stage.parent / "config.yaml")],
        capture_output=True,
        text=True,
        check=True,
    )
    pid, *streams = done.stdout.split()
    # whoever reads the training's output waits for no follower
    assert streams == ["/dev/null", str(stage / "tracking.log"), str(stage / "tracking.log")]
    wait_for(lambda: not alive(int(pid)))
    runs = shown_runs(results)
    assert runs["base/pretrain"].info.status == "KILLED"
    assert len(curve(results, "base/pretrain", "train/loss")) == 3


def test_a_stage_elsewhere_is_followed_and_stays(results: Results) -> None:
    sync(results.folder)
    stage = results.folder.parent / "elsewhere"
    shutil.copytree(results.folder / "runs" / "base" / "pretrain", stage)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    command = [sys.executable, "-m", "flsl", "track", "follow", str(stage), "--project=demo", "--run=mine"]
    command += [f"--parent-pid={process.pid}", f"--uri=sqlite:///{results.folder}/mlflow.db"]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    assert len(curve(results, "mine/pretrain", "train/loss")) == 20
    assert shown_runs(results)["mine"].data.params == shown_runs(results)["base"].data.params
    assert sync(results.folder).removed == 0
    assert "mine/pretrain" in shown_runs(results)


def test_a_silent_server_costs_the_training_nothing(tmp_path: Path, silent_port: int) -> None:
    settings = experiment(tracking={"uri": f"http://127.0.0.1:{silent_port}", "timeout": 1.0})
    stage = Results(tmp_path, settings).history("base", range(1, 4)).parent
    following = start_following(stage, settings)
    wait_for(lambda: "does not answer within 1 s" in (stage / "tracking.log").read_text())
    following.stop()
    wait_for(lambda: not alive(following.pid))
    assert "Traceback" not in (stage / "tracking.log").read_text()


def test_nobody_waits_for_the_process_that_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # it does not end when it is asked to
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\necho deaf\nwhile :; do sleep 1; done\n")
    deaf.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(deaf))
    monkeypatch.setattr(subprocess.Popen, "wait", None)
    settings = experiment()
    stage = Results(tmp_path, settings).history("base", range(1, 4)).parent
    following = start_following(stage, settings)
    try:
        wait_for(lambda: (stage / "tracking.log").read_text() == "deaf\n")
        following.stop()
        assert alive(following.pid)
    finally:
        os.killpg(following.pid, signal.SIGKILL)  # type: ignore[arg-type]


def test_following_that_is_not_wanted_or_not_possible_is_none(tmp_path: Path) -> None:
    off = start_following(tmp_path / "demo/runs/base/pretrain", experiment(tracking={"live": False}))
    elsewhere = start_following(tmp_path / "anywhere", experiment())
    (tmp_path / "file").touch()
    impossible = start_following(tmp_path / "file/runs/base/pretrain", experiment())
    for following in (off, elsewhere, impossible):
        assert following.pid is None
        following.stop()


def test_no_mlflow_is_imported_for_training() -> None:
    code = "import sys, flsl.track, flsl.cli; flsl.cli.build_parser(); print({'mlflow', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_signal_that_comes_while_it_starts_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise Stopped("interrupted", 2)

    monkeypatch.setattr("flsl.track.start._start", interrupted)
    with pytest.raises(Stopped):
        start_following(tmp_path / "demo/runs/base/pretrain", experiment())

"""MLflow is a view of the files: the same after any order of syncs, and never in the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import KNN, LINEAR, Results, demo, experiment
from mlflow import MlflowClient
from mlflow.entities import Run

from flsl.cli import main
from flsl.config.experiment import TrackingSettings
from flsl.runtime.errors import UserError
from flsl.runtime.results import flat
from flsl.track import start_following
from flsl.track.history import Mark, new_points
from flsl.track.lock import BusyError, sending
from flsl.track.names import curve_name, is_curve, mlflow_name, mlflow_params
from flsl.track.store import TrackingError, open_store, shown
from flsl.track.sync import recorded_settings, sync


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised SQLite store: making its tables takes seconds, copying it nothing."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with open_store(f"sqlite:///{path}", 10.0) as store:
        store.runs("0", {"none": "such"})
    return path


@pytest.fixture
def results(tmp_path: Path, empty_store: Path) -> Results:
    made = demo(tmp_path)
    shutil.copy(empty_store, made.folder / "mlflow.db")
    return made


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


# names


def test_names_of_the_protocols_are_spelled_readably() -> None:
    assert mlflow_name("knn/top1@20") == "knn/top1_at_20"
    assert mlflow_name("davis/J&F-Mean") == "davis/J_and_F-Mean"
    assert mlflow_name("uavdt/AP@0.7") == "uavdt/AP_at_0.7"
    assert mlflow_name("coco/bbox/AP") == "coco/bbox/AP"


@given(st.text(max_size=400))
def test_every_name_is_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_length_limit, _validate_metric_name

    _validate_metric_name(mlflow_name(name))
    _validate_length_limit("Metric name", 250, mlflow_name(name))
    assert mlflow_name(mlflow_name(name)) == mlflow_name(name)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_curves_are_told_from_figures_by_their_names(kind: str, key: str) -> None:
    assert is_curve(curve_name(kind, key))
    assert not is_curve(mlflow_name("pretrain/loss"))


def test_curves_of_the_machine_are_system_metrics() -> None:
    assert curve_name("step", "loss") == "train/loss"
    assert curve_name("epoch", "online_knn") == "epoch/online_knn"
    assert curve_name("step", "images_per_second") == "system/images_per_second"
    assert curve_name("step", "gpu_memory_mb") == "system/gpu_memory_mb"


def test_params_are_flat_and_long_values_stay_different() -> None:
    settings = {"views": {"scale": [0.8, 1.0], "blur": True}, "name": "vit", "width": None, "long": "x" * 600}
    assert flat({"a": {"b": {"c": 1}, "d": [2]}}) == {"a.b.c": 1, "a.d": [2]}
    params = mlflow_params(settings)
    assert params["views.scale"] == "[0.8, 1.0]"
    assert params["views.blur"] == "true"
    assert params["name"] == "vit"
    assert params["width"] == "null"
    assert len(params["long"]) == 500
    assert params["long"] != mlflow_params({"long": "x" * 601})["long"]


# curves


def test_a_growing_history_is_read_once_and_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lines = [json.dumps({"kind": "step", "step": n, "loss": n / 7, "time": 1.7e9 + n}) + "\n" for n in range(40)]
    text = "".join(lines).encode()
    mark, found = Mark(), []
    for end in range(0, len(text) + 1, 97):
        path.write_bytes(text[:end])
        assert mark.holds(path)
        batches = list(new_points(path, mark, 0))
        found += [point for points, _ in batches for point in points]
        mark = batches[-1][1] if batches else mark
    path.write_bytes(text)
    found += [point for points, mark in new_points(path, mark, 0) for point in points]
    assert [(point.step, point.value, point.timestamp) for point in found] == [
        (n, n / 7, (1_700_000_000 + n) * 1000) for n in range(40)
    ]


def test_a_history_that_was_cut_back_and_grew_again_is_another(results: Results) -> None:
    path = results.history("base", range(21, 41))
    *_, (_, mark) = new_points(path, Mark(), 0)
    assert Mark.parse(str(mark)) == mark
    assert mark.holds(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:30]))
    assert not mark.holds(path)
    results.history("base", range(28, 60), again=1)
    assert path.stat().st_size > mark.offset
    assert not mark.holds(path)


def test_odd_lines_do_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2, "note": "x", "ok": true}\nnonsense\n[1]\n{"loss": 1}\n{"step": 2, "loss": NaN}\n'
    )
    points = [point for batch, _ in new_points(path, Mark(), 5000) for point in batch]
    assert [(point.name, point.step, point.timestamp) for point in points] == [
        ("train/loss", 1, 5001),
        ("train/loss", 2, 5002),
    ]


def test_batches_fit_mlflow_and_cover_all(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps({"step": n, **{f"k{k}": n for k in range(7)}}) + "\n" for n in range(1000)))
    batches = [points for points, _ in new_points(path, Mark(), 0)]
    assert max(map(len, batches)) <= 1000
    assert len({(point.name, point.step) for batch in batches for point in batch}) == 7000


# the view


def test_the_table_has_a_row_a_run_with_settings_and_all_figures(results: Results) -> None:
    sync(results.folder)
    runs = shown_runs(results)
    parents = {name: run for name, run in runs.items() if "mlflow.parentRunId" not in run.data.tags}
    assert sorted(parents) == ["base", "untrained", "wide"]
    base = parents["base"].data
    assert base.params["pretrain.prototypes"] == "4096"
    assert parents["wide"].data.params["pretrain.prototypes"] == "8192"
    assert base.params["pretrain.views.teacher_scale"] == "[0.8, 1.0]"
    assert all(name == "seed" or name.startswith("pretrain.") for name in base.params)
    expected = {"pretrain/loss": 1.5, "pretrain/images_per_second": 800.0, **KNN, **LINEAR}
    assert base.metrics == {name.replace("@", "_at_"): value for name, value in expected.items()}
    assert parents["untrained"].data.tags["flsl.kind"] == "baseline"
    assert parents["untrained"].data.params["baseline.kind"] == "random"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    table = client(results).search_runs(
        [parents["base"].info.experiment_id], "tags.`flsl.kind` = 'run' and metrics.`knn/top1_at_20` > 53"
    )
    assert [run.info.run_name for run in table] == ["wide"]


def test_each_stage_is_a_child_with_settings_curves_and_files(results: Results) -> None:
    folder = results.folder / "runs" / "base" / "knn"
    (folder / "table.md").write_text("| a |")
    (folder / "features.npy").write_text("not for the view")
    sync(results.folder)
    runs = shown_runs(results)
    knn, pretrain = runs["base/knn"], runs["base/pretrain"]
    for child in (knn, pretrain):
        assert child.data.tags["mlflow.parentRunId"] == runs["base"].info.run_id
        assert child.data.tags["flsl.host"] == "node7"
        assert child.data.tags["flsl.device"] == "cuda: NVIDIA H100"
    assert knn.data.params == {"knn.k": "[10, 20]", "knn.temperature": "0.07"}
    assert pretrain.data.params == runs["base"].data.params
    assert knn.info.end_time - knn.info.start_time == 12_500
    assert curve(results, "base/pretrain", "train/loss") == [(n, 8 - 0.01 * n) for n in range(1, 21)]
    assert curve(results, "base/pretrain", "epoch/online_knn") == [(10, 41.0), (20, 42.0)]
    assert curve(results, "base/pretrain", "system/images_per_second")[0] == (1, 800.0)
    api = client(results)
    files = {name: {file.path for file in api.list_artifacts(runs[name].info.run_id)} for name in runs}
    assert files["base/knn"] == {"metrics.json", "table.md", "environment.txt"}
    assert files["base/pretrain"] == {"metrics.json", "backbone.safetensors", "environment.txt"}
    assert files["base"] == {"config.yaml"}
    copy = api.download_artifacts(knn.info.run_id, "environment.txt")
    assert Path(copy).read_text() == "python==3.12.1\ntorch==2.6.0\n"
    assert (results.folder / "mlartifacts").is_dir()


def test_a_second_sync_changes_nothing(results: Results) -> None:
    first = sync(results.folder)
    assert (first.runs, first.stages, first.unchanged) == (3, 9, 0)
    ids = {name: run.info.run_id for name, run in shown_runs(results).items()}
    before = picture(results)
    again = sync(results.folder)
    assert (again.runs, again.unchanged, again.points) == (0, 3, 0)
    # files with other times and equal content are looked at, and nothing is sent for them
    for path in results.folder.glob("runs/*/*/metrics.json"):
        os.utime(path)
    touched = sync(results.folder)
    assert (touched.runs, touched.points, touched.replaced) == (3, 0, 0)
    assert {name: run.info.run_id for name, run in shown_runs(results).items()} == ids
    after = picture(results)
    for one in (*before.values(), *after.values()):
        for tag in ("flsl.files", "flsl.artifacts"):
            one["tags"].pop(tag, None)
    assert after == before


def test_only_new_points_are_sent(results: Results) -> None:
    sync(results.folder)
    run_id = shown_runs(results)["base/pretrain"].info.run_id
    results.history("base", range(21, 25))
    assert sync(results.folder).points == 4 * 6
    assert shown_runs(results)["base/pretrain"].info.run_id == run_id
    assert [step for step, _ in curve(results, "base/pretrain", "train/loss")] == list(range(1, 25))


def test_a_resumed_run_shows_no_point_twice(results: Results) -> None:
    sync(results.folder)
    path = results.folder / "runs" / "base" / "pretrain" / "history.jsonl"
    kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= 12]
    path.write_text("".join(kept))
    results.history("base", range(13, 31), again=1)
    assert sync(results.folder).replaced == 1
    points = client(results).get_metric_history(shown_runs(results)["base/pretrain"].info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, 31))
    assert points[11].timestamp + 3_600_000 < points[12].timestamp


def test_a_stage_that_ran_again_updates_its_figures(results: Results) -> None:
    sync(results.folder)
    ids = {name: run.info.run_id for name, run in shown_runs(results).items()}
    results.stage("base", "knn", {**KNN, "knn/top1@20": 40.0})
    sync(results.folder)
    runs = shown_runs(results)
    assert runs["base"].data.metrics["knn/top1_at_20"] == 40.0
    assert runs["base/knn"].data.metrics["knn/top1_at_20"] == 40.0
    assert {name: run.info.run_id for name, run in runs.items()} == ids


def test_a_figure_that_is_gone_is_not_shown(results: Results) -> None:
    sync(results.folder)
    results.stage("base", "knn", {"knn/top1@20": 52.5})
    sync(results.folder)
    runs = shown_runs(results)
    assert "knn/top1_at_10" not in runs["base"].data.metrics
    assert "linear/top1" in runs["base"].data.metrics
    assert {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name.startswith("base/")} == {
        runs["base"].info.run_id
    }


def test_a_run_with_other_settings_takes_the_old_ones_place(results: Results) -> None:
    sync(results.folder)
    old = shown_runs(results)["base"].info.run_id
    other = Results(results.folder.parent / "other", experiment(runs={"base": {"pretrain.epochs": 7}}))
    shutil.copytree(other.pretrained("base", range(1, 4)).parents[1], results.folder / "runs/base", dirs_exist_ok=True)
    sync(results.folder)
    runs = shown_runs(results)
    assert runs["base"].data.params["pretrain.epochs"] == "7"
    assert runs["base/pretrain"].data.params["pretrain.epochs"] == "7"
    assert runs["base/knn"].data.tags["mlflow.parentRunId"] == runs["base"].info.run_id
    gone = client(results).get_run(old)
    assert gone.info.lifecycle_stage == "deleted"
    assert gone.data.tags["flsl.deleted"] == "its settings changed"


def test_what_is_gone_from_the_folder_goes_from_the_view_and_nothing_else(results: Results) -> None:
    sync(results.folder)
    api = client(results)
    own = api.create_run(shown_runs(results)["base"].info.experiment_id, run_name="the user's own")
    shutil.rmtree(results.folder / "runs" / "wide")
    shutil.rmtree(results.folder / "runs" / "base" / "linear")
    sync(results.folder)
    runs = shown_runs(results)
    assert set(runs) == {
        *("base", "base/pretrain", "base/knn"),
        *("untrained", "untrained/pretrain", "untrained/knn", "untrained/linear"),
        own.info.run_name,
    }
    assert "linear/top1" not in runs["base"].data.metrics


def test_the_status_tells_how_far_a_run_is(results: Results) -> None:
    results.config("next")
    sync(results.folder)
    assert shown_runs(results)["next"].info.status == "SCHEDULED"
    results.history("next", range(1, 3))
    sync(results.folder)
    assert {shown_runs(results)[name].info.status for name in ("next", "next/pretrain")} == {"RUNNING"}
    results.pretrained("next")
    sync(results.folder)
    assert {shown_runs(results)[name].info.status for name in ("next", "next/pretrain")} == {"FINISHED"}


def test_doubles_are_mended(results: Results) -> None:
    sync(results.folder)
    api = client(results)
    base = shown_runs(results)["base"]
    tags = {key: value for key, value in base.data.tags.items() if key.startswith("flsl.")}
    api.create_run(base.info.experiment_id, run_name="base", tags=tags)
    sync(results.folder)
    assert shown_runs(results)["base"].data.metrics["linear/top1"] == 61.25


def test_a_broken_file_is_named_and_hides_no_other(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    sync(results.folder)
    (results.folder / "runs/base/knn/metrics.json").write_text('{"metrics": ')
    results.stage("base", "linear", {**LINEAR, "linear/top1": 77.0})
    sync(results.folder)
    assert "runs/base/knn/metrics.json: not valid JSON" in " ".join(capsys.readouterr().err.split())
    base = shown_runs(results)["base"].data.metrics
    assert base["linear/top1"] == 77.0
    assert base["knn/top1_at_20"] == 52.5
    assert "base/knn" in shown_runs(results)


def test_large_files_stay_out(results: Results) -> None:
    sync(results.folder, settings=TrackingSettings(artifact_mb=0.000001))
    run = shown_runs(results)["base/pretrain"].info.run_id
    assert [file.path for file in client(results).list_artifacts(run)] == ["environment.txt", "metrics.json"]


def test_a_project_is_rebuilt_from_its_files(results: Results, empty_store: Path) -> None:
    sync(results.folder)
    results.history("base", range(21, 30))
    results.stage("base", "knn", {**KNN, "knn/top1@20": 40.0})
    sync(results.folder)
    grown = picture(results)
    # another process, as this one holds the old store open
    for path in results.folder.glob("ml*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    subprocess.run(
        [sys.executable, "-m", "flsl", "track", "sync", "--project-folder", str(results.folder)],
        check=True,
        capture_output=True,
    )
    shutil.copy(results.folder / "mlflow.db", results.folder / "rebuilt.db")
    rebuilt = Results.__new__(Results)
    rebuilt.folder = results.folder / "rebuilt"
    rebuilt.folder.mkdir()
    shutil.copy(results.folder / "mlflow.db", rebuilt.folder / "mlflow.db")
    new = picture(rebuilt)
    # a figure that changed keeps its earlier value as an earlier point in the grown store
    for one in ("base", "base/knn"):
        assert grown[one]["metrics"]["knn/top1_at_20"] == [(0, 52.5), (0, 40.0)]
        assert new[one]["metrics"]["knn/top1_at_20"] == [(0, 40.0)]
        del grown[one]["metrics"]["knn/top1_at_20"], new[one]["metrics"]["knn/top1_at_20"]
    assert new == grown


def test_two_processes_do_not_send_at_once(results: Results) -> None:
    with sending(results.folder, 0.0), pytest.raises(BusyError, match="another process"), sending(results.folder, 0.1):
        pass
    with sending(results.folder, 0.0):
        pass


# a store that does not answer


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.fixture
def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def run_sync(results: Results, *options: str) -> int:
    return main(["track", "sync", "--project-folder", str(results.folder), "--timeout=1", *options])


@pytest.mark.parametrize("kind", ["dead", "silent", "locked", "kind", "folder"])
def test_a_store_that_does_not_answer_is_one_line(
    kind: str, results: Results, silent_port: int, dead_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    uris = {
        "dead": (f"http://me:secret@127.0.0.1:{dead_port}", "refused"),
        "silent": (f"http://127.0.0.1:{silent_port}", "does not answer within 1 s"),
        "locked": (f"sqlite:///{results.folder}/mlflow.db", "keeps the database locked"),
        "kind": ("ftp://host/x", "tracking.uri: 'ftp://host/x'"),
        "folder": (f"sqlite:///{results.folder}/none/mlflow.db", "no folder"),
    }
    uri, says = uris[kind]
    with sqlite3.connect(results.folder / "mlflow.db", isolation_level=None) as database:
        if kind == "locked":
            database.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        assert run_sync(results, f"--uri={uri}") == 2
        error = capsys.readouterr().err
        assert run_sync(results, f"--uri={uri}", "--best-effort") == 0
        assert time.monotonic() - start < 8
    line = error.splitlines()[-1]
    assert line.startswith("flsl: error: ")
    assert says in line
    assert "secret" not in error
    warning = capsys.readouterr().err
    assert "MLflow does not show the newest results" in warning
    assert "Traceback" not in error + warning
    database.close()


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
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_no_mlflow_is_imported_for_training() -> None:
    code = "import sys, flsl.track, flsl.cli; flsl.cli.build_parser(); print({'mlflow', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# live


def wait_for(condition: Any, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def alive(pid: int | None) -> bool:
    assert pid is not None
    status = Path(f"/proc/{pid}/status")
    return status.exists() and not re.search(r"^State:\s+Z", status.read_text(), re.MULTILINE)


def test_curves_arrive_while_a_stage_runs_and_figures_at_its_end(tmp_path: Path, empty_store: Path) -> None:
    results = Results(tmp_path, experiment(tracking={"live_seconds": 0.2}))
    shutil.copy(empty_store, results.folder / "mlflow.db")
    results.config("base")
    history = results.history("base", range(1, 4))
    stage = history.parent
    start = time.monotonic()
    following = start_following(stage, results.experiment)
    assert time.monotonic() - start < 1.0
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
        "import sys; from flsl.track import start_following; from flsl.config.loading import load_experiment;"
        "print(start_following(sys.argv[1], load_experiment(sys.argv[2])).pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(stage), str(stage.parent / "config.yaml")],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,  # whoever reads the training's output waits for no follower
    )
    wait_for(lambda: not alive(int(done.stdout)))
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
    start = time.monotonic()
    following = start_following(stage, settings)
    assert time.monotonic() - start < 1.0
    wait_for(lambda: "does not answer within 1 s" in (stage / "tracking.log").read_text())
    start = time.monotonic()
    following.stop()
    assert time.monotonic() - start < 0.1
    wait_for(lambda: not alive(following.pid), 10)
    assert "Traceback" not in (stage / "tracking.log").read_text()


def test_following_that_is_not_wanted_or_not_possible_is_none(tmp_path: Path) -> None:
    off = start_following(tmp_path / "demo/runs/base/pretrain", experiment(tracking={"live": False}))
    elsewhere = start_following(tmp_path / "anywhere", experiment())
    (tmp_path / "file").touch()
    impossible = start_following(tmp_path / "file/runs/base/pretrain", experiment())
    for following in (off, elsewhere, impossible):
        assert following.pid is None
        following.stop()


# a real server


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[str]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/files"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_for(answers, 60)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait()


@pytest.mark.slow
def test_a_server_shows_what_sqlite_shows(results: Results, server: str) -> None:
    sync(results.folder)
    patient = TrackingSettings(timeout=30.0)
    done = sync(results.folder, server, patient)
    assert (done.runs, done.stages) == (3, 9)
    results.history("base", range(21, 25))
    assert sync(results.folder, server, patient).points == 4 * 6
    assert sync(results.folder, server, patient).unchanged == 3
    sync(results.folder)
    assert picture(results, MlflowClient(server)) == picture(results)

"""MLflow is a view of the files: the same after any order of syncs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import KNN, LINEAR, Results, experiment
from mlflow_view import client, curve, picture, shown_runs

from flsl.config.experiment import TrackingSettings
from flsl.runtime.planned import PLANNED, Planned
from flsl.runtime.results import read_project
from flsl.track.lock import BusyError, sending
from flsl.track.sync import sync
from flsl.track.table import table_view


def in_another_process(results: Results) -> None:
    command = [sys.executable, "-m", "flsl", "track", "sync", "--project-folder", str(results.folder)]
    subprocess.run(command, check=True, capture_output=True)


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


def test_the_load_of_the_machine_is_a_stages_system_metrics(results: Results) -> None:
    stage = results.folder / "runs" / "base" / "knn"
    monitored = [
        {"kind": "system", "step": n, "process_cpu_cores": 1.5, "gpu_0_power_usage_watts": n} for n in range(3)
    ]
    (stage / "system.jsonl").write_text("".join(json.dumps(line) + "\n" for line in monitored))
    sync(results.folder)
    assert curve(results, "base/knn", "system/process_cpu_cores") == [(0, 1.5), (1, 1.5), (2, 1.5)]
    assert curve(results, "base/knn", "system/gpu_0_power_usage_watts") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    # the stage ran again
    (stage / "system.jsonl").write_text(json.dumps({**monitored[0], "process_cpu_cores": 2.0}) + "\n")
    sync(results.folder)
    assert curve(results, "base/knn", "system/process_cpu_cores") == [(0, 2.0)]


def test_sheets_of_videos_and_the_lock_of_packages_are_stored(results: Results) -> None:
    results.stage("base", "davis", {"davis/J&F-Mean": 60.0})
    stage = results.folder / "runs" / "base" / "davis"
    (stage / "sheets").mkdir()
    (stage / "sheets" / "dog.jpg").write_bytes(b"jpeg")
    (stage / "masks.jpg").write_bytes(b"jpeg")
    (stage / "requirements.lock").write_text("torch==2.6.0\n")
    sync(results.folder)
    run = shown_runs(results)["base/davis"].info.run_id
    api = client(results)
    files = {file.path for file in api.list_artifacts(run)}
    assert files == {"metrics.json", "masks.jpg", "requirements.lock", "sheets"}
    assert [file.path for file in api.list_artifacts(run, "sheets")] == ["sheets/dog.jpg"]


def test_a_view_of_the_table_shows_what_differs_and_the_figures(results: Results) -> None:
    experiment_id = sync(results.folder).experiment
    tags = client(results).get_experiment(experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.flsl"])
    assert view["name"] == "Settings and figures"
    columns = json.loads(view["state"])["selectedColumns"]
    shown = ["params.`pretrain.prototypes`", "metrics.`knn/top1_at_20`", "metrics.`linear/top1`"]
    assert columns[:3] == shown
    assert set(columns[3:]) == {f"metrics.`{name}`" for name in ("knn/top1_at_10", "knn/top5_at_20", "linear/top5")}
    data = shown_runs(results)["base"].data
    known = {f"params.`{name}`" for name in data.params} | {f"metrics.`{name}`" for name in data.metrics}
    assert set(columns) <= known
    results.stage("base", "davis", {"davis/J&F-Mean": 60.0})
    sync(results.folder)
    tags = client(results).get_experiment(experiment_id).tags
    assert "metrics.`davis/J_and_F-Mean`" in tags["mlflow.sharedViewState.flsl"]


def test_a_view_of_many_figures_fits_into_a_tag(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.pretrained("base")
    results.stage("base", "uavdt", {f"uavdt/{'long' * 30}/{n}": 1.0 for n in range(200)})
    text = table_view(read_project(results.folder))
    assert len(text) <= 5000
    assert len(json.loads(json.loads(text)["state"])["selectedColumns"]) > 5


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
    # the config has lost it
    planned = Planned(["base", "wide"], ["untrained"], [])
    (results.folder / PLANNED).write_text(json.dumps(planned.plain()))
    sync(results.folder)
    assert shown_runs(results)["next"].info.status == "KILLED"
    (results.folder / PLANNED).unlink()
    sync(results.folder)
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
    in_another_process(results)
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


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_a_project_that_was_moved_keeps_its_files_in_mlflow(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_another_process(results)  # MLflow remembers for good where it stored files
    old, stored = results.folder, files_below(results.folder / "mlartifacts")
    ids = {name: run.info.run_id for name, run in shown_runs(results).items()}
    # a sign that addresses of files escape, and two that SQL takes for any other
    results.folder = tmp_path / "moved %_" / "demo"
    results.folder.parent.mkdir()
    old.rename(results.folder)
    # what was left behind is stored again
    (results.folder / "mlartifacts" / ids["base/knn"] / "artifacts" / "metrics.json").unlink()
    results.config("next")
    sent = sync(results.folder)
    assert (sent.replaced, sent.removed, sent.points) == (0, 0, 0)
    assert "sent from" not in capsys.readouterr().err
    runs = shown_runs(results)
    new = Path(runs["next"].info.run_id) / "artifacts" / "config.yaml"
    assert files_below(results.folder / "mlartifacts") == stored | {new}
    assert not old.exists()
    assert {name: run.info.run_id for name, run in runs.items() if name != "next"} == ids
    assert {run.data.tags["flsl.folder"] for run in runs.values()} == {str(results.folder)}
    for run in (ids["base"], runs["next"].info.run_id):
        assert Path(client(results).download_artifacts(run, "config.yaml")).is_file()
    assert sync(results.folder).unchanged == 4


def test_a_project_that_is_a_link_has_the_links_name(results: Results) -> None:
    # live following takes the name from the config: the two must go to one experiment
    disk = results.folder.rename(results.folder.parent / "disk7")
    results.folder.symlink_to(disk, target_is_directory=True)
    sync(results.folder)
    assert {run.data.tags["flsl.project"] for run in shown_runs(results).values()} == {"demo"}
    assert read_project(results.folder).name == "demo"


def test_two_processes_do_not_send_at_once(results: Results) -> None:
    with sending(results.folder, 0.0), pytest.raises(BusyError, match="another process"), sending(results.folder, 0.1):
        pass
    with sending(results.folder, 0.0):
        pass

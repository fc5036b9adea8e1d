"""Ablations in MLflow: runs that can be found by them, tables and figures beside the base."""

from __future__ import annotations

import shutil
from pathlib import Path

from made_results import Results, ablated
from mlflow_view import client, shown_runs

from flsl.cli import main
from flsl.config.experiment import TrackingSettings
from flsl.config.sweep import plan, record
from flsl.runtime.outputs import write_json
from flsl.track.follow import _Look
from flsl.track.mirror import Place
from flsl.track.store import default_uri
from flsl.track.sync import sync

ABLATIONS = {
    "wide": {"grid": {"pretrain.prototypes": [16, 4096]}},
    "vote": {"grid": {"knn.temperature": [0.05, 0.07]}},
}


def made(root: Path, empty_store: Path) -> Results:
    results = ablated(root, ABLATIONS)
    shutil.copy(empty_store, results.folder / "mlflow.db")
    return results


def members(results: Results, name: str) -> set[str]:
    experiment = client(results).get_experiment_by_name(results.folder.name)
    assert experiment is not None
    found = client(results).search_runs([experiment.experiment_id], f"tags.`flsl.ablations` LIKE '%,{name},%'")
    return {run.info.run_name for run in found}


def files(results: Results, run: str) -> set[str]:
    run_id = shown_runs(results)[run].info.run_id
    folders = [one for one in client(results).list_artifacts(run_id) if one.path == "ablations"]
    below = [one.path for folder in folders for one in client(results).list_artifacts(run_id, folder.path)]
    return {one.path for path in below for one in client(results).list_artifacts(run_id, path)}


def test_runs_are_found_by_their_ablation_and_figures_lie_with_the_base(tmp_path: Path, empty_store: Path) -> None:
    results = made(tmp_path, empty_store)
    assert main(["ablation", "table", "--project-folder", str(results.folder)]) == 0
    sync(results.folder)
    assert members(results, "wide") == {"base", "prototypes-16"}
    assert members(results, "vote") == {"base", "knn.temperature-0.05"}
    names = ("table.csv", "table.md", "figure.png")
    assert files(results, "base") == {f"ablations/{one}/{name}" for one in ABLATIONS for name in names}
    assert files(results, "prototypes-16") == set()
    # what a run changes of its evaluations is a param of it
    assert shown_runs(results)["knn.temperature-0.05"].data.params["knn.temperature"] == "0.05"


def test_another_sync_sends_only_what_changed(tmp_path: Path, empty_store: Path) -> None:
    results = made(tmp_path, empty_store)
    main(["ablation", "table", "--project-folder", str(results.folder)])
    sync(results.folder)
    assert sync(results.folder).unchanged == 3
    # a figure that is made anew is sent, and so is a membership that ends
    figure = results.folder / "ablations/wide/figure.png"
    figure.write_bytes(figure.read_bytes() + b" ")
    assert sync(results.folder).unchanged == 2
    less = results.experiment.model_copy(update={"ablations": {"vote": results.experiment.ablations["vote"]}})
    for path in (results.folder / "ablations/wide").iterdir():
        path.unlink()
    write_json(results.folder / "ablations/vote/ablation.json", record(plan(less), "vote"))
    sync(results.folder)
    assert members(results, "wide") == set()
    assert members(results, "vote") == {"base", "knn.temperature-0.05"}


def test_a_setting_of_an_evaluation_is_a_param_of_all_runs_once_one_varies_it(
    tmp_path: Path, empty_store: Path
) -> None:
    results = made(tmp_path, empty_store)
    varying = results.folder / "runs" / "knn.temperature-0.05"
    varying.rename(tmp_path / "later")
    sync(results.folder)
    ids = {name: run.info.run_id for name, run in shown_runs(results).items()}
    assert "knn.temperature" not in shown_runs(results)["base"].data.params
    (tmp_path / "later").rename(varying)

    def temperatures() -> dict[str, str]:
        runs = shown_runs(results)
        assert ids.items() <= {name: run.info.run_id for name, run in runs.items()}.items()
        return {name: run.data.params["knn.temperature"] for name, run in runs.items() if "/" not in name}

    sync(results.folder)
    expected = {"base": "0.07", "prototypes-16": "0.07", "knn.temperature-0.05": "0.05"}
    assert temperatures() == expected
    assert sync(results.folder).unchanged == 3
    # what follows a stage knows of its own run only
    base = results.folder / "runs" / "base" / "pretrain"
    about = (Place(results.folder.name, results.folder), "base", default_uri(results.folder), TrackingSettings())
    look = _Look(base, *about)
    look.once(last=True)
    look.close()
    assert temperatures() == expected
    shutil.rmtree(varying)
    sync(results.folder)
    assert temperatures() == {name: value for name, value in expected.items() if value == "0.07"}

"""Ablations in the DAG: what is shared, what a new point costs, what a failed point leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_workflow import changed, planned_of, snakemake

Config = dict[str, Any]
ONE = {"stages": ["knn"], "baselines": {}}
# what an ablation has besides its runs
TABLES = {"tabulate_ablation": 1, "track_ablation": 1}


def config(**ablations: Any) -> Config:
    return changed(**ONE, ablations=ablations)


def planned(place: Path, settings: Config, target: str = "ablation_a") -> dict[str, int]:
    """The jobs but the target itself."""
    counts = planned_of(snakemake(place, "--dry-run", target, config=settings))
    return {rule: count for rule, count in counts.items() if rule != target}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base run with its k-NN; tests must leave it as it is."""
    place = tmp_path_factory.mktemp("ablations")
    result = snakemake(place, "results/tiny/runs/base/knn/metrics.json", config=config())
    assert result.returncode == 0, result.stdout + result.stderr
    return place


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "copy"
    shutil.copytree(finished, place, symlinks=True)
    yield place
    shutil.rmtree(place)


def test_points_equal_to_the_base_cost_nothing_and_seeds_are_runs(finished: Path) -> None:
    # 8 prototypes are the base's
    grid = {"grid": {"pretrain.prototypes": [8, 16, 5]}}
    assert planned(finished, config(a=grid)) == {"pretrain": 2, "features": 2, "knn": 2, **TABLES}
    assert planned(finished, config(a=grid | {"seeds": [0, 1]})) == {"pretrain": 5, "features": 5, "knn": 5, **TABLES}


def test_runs_are_shared_by_ablations_and_with_the_entries_of_runs(finished: Path) -> None:
    ablations = {"a": {"grid": {"pretrain.prototypes": [8, 16]}}, "b": {"points": [{"pretrain.prototypes": 16}, {}]}}
    both = {"pretrain": 1, "features": 1, "knn": 1, "tabulate_ablation": 2, "track_ablation": 2}
    assert planned(finished, config(**ablations), "all_ablations") == both
    named = config(**ablations) | {"runs": {"base": {}, "wide": {"pretrain.prototypes": 16}}}
    assert planned(finished, named, "all_ablations") == both


def test_points_that_differ_in_evaluation_only_do_not_pay_for_the_pretraining(finished: Path) -> None:
    vote = {"grid": {"knn.temperature": [0.07, 0.1, 0.2]}}
    assert planned(finished, config(a=vote)) == {"share_pretrain": 2, "share_features": 2, "knn": 2, **TABLES}
    # linear probes do not depend on it: one for all three
    assert planned(finished, config(a=vote | {"stages": ["knn", "linear"]})) == {
        **{"share_pretrain": 2, "share_features": 2, "share_linear": 2, "knn": 2, "linear": 1},
        **TABLES,
    }


def test_an_ablation_has_its_own_stages_only(finished: Path) -> None:
    settings = config(a={"grid": {"pretrain.prototypes": [8, 16]}}) | {"stages": ["knn", "linear", "aligned_knn"]}
    settings["ablations"]["a"]["stages"] = ["knn"]
    assert planned(finished, settings) == {"pretrain": 1, "features": 1, "knn": 1, **TABLES}


def test_the_untrained_encoder_is_there_to_compare_with(finished: Path) -> None:
    settings = config(a={"grid": {"pretrain.prototypes": [8, 16]}}) | {"baselines": {"untrained": {"kind": "random"}}}
    assert planned(finished, settings) == {"pretrain": 1, "baseline": 1, "features": 2, "knn": 2, **TABLES}


def test_an_ablation_of_runs_that_are_there_reaches_summary_and_mlflow(finished: Path) -> None:
    settings = config(new={"stages": ["knn"], "points": [{}]})
    plan = planned_of(snakemake(finished, "--dry-run", config=settings))
    assert {"tabulate_ablation", "summary", "track"} <= plan.keys()
    assert "pretrain" not in plan


def test_all_makes_the_ablations_of_the_config(finished: Path) -> None:
    counts = planned(finished, config(a={"grid": {"pretrain.prototypes": [8, 16]}}), "all")
    assert counts["tabulate_ablation"] == 1
    assert counts["pretrain"] == 1
    assert "track_ablation" not in counts


def test_a_failed_point_stops_no_other_and_is_shown_with_its_log(copied: Path) -> None:
    points: Config = {"points": {"fine": {}, "broken": {"pretrain.batch_size": 5000}, "vote": {"knn.temperature": 0.2}}}
    base = copied / "results/tiny/runs/base"
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*.json")}
    result = snakemake(copied, "--keep-going", "ablation_a", config=config(a=points))
    assert result.returncode != 0
    assert "results/tiny/logs/batch_size-5000/pretrain.log" in result.stdout + result.stderr
    folder = copied / "results/tiny/ablations/a"
    table = pd.read_csv(folder / "table.csv").set_index("point")
    assert table["missing"].dropna().to_dict() == {"broken": "batch_size-5000: knn"}
    record = json.loads((base / "knn/metrics.json").read_text())
    assert table.loc["fine", "knn/top1@3 mean"] == record["metrics"]["knn/top1@3"]
    text = (folder / "table.md").read_text()
    assert "pretrain.batch_size: 5000 is more than the 24 training images" in text
    assert "logs/batch_size-5000/pretrain.log" in text
    assert (folder / "figure.png").stat().st_size
    # the shared stages are the base's, under the run's name
    shared = copied / "results/tiny/runs/knn.temperature-0.2/pretrain"
    assert (shared / "backbone.safetensors").samefile(base / "pretrain/backbone.safetensors")
    record = json.loads((shared / "metrics.json").read_text())
    assert (record["run"], record["shared_from"]) == ("knn.temperature-0.2", "base")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (copied / "results/tiny/mlflow.db").exists()

    # with the point mended, only that and the table are made
    mended = {"points": points["points"] | {"broken": {"pretrain.batch_size": 4}}}
    assert planned(copied, config(a=mended)) == {"pretrain": 1, "features": 1, "knn": 1, **TABLES}
    result = snakemake(copied, "ablation_a", config=config(a=mended))
    assert result.returncode == 0, result.stdout + result.stderr
    assert pd.read_csv(folder / "table.csv")["missing"].isna().all()
    assert planned(copied, config(a=mended)) == {}

    # a further point, in front of the others and in another order, costs that point
    more = {"new": {"pretrain.prototypes": 16}, **dict(reversed(mended["points"].items()))}
    assert planned(copied, config(a={"points": more})) == {"pretrain": 1, "features": 1, "knn": 1, **TABLES}
    # a point less costs the table
    less = {name: changes for name, changes in mended["points"].items() if name != "broken"}
    assert planned(copied, config(a={"points": less})) == TABLES


def test_mistakes_are_told_before_anything_runs(tmp_path: Path) -> None:
    result = snakemake(tmp_path, config=config(a={"grid": {"pretrain.prototyps": [1, 2]}}))
    assert result.returncode == 1
    assert "ablations.a.grid: pretrain.prototyps: unknown setting (did you mean 'prototypes'?)" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()
    result = snakemake(tmp_path, "-n", "ablation_b", config=config(a={"seeds": [1]}))
    assert result.returncode != 0
    assert "ablation_b" in result.stdout + result.stderr

"""Ablation tables: means and deviations against a plain computation, marks, and what is missing with its log."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_results import Results, ablated, table_of

from flsl.cli import main
from flsl.report.ablations import page
from flsl.report.run_page import run_page
from flsl.report.state import missing
from flsl.report.summary import summary
from flsl.report.tables import load_results
from flsl.runtime.ablations import log_tail
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import write_text
from flsl.runtime.results import read_project


def write(results: Results, *names: str) -> Path:
    assert main(["ablation", "table", *names, "--project-folder", str(results.folder)]) == 0
    return results.folder / "ablations"


def cells(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if not set(row[0]) <= set(":-")]


GRID = {"grid": {"pretrain.prototypes": [1024, 4096, 8192]}, "seeds": [0, 1, 2]}


def test_means_and_deviations_are_those_of_the_seeds(tmp_path: Path) -> None:
    results = ablated(tmp_path, {"a": GRID})
    table = pd.read_csv(write(results) / "a/table.csv").set_index("pretrain.prototypes")
    for prototypes, runs in {
        1024: ["prototypes-1024", "prototypes-1024_seed-1", "prototypes-1024_seed-2"],
        4096: ["base", "seed-1", "seed-2"],
        8192: ["prototypes-8192", "prototypes-8192_seed-1", "prototypes-8192_seed-2"],
    }.items():
        for metric in ("knn/top1@20", "linear/top1"):
            stage = metric.split("/")[0]
            values = [
                json.loads((results.folder / f"runs/{run}/{stage}/metrics.json").read_text())["metrics"][metric]
                for run in runs
            ]
            mean = sum(values) / 3
            assert table.loc[prototypes, f"{metric} mean"] == pytest.approx(mean)
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
            assert table.loc[prototypes, f"{metric} std"] == pytest.approx(spread)
            assert table.loc[prototypes, f"{metric} n"] == 3
    assert list(table["base"]) == [False, True, False]
    assert table["missing"].isna().all()
    for metric in ("knn/top1@20", "linear/top1"):
        assert table[f"{metric} best"].sum() == 1
        assert table[f"{metric} best"].idxmax() == table[f"{metric} mean"].idxmax()
    # the tidy frame says the same
    tidy = load_results(results.folder, ablation="a")
    grouped = tidy[tidy["metric"] == "knn/top1@20"].groupby("pretrain.prototypes")["value"].agg(["mean", "std"])
    assert np.allclose(grouped["mean"], table["knn/top1@20 mean"])
    assert np.allclose(grouped["std"], table["knn/top1@20 std"])


def test_the_page_marks_base_and_best_and_names_no_chance_as_none(tmp_path: Path) -> None:
    results = ablated(
        tmp_path, {"a": {"grid": {"pretrain.prototypes": [16, 4096]}, "stages": ["knn"], "caption": "K."}}
    )
    for run, value in (("base", 60.0), ("prototypes-16", 41.5)):
        results.stage(run, "knn", {"knn/top1@20": value}, results.experiment.knn.plain())
    results.baseline()
    results.stage("untrained", "knn", {"knn/top1@20": 26.0})
    text = (write(results) / "a/table.md").read_text()
    assert cells(text) == [
        ["`prototypes`", "k-NN top-1 (k = 20)"],
        ["16", "41.50"],
        ["4096 (base)", "**60.00**"],
        ["untrained (baseline)", "26.00"],
    ]
    assert "K." in text
    assert "Each point has one seed, so that small differences may be chance." in text
    assert "![a](figure.png)" in text
    assert "Nothing: 2 points, all with every figure." in text
    assert "What is stale" not in text
    whole = (results.folder / "ablations/a/table.html").read_text()
    assert "<strong>60.00</strong>" in whole
    assert '<img src="data:image/png;base64,' in whole
    assert "figure.png" not in whole


def test_points_evaluated_with_other_ks_have_figures_of_their_own(tmp_path: Path) -> None:
    results = ablated(tmp_path, {"a": {"grid": {"knn.k": [[1], [3], [5]]}, "stages": ["knn"]}})
    for run, k in (("knn.k-1", 1), ("knn.k-3", 3), ("knn.k-5", 5)):
        results.stage(run, "knn", {f"knn/top1@{k}": 10.0 * k}, {"k": [k]})
    text = (write(results) / "a/table.md").read_text()
    assert cells(text)[:4] == [
        ["`knn.k`", "k-NN top-1 (k = 1)", "k-NN top-1 (k = 3)", "k-NN top-1 (k = 5)"],
        ["[1]", "10.00", "—", "—"],
        ["[3]", "—", "30.00", "—"],
        ["[5]", "—", "—", "50.00"],
    ]
    assert "missing |" not in text
    assert "Nothing: 3 points, all with every figure." in text
    ran = {row[0]: row[2] for row in cells(summary(read_project(results.folder))) if len(row) > 3 and row[1] == "0"}
    assert ran == {"`base`": "", **{f"`knn.k-{k}`": f"`knn.k` = [{k}]" for k in (1, 3, 5)}}


def test_figures_of_other_settings_than_planned_are_told_as_stale(tmp_path: Path) -> None:
    results = ablated(tmp_path, {"a": {"grid": {"pretrain.prototypes": [16, 4096]}, "stages": ["knn"]}})
    path = results.folder / "runs/prototypes-16/pretrain/metrics.json"
    record = json.loads(path.read_text())
    record["params"]["epochs"] = 7
    path.write_text(json.dumps(record))
    text = (write(results) / "a/table.md").read_text()
    assert "- `prototypes-16`, pretrain: setting `epochs` 7 → 300" in text


def test_points_that_another_config_has_made_again_are_told_as_not_alike(tmp_path: Path) -> None:
    grid = {"pretrain.query_sampling": ["random", "first"], "pretrain.tau_ca": [0.2, {"start": 0.1, "end": 0.2}]}
    results = ablated(tmp_path, {"a": {"grid": grid, "seeds": [0, 1], "stages": ["knn"]}}, baselines={})
    text = (write(results) / "a/table.md").read_text()
    assert "What is stale" not in text
    # the base, with the base's config, which has no ablation
    for section, setting, value in (("pretrain", "epochs", 400), ("knn", "temperature", 0.1)):
        for run in ("base", "seed-1"):
            folder = results.folder / "runs" / run
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config[section][setting] = value
            write_text(folder / "config.yaml", yaml.safe_dump(config))
            record = json.loads((folder / section / "metrics.json").read_text())
            record["params"][setting] = value
            write_text(folder / section / "metrics.json", json.dumps(record))
    text = (write(results) / "a/table.md").read_text().split("## What is stale")[1]
    unlike = "unlike `base` in the ablation `a`: "
    assert f"- `query_sampling-first`, pretrain: {unlike}`pretrain.epochs` 300, there 400\n" in text
    assert f"- `query_sampling-first_seed-1`, knn: {unlike}`knn.temperature` 0.07, there 0.1\n" in text
    assert "- `base`" not in text
    assert "- `seed-1`" not in text
    project = read_project(results.folder)
    text = summary(project)
    assert "**Not current**: [12 stale results](#what-is-stale)" in text
    assert f": {unlike}`pretrain.epochs` 300, there 400" in text
    assert f"- pretrain: {unlike}`pretrain.epochs` 300, there 400\n" in run_page(project, "query_sampling-first")
    assert "**Stale**" not in run_page(project, "base")


def test_missing_points_and_seeds_are_marked_with_the_end_of_the_log(tmp_path: Path) -> None:
    lacking = ("prototypes-1024", "prototypes-1024_seed-1", "prototypes-1024_seed-2", "seed-2")
    results = ablated(tmp_path, {"a": {**GRID, "stages": ["knn"]}}, lacking)
    logs = results.folder / "logs"
    write_text(
        logs / "prototypes-1024/pretrain.log",
        "start\npretraining: 1/9\rpretraining: 2/9\n\x1b[31mflsl: error: pretrain.batch_size: too many\x1b[0m\n",
    )
    # pretrained, and then the k-NN failed
    results.stage("seed-2", "pretrain", {}, {})
    results.stage("seed-2", "features", {}, {})
    write_text(logs / "seed-2/pretrain.log", "all is well\n")
    write_text(logs / "seed-2/knn.log", "```\nMemoryError\n")
    folder = write(results)
    text = (folder / "a/table.md").read_text()
    rows = {row[0]: row for row in cells(text)}
    assert rows["1024"][-1] == "missing"
    assert "(2 of 3 seeds)" in rows["4096 (base)"][-1]
    two = [results_of(results, run) for run in ("base", "seed-1")]
    assert f"{statistics.fmean(two):.2f} ± {statistics.stdev(two):.2f}" in rows["4096 (base)"][-1]
    missing = text.split("## What is missing")[1]
    assert "- 1024, seed 0 (run `prototypes-1024`): no knn; the end of its log" in missing
    assert "  start\n  pretraining: 2/9\n  flsl: error: pretrain.batch_size: too many\n  ```\n" in missing
    assert "- 1024, seed 1 (run `prototypes-1024_seed-1`): no knn; not begun" in missing
    assert "logs/seed-2/knn.log`:\n\n  ````text\n  ```\n  MemoryError\n  ````" in missing
    table = pd.read_csv(folder / "a/table.csv")
    assert pd.isna(table["knn/top1@20 mean"][0])
    assert table["missing"][1] == "seed-2: knn"
    assert table["knn/top1@20 n"].tolist() == [0, 2, 3]


def results_of(results: Results, run: str) -> float:
    record = json.loads((results.folder / f"runs/{run}/knn/metrics.json").read_text())
    return float(record["metrics"]["knn/top1@20"])


def test_a_missing_shared_stage_names_the_log_of_the_run_that_makes_it(tmp_path: Path) -> None:
    whole = {"a": {"grid": {"knn.temperature": [0.05, 0.07]}, "stages": ["knn"]}}
    results = ablated(tmp_path, whole, ("base", "knn.temperature-0.05"))
    write_text(results.folder / "logs/base/pretrain.log", "no space\n")
    text = (write(results) / "a/table.md").read_text()
    assert text.count("logs/base/pretrain.log") == 2
    assert cells(text)[1:] == [["0.05", "missing"], ["0.07 (base)", "missing"]]


def test_an_ablation_of_which_nothing_has_run_has_a_table_that_says_so(tmp_path: Path) -> None:
    results = ablated(
        tmp_path, {"a": {"grid": {"pretrain.prototypes": [16, 32]}}}, ("base", "prototypes-16", "prototypes-32")
    )
    folder = write(results)
    text = (folder / "a/table.md").read_text()
    assert cells(text)[1:] == [["16", "missing"], ["32", "missing"]]
    assert "The experiment's own settings are not among the points." in text
    assert text.count("not begun") == 2
    assert (folder / "a/figure.png").stat().st_size


def test_the_tidy_frame_has_membership_and_the_values_of_varied_settings(tmp_path: Path) -> None:
    results = ablated(
        tmp_path,
        {"a": {"grid": {"knn.temperature": [0.05, 0.07]}}, "b": {"grid": {"pretrain.prototypes": [16, 4096]}}},
    )
    frame = load_results(results.folder).drop_duplicates("run").set_index("run")
    assert frame["ablations"].to_dict() == {"base": "a,b", "knn.temperature-0.05": "a", "prototypes-16": "b"}
    assert frame["knn.temperature"].to_dict() == {"base": 0.07, "knn.temperature-0.05": 0.05, "prototypes-16": 0.07}
    points = load_results(results.folder, ablation="b")
    assert set(points["run"]) == {"base", "prototypes-16"}
    assert points.groupby("point")["base"].first().to_dict() == {"16": False, "4096": True}
    assert not [name for name in points if name.startswith("pretrain.") and name != "pretrain.prototypes"]
    with pytest.raises(UserError, match=r"has no ablation 'c'.*it has a, b"):
        load_results(results.folder, ablation="c")


def test_a_schedule_is_one_value_of_the_tidy_frame(tmp_path: Path) -> None:
    schedule = {"start": 0.1, "end": 0.4}
    results = ablated(tmp_path, {"a": {"grid": {"pretrain.tau_ca": [0.2, schedule]}}})
    for ablation in (None, "a"):
        frame = load_results(results.folder, ablation).drop_duplicates("run").set_index("run")
        assert [name for name in frame if "tau_ca" in name] == ["pretrain.tau_ca"]
        values = frame["pretrain.tau_ca"].to_dict()
        assert values.pop("base") == 0.2
        assert [json.loads(value) for value in values.values()] == [schedule]


def test_the_summary_misses_only_a_points_own_stages(tmp_path: Path) -> None:
    ablation = {"grid": {"pretrain.prototypes": [16, 4096]}, "stages": ["knn"]}
    results = ablated(tmp_path, {"a": ablation}, baselines={})
    assert missing(read_project(results.folder)) == []
    (results.folder / "runs/prototypes-16/knn/metrics.json").unlink()
    assert missing(read_project(results.folder)) == ["- `prototypes-16`: knn"]


def test_the_command_works_from_a_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = ablated(tmp_path / "results", {"a": GRID, "b": {"seeds": [1]}})
    config = results.experiment.plain() | {"results": str(tmp_path / "results")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for path in results.folder.glob("ablations/*/*"):
        path.unlink()
    assert main(["ablation", "table", "a", "--config", str(tmp_path / "config.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("ablations/a/figure.png")
    assert len(pd.read_csv(results.folder / "ablations/a/table.csv")) == 3
    assert not (results.folder / "ablations/b/table.csv").exists()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = ablated(tmp_path, {"prototypes": GRID})
    folder = str(results.folder)
    for arguments, words in (
        (["table"], "--project-folder: say which project"),
        (["table", "--project-folder", folder, "prototype"], "no such ablation (did you mean 'prototypes'?)"),
        (["table", "--project-folder", str(tmp_path / "none")], "no such folder"),
        (["share", "--stage-folder", folder, "--name", "x", "--out", str(tmp_path / "x")], "no stage's folder"),
    ):
        assert main(["ablation", *arguments]) == 2
        assert words in re.sub(r"\s+", " ", capsys.readouterr().err)
    (results.folder / "ablations/prototypes/ablation.json").write_text('{"points": 3}')
    assert main(["ablation", "table", "--project-folder", folder]) == 2
    assert "is not an ablation's record" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_page_is_equal_for_equal_results(tmp_path: Path) -> None:
    results = ablated(tmp_path, {"a": GRID})
    project = read_project(results.folder)
    assert page(table_of(results), project) == page(table_of(results), project)
    folder = write(results)
    before = {path.name: path.read_bytes() for path in (folder / "a").iterdir()}
    write(results)
    assert {path.name: path.read_bytes() for path in (folder / "a").iterdir()} == before


def test_a_log_that_is_long_or_odd_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\n" * 50_000 + b"x" * 9000 + b"\n\n  \nlast\n")
    tail = log_tail(path)
    assert tail[-1] == "last"
    assert len(tail) == 5
    assert max(len(line) for line in tail) == 300
    assert log_tail(tmp_path / "none") == []

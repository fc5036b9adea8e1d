"""Tables: every figure of every run once, the right ones bold, and honest words about the gain."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_results import KNN, LINEAR, Results, demo, experiment

from flsl.cli import main
from flsl.report.summary import summary
from flsl.report.tables import best, load_results, more_is_better, wide
from flsl.runtime.compared import changed_settings, headlines
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import write_json
from flsl.runtime.results import read_project


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return demo(tmp_path)


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """Return the first pipe table of a Markdown text, without its rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if not set(row[0]) <= set(":-")]


def test_the_tidy_table_has_one_row_a_figure(results: Results) -> None:
    table = load_results(results.folder)
    assert len(table) == 2 * (2 + len(KNN) + len(LINEAR)) + len(KNN) + len(LINEAR)
    assert not table.duplicated(["run", "metric"]).any()
    row = table[(table["run"] == "wide") & (table["metric"] == "knn/top1@20")].iloc[0]
    assert (row["project"], row["stage"], row["value"], row["seed"], row["baseline"]) == ("demo", "knn", 55.5, 0, False)
    assert row["pretrain.prototypes"] == 8192
    assert row["pretrain.views.teacher_scale"] == "[0.8, 1.0]"
    assert table[table["run"] == "untrained"]["baseline"].all()
    means = table[~table["baseline"]].groupby("metric")["value"].mean()
    assert means["linear/top1"] == pytest.approx(61.25 + 1.5)


def test_the_csv_has_one_row_a_run_and_reads_back_exactly(results: Results, tmp_path: Path) -> None:
    results.stage("base", "davis", {"davis/J&F-Mean": 100 / 3})
    csv, page = tmp_path / "out/summary.csv", tmp_path / "out/summary.md"
    folder = str(results.folder)
    assert main(["report", "summary", "--project-folder", folder, "--out-csv", str(csv), "--out-md", str(page)]) == 0
    table = pd.read_csv(csv).set_index("run")
    assert list(table.index) == ["base", "wide", "untrained"]
    assert list(table["kind"]) == ["run", "run", "baseline"]
    assert table.loc["base", "davis/J&F-Mean"] == 100 / 3
    assert pd.isna(table.loc["wide", "davis/J&F-Mean"])
    # whole numbers stay whole beside the baseline's gap
    assert ",4096," in csv.read_text()
    for run in ("base", "wide", "untrained"):
        for stage in ("knn", "linear"):
            for name, value in json.loads((results.folder / f"runs/{run}/{stage}/metrics.json").read_text())[
                "metrics"
            ].items():
                assert table.loc[run, name] == value
    assert page.read_text() == summary(read_project(results.folder))


def test_only_settings_that_differ_are_named(results: Results) -> None:
    changed = changed_settings(read_project(results.folder).runs)
    assert changed == {"base": {"pretrain.prototypes": 4096}, "wide": {"pretrain.prototypes": 8192}, "untrained": {}}
    assert [name for name in wide(read_project(results.folder)) if name.startswith("pretrain.")] == [
        "pretrain.prototypes"
    ]


def test_what_a_run_differs_in_is_told_beside_the_base(tmp_path: Path) -> None:
    few = {"pretrain.epochs": 2}
    runs = {
        "a": few,
        "b": {**few, "seed": 1},
        "base": {},
        "wide": {"pretrain.prototypes": 8192, "knn.temperature": 0.1},
    }
    results = Results(tmp_path, experiment(runs=runs, pretrain={"epochs": 14}))
    for run in runs:
        results.pretrained(run)
    results.baseline()
    text = section(summary(read_project(results.folder)), "What ran")
    assert cells(text)[0][:3] == ["run", "seed", "differs from `base` in"]
    assert {row[0]: row[2] for row in cells(text)[1:]} == {
        "`a`": "`pretrain.epochs` = 2",
        "`b`": "`pretrain.epochs` = 2",
        "`base`": "",
        "`wide`": "`pretrain.prototypes` = 8192, `knn.temperature` = 0.1",
        "`untrained` (baseline)": "",
    }
    assert "- in `base`: `pretrain.epochs` = 14, `pretrain.prototypes` = 4096, `knn.temperature` = 0.07" in text


def test_which_value_is_the_better_one() -> None:
    assert more_is_better("knn/top1@20") is True
    assert more_is_better("davis/J-Decay") is False
    assert more_is_better("pretrain/loss") is None
    assert more_is_better("visualize/perplexity") is None
    assert more_is_better("features/images_per_second") is None
    assert best([1.0, 3.0, None, 3.0], True) == {1, 3}
    assert best([1.0, 3.0], False) == {0}
    assert best([1.0, None], True) == set()
    assert best([1.0, 2.0], None) == set()


def test_the_usual_k_is_the_headline_or_the_nearest_to_it() -> None:
    found = headlines([{"knn/top1@10", "knn/top1@20", "knn/top5@20", "uavdt/AP@0.7", "uavdt/AP@0.7/day"}])
    assert [head.metric for head in found] == ["knn/top1@20", "uavdt/AP@0.7"]
    assert [head.metric for head in headlines([{"knn/top1@5", "knn/top1@100"}])] == ["knn/top1@5"]
    assert headlines([{"pretrain/loss"}, set()]) == []


def test_runs_with_other_ks_are_judged_by_figures_of_their_own() -> None:
    found = headlines([{"knn/top1@3"}, {"knn/top1@1"}, {"knn/top1@5", "knn/top1@1"}, {"linear/top1"}])
    assert [head.metric for head in found] == ["knn/top1@1", "knn/top1@3", "knn/top1@5", "linear/top1"]


def test_the_best_is_bold_and_baselines_are_called_so(results: Results) -> None:
    rows = cells(section(summary(read_project(results.folder)), "Headline figures"))
    assert rows == [
        ["run", "k-NN top-1 (k = 20)", "linear top-1"],
        ["`base`", "52.50", "61.25"],
        ["`wide`", "**55.50**", "**64.25**"],
        ["`untrained` (baseline)", "42.50", "62.25"],
    ]


def test_the_gain_is_told_and_so_is_its_absence(results: Results) -> None:
    text = section(summary(read_project(results.folder)), "What pretraining gains")
    assert cells(text)[1:] == [["`base`", "+10.00", "−1.00"], ["`wide`", "+13.00", "+2.00"]]
    knn, linear = (line for line in text.splitlines() if line.startswith("- "))
    assert "2 of 2 runs better than `untrained` (42.50); the largest difference is +13.00 points (`wide`)" in knn
    assert "not beat" not in knn
    assert "1 of 2 runs better" in linear
    assert "**Pretraining does not beat the untrained encoder in `base`.**" in linear


def test_an_equal_figure_is_no_gain(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.pretrained("base")
    results.baseline()
    for run in ("base", "untrained"):
        results.stage(run, "knn", KNN)
    text = section(summary(read_project(results.folder)), "What pretraining gains")
    assert "0 of 1 run better" in text
    assert "does not beat the untrained encoder in `base`" in text


def test_without_a_baseline_no_gain_is_claimed(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.pretrained("base")
    results.stage("base", "knn", KNN)
    assert "no untrained baseline" in section(summary(read_project(results.folder)), "What pretraining gains")
    results.baseline()
    assert "Nothing has been evaluated on `untrained`" in summary(read_project(results.folder))


def test_the_sampling_error_comes_from_the_number_of_images(results: Results) -> None:
    for path in results.folder.glob("runs/*/knn/metrics.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "images": {"train": 4000, "val": 2500}}))
    text = summary(read_project(results.folder))
    assert "rest on 2500 validation images (standard error of a percentage: up to 1.0 points)" in text
    assert "The runs have one seed." in text


def test_the_data_come_from_the_manifests(results: Results) -> None:
    rows = cells(section(summary(read_project(results.folder)), "Data"))
    assert rows[1] == ["images", "`data/images`", "train: 99, val: 20", "10", "48×48", "1", "`abababababab`"]


def test_what_is_missing_is_listed(results: Results) -> None:
    (results.folder / "runs/wide/linear/metrics.json").unlink()
    results.history("late", range(1, 3))
    (results.folder / "runs/base/knn/metrics.json").write_text("{")
    text = summary(read_project(results.folder))
    missing = section(text, "What is missing").splitlines()
    assert "- `wide`: linear, aligned_knn" in missing
    assert "- `base`: knn, aligned_knn" in missing
    assert "- `late`: pretrain, knn, linear, aligned_knn" in missing
    assert any("runs/base/knn/metrics.json: not valid JSON" in line for line in missing)
    ran = {row[0]: row[3:] for row in cells(section(text, "What ran"))}
    assert ran["run"] == ["pretrain", "knn", "linear", "aligned_knn"]
    assert ran["`late`"] == ["begun", "—", "—", "—"]
    assert ran["`base`"] == ["12 s", "unreadable", "12 s", "—"]
    # the other figures of the run are there
    assert "| `base`                 | —" in section(text, "Headline figures")


def test_a_run_that_is_planned_and_has_not_begun_is_missing(tmp_path: Path) -> None:
    results = Results(tmp_path, experiment(runs={"base": {}, "next": {"seed": 1}}, stages=["knn"]))
    results.pretrained("base")
    results.stage("base", "knn", KNN)
    missing = section(summary(read_project(results.folder)), "What is missing")
    assert missing.strip().splitlines() == ["- `next` has not begun", "- `untrained` has not begun"]
    results.pretrained("next")
    results.stage("next", "knn", KNN)
    results.baseline()
    results.stage("untrained", "knn", KNN)
    assert "Nothing: every run has every planned stage." in summary(read_project(results.folder))


def test_what_the_config_no_longer_has_is_no_gap_and_not_hidden(results: Results) -> None:
    for path in results.folder.glob("runs/*/config.yaml"):
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"stages": ["knn", "linear"]}))
    (results.folder / "runs/wide/knn/metrics.json").unlink()
    write_json(results.folder / "ablations/k/ablation.json", {"points": []})
    text = summary(read_project(results.folder))
    assert "[1 gap](#what-is-missing)" in text
    assert "What is not planned" not in text
    planned = {"runs": ["base", "next"], "baselines": ["untrained"], "ablations": []}
    write_json(results.folder / "planned.json", planned)
    text = summary(read_project(results.folder))
    assert section(text, "What is missing").strip().splitlines() == ["- `next` has not begun"]
    assert "- `wide`, without knn\n- the ablation `k`" in section(text, "What is not planned")
    assert "`wide`" in section(text, "Headline figures")
    write_json(results.folder / "planned.json", planned | {"runs": ["base"]})
    assert "#what-is-missing" not in summary(read_project(results.folder))


def test_many_figures_of_few_runs_stand_in_columns_and_of_many_in_the_csv(tmp_path: Path) -> None:
    names = {f"r{n}": {"seed": n} for n in range(14)}
    results = Results(tmp_path, experiment(runs=names))
    for run in names:
        results.pretrained(run)
        results.stage(run, "knn", KNN)
    for run in ("r0", "r1"):
        results.stage(run, "coco", {f"coco/bbox/m{n}": n for n in range(24)})
    text = summary(read_project(results.folder))
    coco = cells(text.split("### coco")[1])
    assert coco[0] == ["figure", "`r0`", "`r1`"]
    assert len(coco) == 25
    for run in names:
        results.stage(run, "coco", {f"coco/bbox/m{n}": n for n in range(24)})
    assert "24 figures of 14 runs: see `summary.csv`" in summary(read_project(results.folder))
    # seed_2 before seed_10
    assert [run.name for run in read_project(results.folder).runs] == list(names)


def test_bad_folders_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_results(tmp_path / "none")
    assert main(["report", "summary", "--project-folder", str(tmp_path)]) == 2
    assert "holds no runs" in capsys.readouterr().err
    assert load_results(tmp_path).empty


def test_odd_records_do_not_hide_the_others(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    (results.folder / "runs/wide/config.yaml").write_text("a: [")
    (results.folder / "runs/wide/knn/metrics.json").write_text("[1]")
    (results.folder / "runs/wide/linear/metrics.json").write_text('{"stage": "linear"}')
    (results.folder / "data/images/manifest.json").write_text("7")
    assert main(["report", "summary", "--project-folder", str(results.folder)]) == 0
    shown = capsys.readouterr()
    warnings = re.sub(r"\s+", " ", shown.err)
    for problem in ("config.yaml: cannot be read as YAML", "holds list, not a JSON object", "has no 'metrics'"):
        assert problem in warnings
    frame = pd.read_csv(io.StringIO(wide(read_project(results.folder)).to_csv(index=False))).set_index("run")
    assert frame.loc["base", "knn/top1@20"] == 52.5
    assert "No manifest was written" in shown.out

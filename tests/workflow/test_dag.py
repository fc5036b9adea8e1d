"""The DAG: what runs, what reruns when, and what a failure leaves; on a tiny experiment that is really run once."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_workflow import CONFIG, ROOT, changed, planned, snakemake

from flsl.report.stale import stale_stages
from flsl.runtime.results import read_project

# what is made from all runs' figures
GATHERED = {"summary": 1, "bars": 1, "track": 1, "all": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny experiment; tests must leave it as it is."""
    place = tmp_path_factory.mktemp("dag")
    assert planned(place) == {
        **{"scenes": 1, "data_check": 1, "pretrain": 1, "baseline": 1, "features": 2, "knn": 2},
        **{"linear": 2, "aligned_knn": 2, "curves": 1, **GATHERED},
    }
    result = snakemake(place)
    assert result.returncode == 0, result.stdout + result.stderr
    return place


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, times and snakemake's records included, to do things to."""
    place = tmp_path / "copy"
    shutil.copytree(finished, place, symlinks=True)
    yield place
    shutil.rmtree(place)


def test_everything_is_made(finished: Path) -> None:
    results = finished / "results" / "tiny"
    for run in ("base", "untrained"):
        for stage in ("pretrain", "features", "knn", "linear", "aligned_knn"):
            assert (results / "runs" / run / stage / "metrics.json").stat().st_size
    for name in (
        "summary.md",
        "summary.html",
        "summary.csv",
        "pages/base.html",
        "pages/untrained.html",
        "curves.png",
        "bars.png",
        "mlflow.db",
    ):
        assert (results / name).stat().st_size
    assert "untrained" in (results / "summary.md").read_text()


def test_nothing_changed_nothing_runs(finished: Path) -> None:
    assert planned(finished) == {}


def test_knn_setting_reruns_the_knn_alone(finished: Path) -> None:
    assert planned(finished, changed(knn={"k": [2]})) == {"knn": 2, **GATHERED}


def test_linear_grid_reruns_the_linear_probes_alone(finished: Path) -> None:
    config = changed(linear={"learning_rates": [0.1, 0.2]})
    assert planned(finished, config) == {"linear": 2, **GATHERED}


def test_learning_rate_reruns_the_pretrained_run_alone(finished: Path) -> None:
    assert planned(finished, changed(pretrain={"learning_rate": 0.001})) == {
        **{"pretrain": 1, "features": 1, "knn": 1, "linear": 1, "aligned_knn": 1, "curves": 1},
        **GATHERED,
    }


def test_speed_settings_rerun_nothing_but_the_record_of_the_settings(finished: Path) -> None:
    assert planned(finished, changed(compute={"workers": 3, "log_every": 5})) == {}


def test_what_a_setting_makes_stale_is_what_it_reruns(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied)
    assert stale_stages(read_project("results/tiny")) == []
    for path in (copied / "results/tiny/runs").glob("*/config.yaml"):
        resolved = yaml.safe_load(path.read_text())
        resolved["features"]["resize"] = 40
        resolved["pretrain"]["encoder"]["depth"] = 3
        path.write_text(yaml.safe_dump(resolved))
    found = {(one.run, one.stage) for one in stale_stages(read_project("results/tiny"))}
    rests_on_features = ("pretrain", "features", "linear", "aligned_knn")
    assert found == {(run, stage) for run in ("base", "untrained") for stage in rests_on_features}


def test_where_images_are_read_from_reruns_nothing(copied: Path) -> None:
    config = changed(data={"images": {"root": "scenes/images", "boxes": "boxes.csv", "pack": "a pack"}})
    assert planned(copied, config) == {}
    (copied / "results/tiny/runs/base/knn/metrics.json").unlink()
    result = snakemake(copied, config=config)
    assert result.returncode == 0, result.stderr
    assert "flsl data pack --images results/tiny/data/images --out 'a pack'" in result.stderr
    # with a check that runs for the first time, or again, the copy is made before anything reads the images
    manifest = copied / "results/tiny/data/images/manifest.json"
    manifest.unlink()
    result = snakemake(copied, str(manifest.relative_to(copied)), config=config)
    assert result.returncode == 0, result.stderr
    assert json.loads((manifest.parent / "pack.json").read_text()) == {"folder": "a pack"}
    assert len(list((copied / "a pack").glob("*.tar"))) == 2
    # another one is not made either
    config = changed(data={"images": {"root": "scenes/images", "boxes": "boxes.csv", "pack": "another"}})
    (copied / "results/tiny/runs/base/knn/metrics.json").unlink()
    assert "images are read from a pack; flsl data pack" in snakemake(copied, config=config).stderr


def test_new_run_adds_its_own_jobs(finished: Path) -> None:
    config = changed(runs={"base": {}, "seed1": {"seed": 1}})
    assert planned(finished, config) == {
        **{"pretrain": 1, "features": 1, "knn": 1, "linear": 1, "aligned_knn": 1, "curves": 1},
        **GATHERED,
    }


def test_later_stage_waits_for_the_earlier_run_and_reads_its_encoder(copied: Path) -> None:
    # named before the run that it goes on from; a baseline may be gone on from as well
    runs = {"later": {"pretrain.previous": "base"}, "base": {}, "other": {"pretrain.previous": "untrained"}}
    config = changed(runs=runs)
    assert planned(copied, config)["pretrain"] == 2
    target = "results/tiny/runs/later/pretrain/metrics.json"
    (copied / "results/tiny/runs/base/pretrain/backbone.safetensors").unlink()
    result = snakemake(copied, target, config=config)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert output.index("Pretraining base") < output.index("Pretraining later")
    inputs = json.loads((copied / target).read_text())["provenance"]["inputs"]
    assert "results/tiny/runs/base/pretrain/backbone.safetensors" in inputs
    # another earlier run, another later one
    assert planned(copied, changed(runs=runs, pretrain={"learning_rate": 0.001}))["pretrain"] == 3


def test_pictures_are_a_stage_of_runs_and_baselines(copied: Path) -> None:
    config = changed(stages=[*CONFIG["stages"], "visualize"], visualize={"images": 2, "counted": 4})  # type: ignore[misc]
    assert planned(copied, config) == {"visualize": 1, "visualize_baseline": 1, **GATHERED}
    result = snakemake(copied, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = copied / "results" / "tiny" / "runs"
    for run, pictures in (("base", 5), ("untrained", 2)):
        assert len(list((folder / run / "visualize").glob("*.png"))) == pictures
    assert planned(copied, config) == {}
    later = {**config, "visualize": {"images": 1, "counted": 4}}
    assert planned(copied, later) == {"visualize": 1, "visualize_baseline": 1, **GATHERED}
    # a baseline's file does not tell with which temperature to look
    assert (
        planned(copied, {**config, "pretrain": changed(pretrain={"tau_sa": 0.3})["pretrain"]})["visualize_baseline"]
        == 1
    )


def test_touched_files_rerun_nothing(copied: Path) -> None:
    for path in (copied / "scenes").rglob("*.*"):
        os.utime(path)
    assert planned(copied) == {}


def test_a_baselines_checkpoint_counts_by_its_content(copied: Path) -> None:
    checkpoint = copied / "mine.safetensors"
    made = copied / "results/tiny/runs"
    shutil.copy(made / "untrained/pretrain/backbone.safetensors", checkpoint)
    mine = {"kind": "file", "checkpoint": checkpoint.name}
    config = changed(baselines={"untrained": {"kind": "random"}, "mine": mine})
    result = snakemake(copied, config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert planned(copied, config) == {}
    os.utime(checkpoint)
    assert planned(copied, config) == {}
    shutil.copy(made / "base/pretrain/backbone.safetensors", checkpoint)
    again = {"baseline": 1, "features": 1, "knn": 1, "linear": 1, "aligned_knn": 1}
    assert planned(copied, config) == again | GATHERED
    # a disk that is away restarts nothing; a baseline that is to be made says so
    checkpoint.unlink()
    assert planned(copied, config) == {}
    (made / "mine/pretrain/metrics.json").unlink()
    assert snakemake(copied, config=config).returncode != 0
    log = (copied / "results/tiny/logs/mine/baseline.log").read_text()
    assert "mine.safetensors: no such file" in " ".join(log.split())


def test_changed_content_reruns_what_depends_on_it(copied: Path) -> None:
    image = next((copied / "scenes" / "images" / "train").rglob("*.*"))
    Image.new("RGB", (32, 32), "red").save(image)
    everything = {"data_check": 1, "pretrain": 1, "features": 2, "knn": 2, "linear": 2, "aligned_knn": 2, "curves": 1}
    assert planned(copied) == everything | GATHERED
    # once it has run, the new content is the known one
    result = snakemake(copied, "--until", "data_check")
    assert result.returncode == 0, result.stderr
    assert "data_check" not in planned(copied)


def test_deleted_output_is_remade_alone(copied: Path) -> None:
    (copied / "results/tiny/runs/base/knn/metrics.json").unlink()
    assert planned(copied) == {"knn": 1, **GATHERED}
    assert snakemake(copied).returncode == 0
    assert planned(copied) == {}


def test_a_run_is_gone_with_its_folder(copied: Path) -> None:
    results = copied / "results/tiny"
    # as another config of the project has left it
    shutil.copytree(results / "runs/base", results / "runs/few")
    shown = {"curves": 1, **GATHERED}
    assert planned(copied) == shown
    assert snakemake(copied).returncode == 0
    assert planned(copied) == {}
    summary = (results / "summary.md").read_text()
    assert "- `few`" in summary.split("## What is not planned")[1]
    assert "**Complete and current**" in summary
    shutil.rmtree(results / "runs/few")
    assert planned(copied) == shown
    assert snakemake(copied).returncode == 0
    assert "few" not in (results / "summary.md").read_text()
    assert not (results / "pages/few.html").exists()
    assert planned(copied) == {}


def test_a_server_that_is_down_is_seen_and_caught_up_with(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = copied / "results/tiny"
    (results / "tracked.txt").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = snakemake(copied)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "MLflow does not show the newest results" in result.stderr
    assert "MLflow does not show the newest results" in (results / "logs/track.log").read_text()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert planned(copied) == {"track": 1, "all": 1}
    assert snakemake(copied).returncode == 0
    assert "run" in (results / "tracked.txt").read_text()
    assert planned(copied) == {}


def test_the_reports_front_page_names_a_project_of_an_extended_file(copied: Path) -> None:
    (copied / "base.yaml").write_text(yaml.safe_dump(CONFIG))
    result = snakemake(copied, "--report", "report.html", config={"extends": "base.yaml"})
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "docutils" not in output
    page = (copied / "report.html").read_text()
    assert "<strong>tiny</strong>" in page
    assert "results/tiny</tt>" in page


def test_failure_leaves_the_others_results_and_names_the_log(copied: Path) -> None:
    config = changed(runs={"base": {}, "broken": {"pretrain.batch_size": 5000}})
    (copied / "results/tiny/runs/base/knn/metrics.json").unlink()
    result = snakemake(copied, "--keep-going", config=config)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "results/tiny/logs/broken/pretrain.log" in output
    log = (copied / "results/tiny/logs/broken/pretrain.log").read_text()
    assert "pretrain.batch_size: 5000 is more than the 24 training images" in log
    assert (copied / "results/tiny/runs/base/knn/metrics.json").exists()
    assert not (copied / "results/tiny/runs/broken/pretrain/metrics.json").exists()
    # the summary is made of what there is
    summary = (copied / "results/tiny/summary.md").read_text()
    assert "`broken`: pretrain, knn, linear, aligned_knn" in summary


def test_rules_are_in_one_shape() -> None:
    """Every rule that makes something has a log and a message; those that compute have a benchmark and resources."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    rules = re.findall(r"^ *rule (\w+):\n((?:(?!^ *rule ).*\n?)*)", text, flags=re.MULTILINE)
    missing = Counter()
    for name, body in rules:
        if "output:" not in body:
            continue  # a target's name: it makes nothing
        wanted = ["log:", "message:"] + ([] if "localrule: True" in body else ["resources:", "threads:"][:1])
        missing.update(f"{name} {part}" for part in wanted if part not in body)
    assert not missing

"""A result is stale when its settings, its inputs or the code that made it are others now, and only then."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from made_results import KNN, Results, experiment

import flsl.__main__  # noqa: F401 -- the command is started by it, and it is loaded in each stage
from flsl.report import stale
from flsl.report.stale import stale_stages
from flsl.report.summary import summary
from flsl.runtime import code
from flsl.runtime.outputs import StageRecord, write_json
from flsl.runtime.results import read_project

SETTINGS = experiment(stages=["knn"])


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A project whose records are made as stages make them."""
    results = Results(tmp_path, SETTINGS)
    manifest = results.manifest()
    for run in ("base", "untrained"):
        results.config(run)
        folder = results.folder / "runs" / run
        backbone = folder / "pretrain" / "backbone.safetensors"
        backbone.parent.mkdir(parents=True)
        backbone.write_bytes(os.urandom(100))
        (folder / "pretrain" / "history.jsonl").write_text("")
        kind = "pretrain" if run == "base" else "baseline"
        made = SETTINGS.pretrain.plain() if run == "base" else SETTINGS.baselines[run].plain()
        StageRecord(kind, run, {"seed": 0, **made}, [manifest]).write(folder / "pretrain" / "metrics.json", {})
        record = StageRecord("knn", run, SETTINGS.knn.plain(), [backbone])
        record.write(folder / "knn" / "metrics.json", KNN)
    return results


def found(results: Results) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(one.run, one.stage): one.reasons for one in stale_stages(read_project(results.folder))}


def change_config(results: Results, run: str, section: str, **settings: object) -> None:
    path = results.folder / "runs" / run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[section].update(settings)
    path.write_text(yaml.safe_dump(config))


def test_what_was_just_made_is_current(results: Results) -> None:
    assert found(results) == {}
    text = summary(read_project(results.folder))
    assert "**Complete and current**" in text
    assert "Nothing: settings, inputs and package code are those" in text


def test_a_changed_setting_is_named_with_both_values(results: Results) -> None:
    change_config(results, "base", "knn", temperature=0.1)
    change_config(results, "untrained", "pretrain", epochs=7)  # no setting of a baseline
    assert found(results) == {("base", "knn"): ("setting `temperature` 0.07 → 0.1",)}
    change_config(results, "base", "pretrain", epochs=7, prototypes=9, learning_rate=0.1, momentum=0.5, clip=1.0)
    reasons = found(results)["base", "pretrain"]
    assert reasons[0] == "setting `prototypes` 4096 → 9" or "setting `epochs` 300 → 7" in reasons
    assert reasons[-1] == "2 more settings"


def test_settings_of_other_sections_that_a_stage_reads_count(results: Results) -> None:
    features = {"features": SETTINGS.features.plain()}
    path = results.folder / "runs/base"
    StageRecord("linear", "base", {"seed": 0, **SETTINGS.linear.plain(), **features}).write(
        path / "linear/metrics.json", {}
    )
    StageRecord("aligned_knn", "base", {**SETTINGS.aligned_knn.plain(), **features}).write(
        path / "aligned_knn/metrics.json", {}
    )
    made = SETTINGS.baselines["untrained"]
    params = {**made.plain(), "made_from": SETTINGS.made_from(made)}
    StageRecord("baseline", "untrained", params).write(results.folder / "runs/untrained/pretrain/metrics.json", {})
    assert found(results) == {}
    change_config(results, "base", "features", resize=300)
    change_config(results, "untrained", "pretrain", encoder=SETTINGS.pretrain.encoder.plain() | {"depth": 3})
    assert found(results) == {
        ("base", "linear"): ("setting `features.resize` 256 → 300",),
        ("base", "aligned_knn"): ("setting `features.resize` 256 → 300",),
        ("untrained", "pretrain"): ("setting `pretrain.encoder.depth` None → 3",),
    }


def test_a_run_that_was_renamed_has_its_own_inputs(results: Results) -> None:
    (results.folder / "runs/base").rename(results.folder / "runs/fewer")
    assert found(results) == {}
    # another one of the old name is none of its inputs
    other = results.folder / "runs/base/pretrain/backbone.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(os.urandom(100))
    assert found(results) == {}
    (results.folder / "runs/fewer/pretrain/backbone.safetensors").write_bytes(os.urandom(100))
    assert found(results) == {("fewer", "knn"): (f"input `{other}` is another",)}


def test_an_input_with_other_content_is_named_and_a_touched_one_is_not(results: Results) -> None:
    backbone = results.folder / "runs/base/pretrain/backbone.safetensors"
    os.utime(backbone, (1, 1))
    assert found(results) == {}
    backbone.write_bytes(os.urandom(100))
    assert found(results) == {("base", "knn"): (f"input `{backbone}` is another",)}
    backbone.unlink()
    assert found(results) == {("base", "knn"): (f"input `{backbone}` is gone",)}


def test_large_inputs_are_told_by_their_size_and_never_read(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stale, "_SMALL", 50)
    monkeypatch.setattr(stale, "sha256_file", lambda path: pytest.fail(f"{path} is read"))
    (results.folder / "data/images/manifest.json").touch()
    backbone = results.folder / "runs/base/pretrain/backbone.safetensors"
    backbone.write_bytes(os.urandom(100))
    assert found(results) == {}
    backbone.write_bytes(os.urandom(101))
    assert list(found(results)) == [("base", "knn")]


def test_a_project_that_was_moved_is_still_current(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    target = results.folder.parent / "elsewhere" / results.folder.name
    target.parent.mkdir()
    results.folder.rename(target)
    results.folder = target
    assert found(results) == {}


def test_changed_code_is_named_by_module(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    records = list(results.folder.glob("runs/*/knn/metrics.json"))
    modules = read_project(results.folder).runs[0].stages["knn"].provenance["code"]
    assert "flsl.runtime.outputs" in modules
    without = ("flsl.__main__", "flsl.report", "flsl.cli", "flsl.track")
    assert not [name for name in modules if name.startswith(without)]
    for path in records:
        record = json.loads(path.read_text())
        record["provenance"]["code"] |= {"flsl.model.neighbours": "0" * 12, "flsl.model.gone": "1" * 12}
        write_json(path, record)
    expected = ("code of `flsl.model.neighbours`, `flsl.model.gone`",)
    assert found(results) == {("base", "knn"): expected, ("untrained", "knn"): expected}
    text = summary(read_project(results.folder))
    assert "**Not current**: [2 stale results](#what-is-stale)" in text
    assert f"- knn of `base`, `untrained`: {expected[0]}" in text
    assert code.code_now(["flsl.model.neighbours"]) != {"flsl.model.neighbours": None}


def test_records_of_earlier_versions_are_not_called_stale(results: Results) -> None:
    for path in results.folder.glob("runs/*/*/metrics.json"):
        record = json.loads(path.read_text())
        del record["provenance"]["code"], record["provenance"]["input_stamps"]
        write_json(path, record)
    assert found(results) == {}

"""Settings: composition, overrides, the paper's values, and the generated schema and tables."""

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jsonschema
import pytest
import yaml
from hypothesis import given

from flsl.cli import main
from flsl.config.checking import check
from flsl.config.docs import README, SCHEMA, readme_text, schema_text
from flsl.config.experiment import Experiment
from flsl.config.loading import load_experiment, merge, parse_yaml, require_data, run_experiment
from flsl.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
DEPTH_8 = {"encoder": {"depth": 8}}
VIEWS_OF_14 = {"teacher_size": 224, "global_size": 224, "local_size": 98}
PATCHES_OF_14 = {"encoder": {"patch_size": 14}, "views": VIEWS_OF_14}


def write(path: Path, data: object) -> Path:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid_and_fit_the_schema(path: Path) -> None:
    experiment = load_experiment(path)
    assert check(Experiment, experiment.plain(), "again") == experiment
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(schema_text()))


def test_generated_files_are_up_to_date() -> None:
    assert (ROOT / SCHEMA).read_text(encoding="utf-8") == schema_text(), "run `make docs`"
    readme = (ROOT / README).read_text(encoding="utf-8")
    assert readme == readme_text(readme), "run `make docs`"


def test_every_setting_has_its_line_in_the_readme() -> None:
    text = (ROOT / README).read_text(encoding="utf-8")
    for name in ("pretrain.prototypes", "pretrain.views.local_crops", "knn.k", "data.images.root", "compute.workers"):
        assert f"| `{name}` |" in text


def test_schema_refuses_what_the_models_refuse() -> None:
    schema = json.loads(schema_text())
    for wrong in ({"project": "a/b"}, {"pretrain": {"epochz": 3}}, {"knn": {"k": [0]}}, {"seed": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_paper_values() -> None:
    recipe = load_experiment(ROOT / "config/vits16.yaml").pretrain
    views = recipe.views
    assert (views.teacher_size, views.global_size, views.local_size, views.local_crops) == (224, 224, 96, 2)
    assert (views.teacher_scale, views.global_scale, views.local_scale) == ([0.8, 1.0], [0.5, 1.0], [0.05, 0.4])
    jitter = (views.jitter, views.brightness, views.contrast, views.saturation, views.hue, views.grayscale)
    assert jitter == (0.8, 0.4, 0.4, 0.2, 0.1, 0.2)
    assert (views.blur_a, views.blur_b, views.blur_radius, views.solarize) == (0.5, 0.1, [0.1, 2.0], 0.2)
    assert (recipe.intra_weight, recipe.inter_weight, recipe.volume_weight) == (0.03, 1.0, 5.0)
    assert (recipe.tau_sa, recipe.tau_ca, recipe.prototypes, recipe.query_window) == (0.1, 0.2, 4096, 2)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.warmup) == (300, 512, 5e-4, 0.1)
    assert (recipe.weight_decay, recipe.final_weight_decay, recipe.clip) == (0.04, 0.4, 3.0)
    temperatures = (recipe.student_temperature, recipe.teacher_temperature_start, recipe.teacher_temperature)
    assert (*temperatures, recipe.teacher_temperature_epochs) == (0.1, 0.04, 0.07, 30)
    assert (recipe.momentum, recipe.final_momentum, recipe.freeze_prototypes_epochs) == (0.996, 1.0, 1)
    assert (recipe.head.hidden, recipe.head.bottleneck, recipe.head.batch_norm) == (2048, 256, False)
    assert (recipe.encoder.drop_path, recipe.encoder.patch_size, recipe.final_learning_rate) == (0.1, 16, 1e-6)
    small_patches = load_experiment(ROOT / "config/vits8.yaml").pretrain
    assert (small_patches.encoder.patch_size, small_patches.query_window) == (8, 4)
    assert load_experiment(ROOT / "config/vitb16.yaml").pretrain.encoder.name == "vit_base_patch16_224"


def test_files_extend_each_other(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"project": "a", "knn": {"k": [1, 2], "temperature": 0.1}, "runs": {"x": {}}})
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b.yaml", {"extends": "../a.yaml", "knn": {"k": [5]}, "runs": {"y": {"seed": 3}}})
    experiment = load_experiment(tmp_path / "sub" / "b.yaml", ["knn.memory_mb=64"])
    assert (experiment.knn.k, experiment.knn.temperature, experiment.knn.memory_mb) == ([5], 0.1, 64)
    assert list(experiment.runs) == ["y"]
    assert run_experiment(experiment, "y").seed == 3


plain = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8)
mappings = st.dictionaries(st.sampled_from("abc"), plain)


@given(mappings, mappings)
def test_merge_keeps_what_is_not_replaced(base: dict[str, object], over: dict[str, object]) -> None:
    merged = merge(base, over)
    assert set(merged) == set(base) | set(over)
    for key, value in over.items():
        assert isinstance(value, dict) or merged[key] == value
    assert merge(merged, over) == merged
    assert merge(base, {}) == base


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("5E4", 5e4), ("-.5e+2", -50.0), ("e-3", "e-3"), ("1.0", 1.0)]
)
def test_numbers_are_read_as_yaml_1_2_does(text: str, value: object) -> None:
    assert parse_yaml(text, "test") == value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runs": {"long": {"pretrain": {"epochs": 3}}}}, "runs.long: pretrain: is a whole section"),
        ({"runs": {"untrained": {}}}, "runs.untrained: baselines has that name, too"),
        ({"results": "re{x}s"}, "results: 're{x}s' has the character {"),
        ({"results": "~nobody-here/res"}, "a.yaml: results: '~nobody-here/res' begins with the home folder of no user"),
        ({"data": {"images": {"root": "~nobody-here/a"}}}, "a.yaml: data.images.root: '~nobody-here/a' begins with"),
        ({"data": {"images": {"root": "a", "val": ""}}}, "a.yaml: data.images.val: "),
        ({"results": "a?b"}, "results: 'a?b' has the character ?"),
        ({"baselines": {"b": {"kind": "timm", "model": "m", "checkpoint": "c"}}}, "of kind `timm` reads none"),
        ({"baselines": {"b": {"kind": "random", "model": "m"}}}, "model: a baseline of kind `random` is the runs'"),
    ],
)
def test_what_would_go_wrong_later_is_refused_at_once(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(write(tmp_path / "a.yaml", {"project": "a", **settings}))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("results", "folder"),
    [
        ("res", "res"),
        ("res/", "res"),
        ("./res//all/", "res/all"),
        ("../res", "../res"),
        ("/data/res//", "/data/res"),
        ("~/res/", "/home/me/res"),
        ("~", "/home/me"),
    ],
)
def test_the_results_folder_is_what_a_shell_takes_it_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: str, folder: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    experiment = load_experiment(write(tmp_path / "a.yaml", {"project": "a", "results": results}))
    assert experiment.results == folder
    assert check(Experiment, experiment.plain(), "again") == experiment


def test_other_paths_are_what_a_shell_takes_them_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    roots = {name: {"root": f"~/{name}/"} for name in ("scenes", "images", "coco", "uavdt", "davis")}
    # one that needs nothing stays as it is: another spelling would check the data again
    data = roots | {"images": {"root": "./images//", "pack": "~/packed"}}
    baselines = {"mine": {"kind": "file", "checkpoint": "~/mine.pth"}}
    found = load_experiment(write(tmp_path / "a.yaml", {"project": "a", "data": data, "baselines": baselines})).plain()
    assert {name: found["data"][name]["root"] for name in roots} == {name: f"/home/me/{name}" for name in roots} | {
        "images": "./images//"
    }
    assert found["data"]["images"]["pack"] == "/home/me/packed"
    assert found["baselines"]["mine"]["checkpoint"] == "/home/me/mine.pth"
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "below").mkdir()
    assert load_experiment(write(tmp_path / "below/b.yaml", {"extends": "~/a.yaml"})).project == "a"
    with pytest.raises(UserError, match=r"c\.yaml: extends: '~nobody-here/a\.yaml' begins with the home folder of no"):
        load_experiment(write(tmp_path / "c.yaml", {"extends": "~nobody-here/a.yaml"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("project: a\nseed: 1\nseed: 2\n", "a.yaml: not valid YAML in line 3: 'seed' stands twice; put both into one"),
        ("project: a\npretrain: {epochs: 3, epochs: 4}\n", "'epochs' stands twice"),
        ("project: &a [*a]\n", "a.yaml: not valid YAML: it is nested too deep, or contains itself"),
        ("project: a\nruns:\n  off: {}\n", "in line 3: the name off is read as False; write it in quotes, 'off'"),
        ("project: a\nruns: {null: {}}\n", "the name null is read as None; write it in quotes, 'null'"),
        ("project: a\nruns: {1_0: {}}\n", "the name 1_0 is read as 10; write it in quotes, '1_0'"),
        ("project: 2024-13-45\n", "a.yaml: not valid YAML: month must be in 1..12; write what is no date in quotes"),
    ],
)
def test_yaml_that_would_lose_something_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_experiment(tmp_path / "a.yaml")
    assert words in str(caught.value)


def test_names_that_look_like_numbers_are_names() -> None:
    text = "{2: {}, 1.0: {}, 1e3: {}, 2024-01-01: {}, 'on': {}, v1.0: {}}"
    assert list(parse_yaml(text, "here")) == ["2", "1.0", "1e3", "2024-01-01", "on", "v1.0"]


def test_a_date_is_a_name_and_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "project: 2024-01-01\npretrain: &p {epochs: 3}\nfeatures: {resize: 64, crop: 64}\n"
    )
    assert load_experiment(tmp_path / "a.yaml").project == "2024-01-01"
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}", "here") == {"a": {"x": 1}, "b": {"x": 2}}
    # merged from a merged one that stands deeper, which is flattened before it is read
    text = "c: &c {x: 0}\ntop: {inner: &a {<<: *c, x: 1}}\nb: {<<: *a, y: 3}"
    assert parse_yaml(text, "here") == {"c": {"x": 0}, "top": {"inner": {"x": 1}}, "b": {"x": 1, "y": 3}}


def test_evaluations_without_a_validation_split_are_refused_at_once() -> None:
    settings = {"project": "a", "stages": ["knn"], "data": {"images": {"root": "x", "val": None}}}
    with pytest.raises(UserError, match=r"stages: knn needs data\.images\.val, which is null"):
        require_data(check(Experiment, settings, "here"))


def test_run_changes_are_checked_when_the_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", {"project": "a", "runs": {"wide": {"pretrain.prototype": 3}}})
    with pytest.raises(UserError, match=r"runs.wide: pretrain.prototype: unknown setting \(did you mean 'prototypes'"):
        load_experiment(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": {"images": None}}, "data.images: pretraining needs an image folder"),
        ({"runs": {"later": {"pretrain.previous": "bse"}}}, "runs.later: pretrain.previous: no run or baseline 'bse'"),
        (
            {"pretrain": {"encoder": {"depth": 1}}},
            "linear.blocks: the run base is asked for its last 4 blocks, but it has 1 (pretrain.encoder.depth)",
        ),
        ({"runs": {"flat": {"pretrain.encoder.depth": 3}}}, "linear.blocks: the run flat is asked for its last 4"),
        (
            {"features": {"blocks": 5}, "pretrain": {"encoder": {"depth": 4}}},
            "features.blocks: the run base is asked for its last 5 blocks, but it has 4 (pretrain.encoder.depth)",
        ),
        (
            {"ablations": {"a": {"grid": {"pretrain.encoder.depth": [2, 4]}}}},
            "linear.blocks: the run encoder.depth-2 is asked for its last 4 blocks, but it has 2",
        ),
        (
            {"features": {"crop": 220}},
            "features.crop: 220 is not a multiple of the 16 pixels of a patch of the run base "
            "(pretrain.encoder.patch_size); 224 is, or leave knn and linear and aligned_knn out of its stages",
        ),
        ({"visualize": {"size": 50}, "stages": ["visualize"]}, "visualize.size: 50 is not a multiple of the 16 pixels"),
        (
            {"stages": ["coco"], "pretrain": PATCHES_OF_14},
            "pretrain.encoder.patch_size: a detector is built on patches of 4, 8 or 16 pixels, and the run base has 14",
        ),
        (
            {"stages": ["coco"], "pretrain": DEPTH_8, "detection": {"model": {"blocks": [2, 4, 6, 9]}}},
            "detection.model.blocks: block 9 is asked for, but the run base has 8 (pretrain.encoder.depth)",
        ),
        (
            {"stages": ["coco"], "pretrain": DEPTH_8, "detection": {"model": {"frozen_blocks": 9}}},
            "detection.model.frozen_blocks: block 9 is asked for, but the run base has 8",
        ),
        ({"detection": {"model": {"blocks": [3, 2, 4, 4]}}}, "detection.model.blocks: [3, 2, 4, 4] must rise"),
        (
            {
                "pretrain": {"encoder": {"depth": 4}},
                "runs": {"base": {}, "later": {"pretrain.previous": "base", "pretrain.prior.block": 5}},
            },
            "runs.later: pretrain.prior.block: 5, but 'base' has 4 blocks (pretrain.encoder.depth)",
        ),
    ],
)
def test_checking_a_file_refuses_what_the_workflow_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: str
) -> None:
    data = {"images": {"root": "images", "boxes": "boxes"}, "coco": {"root": "coco"}}
    whole = {"project": "a", "data": data, **settings}
    assert main(["config", "--config", str(write(tmp_path / "a.yaml", whole))]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_sizes_and_blocks_are_not_judged_where_no_stage_reads_them_or_the_depth_is_unknown(tmp_path: Path) -> None:
    fine = [
        {"stages": ["aligned_knn"], "pretrain": {"encoder": {"depth": 1}}},
        {"linear": {"blocks": [1, 40]}},
        {"stages": ["visualize"], "features": {"crop": 220}},
        {"visualize": {"size": 50}, "detection": {"model": {"blocks": [4, 6, 8, 40]}}},
        {"stages": ["coco"], "detection": {"model": {"blocks": [4, 6, 8, 40]}}},
        {
            "stages": ["coco"],
            "pretrain": DEPTH_8,
            "detection": {"model": {"pyramid": "simple", "blocks": [4, 6, 8, 40]}},
        },
        {"ablations": {"a": {"stages": ["knn"], "grid": {"pretrain.encoder.depth": [2, 4]}}}},
    ]
    for settings in fine:
        data = {"images": {"root": "images", "boxes": "boxes"}, "coco": {"root": "coco"}}
        whole = {"project": "a", "data": data, **settings}
        assert main(["config", "--config", str(write(tmp_path / "a.yaml", whole))]) == 0

"""Both engines: a stage from images to metrics, exact resume, and what other tools read."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engines import ENGINES
from PIL import Image
from pycocotools.coco import COCO
from tiny_coco import tiny_experiment, write_uavdt

from flsl.cli import main
from flsl.data.check import check_data
from flsl.detect.coco_eval import evaluate_files
from flsl.detect.finetune import FineTuning
from flsl.detect.model_file import load_model
from flsl.detect.stage import run
from flsl.model.backbone import load_backbone
from flsl.model.choice import EncoderChoice
from flsl.runtime import checkpoint
from flsl.runtime.errors import UserError
from flsl.runtime.history import read_history

RANDOM = EncoderChoice(random=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stage_writes_what_the_next_ones_and_other_tools_read(tiny: Path, tmp_path: Path, engine: str) -> None:
    changes = (f"detection.engine={engine}", "detection.coco.evaluate_every=1", f"results={tmp_path / 'results'}")
    experiment = tiny_experiment(tiny, *changes)
    out, manifest = tmp_path / "out", tmp_path / "results/tiny/data/coco"
    assert experiment.data.coco is not None
    check_data(experiment.data.coco, manifest)
    record = run("coco", experiment, RANDOM, out, "base")
    assert record is not None
    assert record["stage"] == "coco"
    assert str(manifest / "manifest.json") in record["provenance"]["inputs"]
    assert {"coco/bbox/AP", "coco/segm/AP50"} <= record["metrics"].keys()
    assert json.loads((out / "metrics.json").read_text()) == record
    assert len(list(out.glob("prediction-*.png"))) == 1
    COCO(str(tiny / "coco.json")).loadRes(str(out / "detections.json"))
    again = evaluate_files(tiny / "coco.json", out / "detections.json", tmp_path / "m.json")
    assert again["metrics"] == record["metrics"]
    assert again["classes"] == record["classes"]
    # ids of the categories have a gap
    assert [row["id"] for row in record["classes"]["segm"]] == [3, 7]
    assert {entry["category_id"] for entry in json.loads((out / "detections.json").read_text())} <= {3, 7}

    lines = read_history(out / "history.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [2, 4, 6]
    names = ("rpn_objectness", "rpn_box", "box_class", "box_regression", "mask")
    for line in steps:
        assert line["loss"] == pytest.approx(sum(line[f"loss_{name}"] for name in names))
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2]
    assert load_backbone(out / "model.pth").width == 32

    predict = ["detect", "predict", "--model", str(out / "model.pth"), "--images", str(tiny / "images")]
    files = ["--annotations", str(tiny / "coco.json"), "--out", str(tmp_path / "again.json")]
    assert main([*predict, *files, "--device", "cpu", "--workers", "0"]) == 0
    assert (tmp_path / "again.json").read_text() == (out / "detections.json").read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_training_goes_on_bit_for_bit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    more = ["detection.coco.accumulate=2", "detection.coco.ema=0.9", "compute.log_every=3"]
    experiment = tiny_experiment(tiny, f"detection.engine={engine}", *more)
    run("coco", experiment, RANDOM, tmp_path / "whole", "base")

    whole: Callable[[FineTuning, int], None] = FineTuning.step

    def killed(self: FineTuning, step: int) -> None:
        if step == 5:
            raise RuntimeError("killed")
        whole(self, step)

    monkeypatch.setattr(FineTuning, "step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run("coco", experiment, RANDOM, tmp_path / "parts", "base")
    monkeypatch.setattr(FineTuning, "step", whole)
    made = checkpoint.load(checkpoint.steps(tmp_path / "parts/checkpoints")[-1])["made"]
    record = run("coco", experiment, RANDOM, tmp_path / "parts", "base")
    assert record is not None
    assert record["provenance"]["started"] == made["started"]
    assert record["provenance"]["seconds"] > made["seconds"]
    states = [load_model(tmp_path / name / "model.pth")[0].weights for name in ("whole", "parts")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    timed = ("time", "images_per_second")
    histories = [
        [{k: v for k, v in line.items() if k not in timed} for line in read_history(tmp_path / name / "history.jsonl")]
        for name in ("whole", "parts")
    ]
    assert histories[0] == histories[1]
    assert (tmp_path / "whole/detections.json").read_text() == (tmp_path / "parts/detections.json").read_text()


def test_weights_that_are_not_finite_are_never_saved(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = FineTuning.step

    def spoilt(tuning: FineTuning, step: int) -> None:
        usual(tuning, step)
        if step == 3:  # as by an infinite gradient of finite losses
            next(p for p in tuning.detector.parameters() if p.requires_grad).data.view(-1)[0] = torch.inf

    monkeypatch.setattr(FineTuning, "step", spoilt)
    experiment = tiny_experiment(tiny, "compute.checkpoint_steps=2", "compute.log_every=50")
    with pytest.raises(UserError, match=r"^the weights after step 4 are not finite; lower the learning_rate"):
        run("coco", experiment, RANDOM, tmp_path / "out", "base")
    assert [path.name for path in checkpoint.steps(tmp_path / "out/checkpoints")] == ["step-000000002.pth"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_training_that_diverges_ends_in_one_line(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    engine: str,
) -> None:
    usual = FineTuning.step

    def spoilt(tuning: FineTuning, step: int) -> None:
        if step == 2:
            for parameter in tuning.detector.parameters():
                parameter.data.fill_(torch.nan)
        usual(tuning, step)

    monkeypatch.setattr(FineTuning, "step", spoilt)
    settings = tiny_experiment(tiny, f"detection.engine={engine}", "compute.log_every=50")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings.plain()))
    arguments = ["--random-init", "--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out")]
    assert main(["detect", "train", "--stage", "coco", *arguments]) == 2
    told = capfd.readouterr().err
    assert "lower the learning_rate" in told.splitlines()[-1]
    assert "Traceback" not in told + caplog.text
    assert not (tmp_path / "out/model.pth").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_falls(tiny: Path, tmp_path: Path, engine: str) -> None:
    more = ["detection.coco.epochs=12", "detection.coco.milestones=[11]", "detection.coco.crop=0"]
    run("coco", tiny_experiment(tiny, f"detection.engine={engine}", *more), RANDOM, tmp_path / "out", "base")
    losses = [line["loss"] for line in read_history(tmp_path / "out/history.jsonl") if line["kind"] == "step"]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


@pytest.mark.parametrize("engine", ENGINES)
def test_uavdt_from_frames_to_the_official_figures(tmp_path: Path, engine: str) -> None:
    write_uavdt(tmp_path / "uavdt", train=["M0101"], test=["M0208"], frames=4)
    root = f"data.uavdt={{root: {tmp_path / 'uavdt'}, frames: frames, ground_truth: gt}}"
    experiment = tiny_experiment(tmp_path, root, f"detection.engine={engine}", "detection.uavdt.stride=1")
    out = tmp_path / "out"
    record = run("uavdt", experiment, RANDOM, out, "base")
    assert record is not None
    assert {"uavdt/AP@0.7", "uavdt/AP@0.7/day", "uavdt/coco/AP50"} <= record["metrics"].keys()
    detections = json.loads((out / "detections.json").read_text())
    assert detections
    assert not any("segmentation" in entry for entry in detections)
    assert {entry["image_id"] // 1_000_000 for entry in detections} == {208}
    COCO(str(out / "test.json")).loadRes(str(out / "detections.json"))
    evaluate = ["uavdt", "evaluate", "--gt", str(tmp_path / "uavdt/gt"), "--out", str(tmp_path / "m.json")]
    for name in ("detections.json", "official"):
        assert main([*evaluate, "--detections", str(out / name)]) == 0
        assert json.loads((tmp_path / "m.json").read_text())["metrics"] == record["metrics"]
    rows = (out / "official/M0208.txt").read_text().splitlines()
    assert len(rows) == len(detections)
    assert all(row.split(",")[1] == "-1" and len(row.split(",")) == 9 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_train_and_write_once(tiny: Path, tmp_path: Path, engine: str) -> None:
    settings = tiny_experiment(tiny, f"detection.engine={engine}", "compute.log_every=3")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings.plain()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "flsl"]
    arguments = ["detect", "train", "--stage", "coco", "--random-init", "--config", str(tmp_path / "tiny.yaml")]

    def train(out: Path) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*command, *arguments, "--out", str(out)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = read_history(out / "history.jsonl")
        return [{k: v for k, v in line.items() if k not in ("time", "images_per_second")} for line in lines]

    history = train(tmp_path / "out")
    record = json.loads((tmp_path / "out/metrics.json").read_text())
    assert "coco/segm/AP" in record["metrics"]
    # every other image is predicted by another rank
    found = [entry["image_id"] for entry in json.loads((tmp_path / "out/detections.json").read_text())]
    assert list(dict.fromkeys(found)) == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in history if line["kind"] == "step"] == [3, 6]
    # resumed after step 4, in the middle of a line
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    (tmp_path / "again/checkpoints/step-000000006.pth").unlink()
    assert train(tmp_path / "again") == history


def test_changed_settings_start_anew_and_keep_the_old_files(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("coco", tiny_experiment(tiny), RANDOM, out, "base")
    run("coco", tiny_experiment(tiny, "detection.coco.learning_rate=1e-3"), RANDOM, out, "base")
    kept = list(out.glob("superseded-*"))
    assert len(kept) == 1
    assert (kept[0] / "model.pth").exists()
    assert len(read_history(out / "history.jsonl")) == len(read_history(kept[0] / "history.jsonl"))


def test_changed_images_start_anew_where_they_were_checked(tiny: Path, tmp_path: Path) -> None:
    experiment, out = tiny_experiment(tiny, f"results={tmp_path / 'results'}"), tmp_path / "out"
    assert experiment.data.coco is not None
    weights = []
    for change in ("none", "times", "pixels"):
        image = tiny / "images/000.png"
        if change == "pixels":
            Image.new("RGB", (56, 64), "green").save(image)
        image.touch()
        check_data(experiment.data.coco, tmp_path / "results/tiny/data/coco")
        run("coco", experiment, RANDOM, out, "base")
        weights.append(load_model(out / "model.pth")[0].weights["roi_heads.box_head.fc6.weight"])
        assert len(list(out.glob("superseded-*"))) == (change == "pixels")
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_detectron2_missing_is_one_line_that_says_how_to_install_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "detectron2" else found(name))
    with pytest.raises(UserError, match=re.escape("detection.engine: detectron2 is not installed; install it with")):
        run("coco", tiny_experiment(tiny, "detection.engine=detectron2"), RANDOM, tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_full_is_one_line_that_names_the_settings(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.17 GiB.")

    monkeypatch.setattr("flsl.detect.stage.train_with", full)
    with pytest.raises(UserError, match=re.escape("detection.coco.batch_size, test_batch_size: too many images")):
        run("coco", tiny_experiment(tiny), RANDOM, tmp_path / "out", "base")


def test_wrong_model_files_and_encoders_get_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state": torch.zeros(2)}, tmp_path / "other.pth")
    files = ["--annotations", str(tiny / "coco.json"), "--images", str(tiny / "images"), "--out"]
    predict = ["detect", "predict", *files, str(tmp_path / "found.json"), "--model"]
    assert main([*predict, str(tmp_path / "other.pth")]) == 2
    assert "is no detector; a model.pth of `flsl detect train` is expected" in capsys.readouterr().err
    assert main([*predict, str(tmp_path / "missing.pth")]) == 2
    with pytest.raises(UserError, match="patch size is 32"):
        run("coco", tiny_experiment(tiny), EncoderChoice(model="vit_small_patch32_224", random=True), tmp_path, "x")
    with pytest.raises(UserError, match="--backbone: name the encoder"):
        run("coco", tiny_experiment(tiny), EncoderChoice(), tmp_path, "x")
    with pytest.raises(UserError, match=r"data.uavdt: the data set is not set"):
        run("uavdt", tiny_experiment(tiny), RANDOM, tmp_path, "x")

"""The probes' commands: what they write, and that each mistake is one line with exit code 2 and leaves nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flsl.cli import main

SETTINGS = [
    "features.resize=36",
    "features.crop=32",
    "knn.k=[3,10]",
    "aligned_knn.k=[5]",
    "linear.learning_rates=[0.1,1.0]",
    "linear.blocks=[1,2]",
    "linear.epochs=2",
    "linear.batch_size=16",
    "compute.workers=0",
    "compute.device=cpu",
    "pretrain.encoder.patch_size=8",
    "pretrain.encoder.width=32",
    "pretrain.encoder.depth=3",
    "pretrain.encoder.heads=2",
    "pretrain.views.teacher_size=32",
    "pretrain.views.global_size=32",
    "pretrain.views.local_size=16",
]


def record(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def write_boxes(root: Path) -> None:
    """Whole images as boxes."""
    with (root / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "x0", "y0", "x1", "y1"])
        for path in sorted(root.glob("*/*/*.png")):
            width, height = Image.open(path).size
            writer.writerow([path.relative_to(root).as_posix(), 0, 0, width, height])


def test_all_probes_of_one_backbone(
    image_folder: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_boxes(image_folder)
    encoder = ["--backbone", str(backbone_file), "--images", str(image_folder)]
    assert main(["features", *encoder, "--out", str(tmp_path / "f"), "--name", "mine", *SETTINGS]) == 0
    assert main(["knn", "--features", str(tmp_path / "f"), "--out", str(tmp_path / "knn"), *SETTINGS]) == 0
    assert main(["linear", *encoder, "--out", str(tmp_path / "linear"), *SETTINGS]) == 0
    boxes = ["--boxes", "boxes.csv"]
    assert main(["aligned-knn", *encoder, *boxes, "--out", str(tmp_path / "aligned"), *SETTINGS]) == 0
    found = {name: record(tmp_path / name) for name in ("f", "knn", "linear", "aligned")}
    assert [found[name]["stage"] for name in found] == ["features", "knn", "linear", "aligned_knn"]
    assert [found[name]["run"] for name in found] == ["mine", "mine", "base", "base"]
    printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    for stage in found.values():
        for name, value in stage["metrics"].items():
            assert printed[name] == f"{value:.2f}"


def test_knn_of_an_encoder_extracts_first(image_folder: Path, backbone_file: Path, tmp_path: Path) -> None:
    arguments = ["--backbone", str(backbone_file), "--images", str(image_folder)]
    assert main(["features", *arguments, "--out", str(tmp_path / "f"), *SETTINGS]) == 0
    assert main(["knn", "--features", str(tmp_path / "f"), "--out", str(tmp_path / "two"), *SETTINGS]) == 0
    assert main(["knn", *arguments, "--out", str(tmp_path / "one"), *SETTINGS]) == 0
    assert record(tmp_path / "one")["metrics"] == record(tmp_path / "two")["metrics"]
    assert record(tmp_path / "one" / "features")["stage"] == "features"


def test_untrained_encoders_are_made_from_the_seed(image_folder: Path, tmp_path: Path) -> None:
    found = []
    for number, extra in enumerate(([], [], ["seed=1"])):
        out = tmp_path / str(number)
        arguments = ["--random-init", "--images", str(image_folder), "--out", str(out)]
        assert main(["knn", *arguments, *SETTINGS, *extra]) == 0
        assert record(out)["run"] == "untrained"
        found.append((out / "features" / "val.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_any_timm_model_and_its_checkpoint(image_folder: Path, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    size = ["features.resize=40", "features.crop=32", "knn.k=[3]", "compute.workers=0"]
    arguments = ["--model", "test_vit", "--images", str(image_folder)]
    weights = ["--checkpoint", str(tmp_path / "weights.pth")]
    assert main(["knn", *arguments, *weights, "--out", str(tmp_path / "a"), *size]) == 0
    assert record(tmp_path / "a")["run"] == "test_vit"
    inputs = record(tmp_path / "a" / "features")["provenance"]["inputs"]
    assert list(inputs) == [str(tmp_path / "weights.pth")]
    assert main(["knn", *arguments, "--random-init", "--out", str(tmp_path / "b"), *size]) == 0
    assert record(tmp_path / "b")["run"] == "test_vit-untrained"


def test_the_manifests_images_and_boxes_are_used(
    image_folder: Path, backbone_file: Path, make_split: Callable, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    for split, seed in (("train", 1), ("val", 2)):
        make_split(root / split, 4, seed=seed)
    write_boxes(root)
    (root / "train" / "ant" / "broken.png").write_bytes(b"no image")
    config = tmp_path / "config.yaml"
    config.write_text(f"project: test\ndata: {{images: {{root: {root}, boxes: boxes.csv}}}}\n")
    out = tmp_path / "data"
    assert main(["data", "check", "images", "--config", str(config), "--out", str(out)]) == 0
    arguments = ["--config", str(config), "--backbone", str(backbone_file), "--images", str(out)]
    assert main(["aligned-knn", *arguments, "--out", str(tmp_path / "aligned"), *SETTINGS]) == 0
    assert record(tmp_path / "aligned")["images"]["train"] == {"used": 24, "without_box": 0, "box_outside_crop": 0}
    inputs = record(tmp_path / "aligned")["provenance"]["inputs"]
    assert set(inputs) == {str(out / "manifest.json"), str(backbone_file)}


@pytest.fixture
def mistakes(image_folder: Path, backbone_file: Path, tmp_path: Path, make_split: Callable) -> dict[str, str]:
    """Folders and files for the table of mistakes, by the names that stand in it."""
    for split in ("train", "val"):
        make_split(tmp_path / "single" / split, 2, ("only",))
        make_split(tmp_path / "unlabelled" / split, 2, ("",))
    make_split(tmp_path / "strange" / "train", 2, ("a", "b"))
    make_split(tmp_path / "strange" / "val", 2, ("a", "c"))
    make_split(tmp_path / "empty" / "train", 2, ("a", "b"))
    (tmp_path / "empty" / "val").mkdir()
    make_split(tmp_path / "broken" / "train", 2, ("a", "b"))
    make_split(tmp_path / "broken" / "val", 2, ("a", "b"))
    (tmp_path / "broken" / "val" / "a" / "001.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "wrong.safetensors").write_bytes(b"nonsense")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "image.png")
    names = ("single", "unlabelled", "strange", "empty", "broken", "wrong.safetensors", "other.pth", "image.png")
    return {
        **{name.upper(): str(tmp_path / name) for name in names},
        "IMAGES": str(image_folder),
        "BACKBONE": str(backbone_file),
    }


@pytest.mark.parametrize("stage", ["features", "knn", "linear", "aligned-knn"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backbone", "BACKBONE", "--images", "SINGLE"], "holds one class only"),
        (["--backbone", "BACKBONE", "--images", "UNLABELLED"], "have no label"),
        (["--backbone", "BACKBONE", "--images", "STRANGE"], "class 'c' has no training images"),
        (["--backbone", "BACKBONE", "--images", "EMPTY"], "holds no images"),
        (["--backbone", "BACKBONE", "--images", "NOWHERE"], "no such folder"),
        (["--backbone", "NOWHERE", "--images", "IMAGES"], "no such file"),
        (["--backbone", "WRONG.SAFETENSORS", "--images", "IMAGES"], "cannot be read as a safetensors file"),
        (["--backbone", "IMAGE.PNG", "--images", "IMAGES"], "cannot be read as a checkpoint"),
        (["--backbone", "OTHER.PTH", "--images", "IMAGES"], "holds no vision transformer"),
        (["--model", "vit_smal_patch16_224", "--random-init", "--images", "IMAGES"], "timm has no model"),
        (["--model", "resnet18", "--random-init", "--images", "IMAGES"], "--model resnet18"),
        (["--images", "IMAGES"], "--backbone: name the encoder"),
        (["--random-init", "--backbone", "BACKBONE", "--images", "IMAGES"], "--random-init: an untrained encoder"),
        (["--backbone", "BACKBONE", "--images", "IMAGES", "features.crop=36"], "not a multiple of the patch size"),
        (["--backbone", "BACKBONE", "--images", "IMAGES", "features.resize=24"], "larger than the short side"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistakes: dict[str, str],
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    arguments: list[str],
    said: str,
) -> None:
    out = tmp_path / "out"
    boxes = ["--boxes", "boxes.csv"] if stage == "aligned-knn" else []
    named = [mistakes.get(part, part) for part in arguments if "=" not in part]
    overrides = [*SETTINGS, *(part for part in arguments if "=" in part)]
    assert main([stage, *named, *boxes, "--out", str(out), *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flsl: error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("stage", "overrides", "said"),
    [
        ("knn", ["knn.k=[100]"], "knn.k: 100 is more than the 72 training images"),
        ("linear", ["linear.blocks=[9]"], "the last 9 blocks are asked for (linear.blocks, features.blocks)"),
        ("linear", ["linear.crop_scale=[0.5,0.1]"], "linear.crop_scale: a rising range"),
        ("linear", ["linear.blocks=[1,1]"], "linear.blocks: [1, 1] names a value twice"),
        ("aligned-knn", ["aligned_knn.k=[100000]"], "aligned_knn.k: 100000 neighbours are asked for"),
        ("features", ["features.blocks=9"], "the last 9 blocks are asked for"),
    ],
)
def test_a_wrong_setting_is_named(
    image_folder: Path,
    backbone_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    overrides: list[str],
    said: str,
) -> None:
    write_boxes(image_folder)
    boxes = ["--boxes", "boxes.csv"] if stage == "aligned-knn" else []
    arguments = ["--backbone", str(backbone_file), "--images", str(image_folder), "--out", str(tmp_path / "out")]
    assert main([stage, *arguments, *boxes, *SETTINGS, *overrides]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("stage", ["features", "knn", "linear", "aligned-knn"])
def test_a_file_where_the_folder_would_be_is_one_line(
    image_folder: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    write_boxes(image_folder)
    boxes = ["--boxes", "boxes.csv"] if stage == "aligned-knn" else []
    (tmp_path / "file").write_text("mine")
    arguments = ["--backbone", str(backbone_file), "--images", str(image_folder), "--out", str(tmp_path / "file/out")]
    assert main([stage, *arguments, *boxes, *SETTINGS]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flsl: error: ")
    assert "cannot be written" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_an_image_that_cannot_be_read_is_named(
    mistakes: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backbone", mistakes["BACKBONE"], "--images", mistakes["BROKEN"], "--out", str(tmp_path / "out")]
    assert main(["features", *arguments, *SETTINGS]) == 2
    assert "broken/val/a/001.png: not a readable image" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("arguments", [[], ["--features", "x", "--images", "y"]])
def test_knn_takes_features_or_images(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knn", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "--features: give either" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "computes", "settings"),
    [
        ("features", "flsl.probe.features.mean_tokens", "features.batch_size: "),
        ("linear", "flsl.probe.linear.mean_tokens", "linear.batch_size: "),
        ("aligned-knn", "flsl.probe.aligned.top_neighbours", "aligned_knn.memory_mb, features.batch_size: "),
    ],
)
def test_a_gpu_that_is_full_is_one_line_that_names_the_settings(
    command: str,
    computes: str,
    settings: str,
    image_folder: Path,
    backbone_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Of the allocated memory …")

    monkeypatch.setattr(computes, full)
    write_boxes(image_folder)
    boxes = ["--boxes", "boxes.csv"] * (command == "aligned-knn")
    encoder = ["--backbone", str(backbone_file), "--images", str(image_folder), *boxes]
    assert main([command, *encoder, "--out", str(tmp_path / "out"), *SETTINGS]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"flsl: error: {settings}")
    assert told.endswith("CUDA out of memory.")
    assert not (tmp_path / "out/metrics.json").exists()

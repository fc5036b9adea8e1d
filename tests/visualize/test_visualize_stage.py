"""`flsl visualize` as people run it: encoders side by side, epochs, other files, and what cannot be drawn."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from commands import flsl
from PIL import Image
from tiny import COMPUTE, PRETRAIN, write_images

from flsl.config.pretrain import PretrainSettings
from flsl.model.backbone import load_backbone
from flsl.visualize.models import load_model

CONFIG = {
    "project": "test",
    "pretrain": PRETRAIN | {"epochs": 4},
    "visualize": {"images": 3, "patches": 4, "prototypes": 5},
    "compute": COMPUTE | {"keep_epochs": 2},
    "tracking": {"live": False},
}
ALL = {"system.jsonl", "attention.png", "pca.png", "segments.png", "usage.png", "prototypes.png", "metrics.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checked images, and a run that kept its teachers of epochs 0, 2 and 4 (its last)."""
    root = tmp_path_factory.mktemp("visualize")
    write_images(root / "images", val=10)
    (root / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    flsl(root, "data", "check", "images", "--root", "images", "--out", "m")
    flsl(root, "pretrain", "--config", "config.yaml", "--images", "m", "--out", "run/pretrain", "--name", "ours")
    return root


def draw(place: Path, out: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    common = ("visualize", "--config", "config.yaml", "--images", "m", "--out", out)
    return flsl(place, *common, *arguments, check=check)


def record(place: Path, out: str) -> dict[str, dict[str, float]]:
    return json.loads((place / out / "metrics.json").read_text())  # type: ignore[no-any-return]


def test_the_teachers_view_is_that_of_the_checkpoint(place: Path) -> None:
    encoder = ("visualize", "--encoder", "run/pretrain/checkpoint.pth", "--images", "m")
    flsl(place, *encoder, "--out", "alone")
    assert record(place, "alone")["params"]["pixels"] == 32
    flsl(place, *encoder, "--out", "alone", "visualize.size=64")
    assert record(place, "alone")["params"]["pixels"] == 64


def test_epochs_stand_beside_the_run_and_the_pictures_are_the_same_each_time(place: Path) -> None:
    kept = sorted(path.name for path in (place / "run/pretrain/epochs").iterdir())
    assert kept == ["epoch-0000.pth", "epoch-0002.pth", "epoch-0004.pth"]
    draw(place, "one", "--encoder", "run/pretrain/checkpoint.pth", "--epochs")
    assert {path.name for path in (place / "one").iterdir()} == ALL
    made = record(place, "one")
    # the last epoch's is the run's own
    assert list(made["encoders"]) == ["epoch 0", "epoch 2", "ours"]
    # as the config has it, so that the result is not called stale, and what came of it
    assert (made["params"]["size"], made["params"]["pixels"]) == (None, 32)
    figures = made["metrics"]
    assert figures["visualize/prototypes"] == 8
    assert 1 <= figures["visualize/perplexity"] <= 8 / 100 * figures["visualize/prototypes_used"] <= 8
    assert 0 < figures["visualize/pca_variance"] <= 100
    draw(place, "two", "--encoder", "run/pretrain/checkpoint.pth", "--epochs", "visualize.batch_size=3")
    for name in ALL - {"metrics.json", "system.jsonl"}:
        assert (place / "one" / name).read_bytes() == (place / "two" / name).read_bytes()


def test_kept_epoch_is_an_encoder_like_any_other(place: Path) -> None:
    last = load_backbone(place / "run/pretrain/epochs/epoch-0004.pth").vit.state_dict()
    for name, value in load_backbone(place / "run/pretrain/backbone.safetensors").vit.state_dict().items():
        assert torch.equal(value, last[name])


def test_centred_assignments_are_shown_as_in_training(place: Path) -> None:
    common = ("pretrain", "--config", "config.yaml", "--images", "m", "--name", "centred", "pretrain.centering=true")
    flsl(place, *common, "--out", "centred/pretrain")
    folder, cpu = place / "centred/pretrain", torch.device("cpu")
    names = ("epochs/epoch-0004.pth", "checkpoint.pth")
    kept, last = (load_model(folder / name, "", PretrainSettings(), cpu).center for name in names)
    assert kept is not None
    assert last is not None
    assert torch.equal(kept, last)
    assert last.norm() > 1e-3
    # as earlier versions wrote it
    state = torch.load(folder / names[0], weights_only=True)
    del state["objective"]
    torch.save(state, folder / "epochs/old.pth")
    result = draw(place, "old", "--encoder", folder / "epochs/old.pth")
    assert "old.pth: was written without the centre of its assignments" in result.stderr


def test_encoder_without_a_head_has_no_prototypes(place: Path) -> None:
    draw(place, "bare", "--encoder", "run/pretrain/checkpoint.pth")
    draw(place, "bare", "--encoder", "bare=run/pretrain/backbone.safetensors")
    # what an earlier call drew of another encoder is gone
    assert {path.name for path in (place / "bare").iterdir()} == {
        "attention.png",
        "pca.png",
        "metrics.json",
        "system.jsonl",
    }
    assert set(record(place, "bare")["metrics"]) == {
        *("visualize/pca_variance", "visualize/self_attention_keys", "visualize/cross_attention_keys")
    }


def test_chosen_images_of_odd_shapes(place: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (3, 200), (10, 200, 30, 0)).save(tmp_path / "tall.jpg")
    Image.new("LA", (1, 1)).save(tmp_path / "dot.png")
    shown = ("--show", tmp_path / "tall.jpg", "--show", tmp_path / "dot.png")
    common = ("visualize", "--config", "config.yaml", "--out", tmp_path / "out")
    flsl(place, *common, "--encoder", "run/pretrain/checkpoint.pth", *shown)
    assert {path.name for path in (tmp_path / "out").iterdir()} == ALL


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--encoder", "nowhere.pth"], "nowhere.pth: no such file; an encoder to look at is expected there"),
        (["--encoder", "config.yaml"], "config.yaml: cannot be read as a checkpoint"),
        (["--encoder", "torn.pth"], "torn.pth: cannot be read as a checkpoint"),
        (["--encoder", "no-recipe.pth"], "no-recipe.pth: its recipe is not one of a pretraining"),
        (["--encoder", "no-head.pth"], "no-head.pth: its projection head does not fit its own settings"),
        (["--encoder", "other-centre.pth"], "other-centre.pth: its centre has the shape (3,); one value per prototype"),
        (["--encoder", "run/pretrain/checkpoint.pth", "visualize.size=36"], "visualize.size: 36 is not a multiple of"),
        (["--encoder", "run/pretrain/checkpoint.pth", "--show", "x.png"], "x.png: no such file"),
        (["--encoder", "run/pretrain/checkpoint.pth", "--show", "config.yaml"], "config.yaml: not a readable image"),
        (["--encoder", "run/pretrain/checkpoint.pth"] * 2, "two are called 'ours'; name them, e.g. --encoder first="),
        (["--encoder", "run/pretrain/checkpoint.pth", "--images", "run"], "run: holds no images"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(place: Path, arguments: list[str], words: str) -> None:
    whole = (place / "run/pretrain/checkpoint.pth").read_bytes()
    (place / "torn.pth").write_bytes(whole[: len(whole) // 2])
    state = torch.load(place / "run/pretrain/epochs/epoch-0002.pth", weights_only=True)
    torch.save({**state, "recipe": {"pretrain": {}}}, place / "no-recipe.pth")
    bare = {name: value for name, value in state["teacher"].items() if name != "head.prototypes"}
    torch.save({**state, "teacher": bare}, place / "no-head.pth")
    centred = {"pretrain": {**state["recipe"]["pretrain"], "centering": True}}
    torch.save({**state, "recipe": centred, "objective": {"center": torch.zeros(3)}}, place / "other-centre.pth")
    result = draw(place, "refused", *arguments, check=False)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (place / "refused").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written_is_told(place: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = draw(place, str(tmp_path / "out"), "--encoder", "run/pretrain/checkpoint.pth", check=False)
    assert result.returncode == 2
    assert "no permission to write there" in result.stderr


def test_file_in_the_place_of_the_folder_is_told(place: Path) -> None:
    result = draw(place, "config.yaml", "--encoder", "run/pretrain/checkpoint.pth", check=False)
    assert result.returncode == 2
    assert "a file stands where a folder is needed" in result.stderr.splitlines()[-1]


@pytest.mark.real
@pytest.mark.parametrize("folder", ["coco/val2017", "imagenet/train"])
def test_real_photographs(place: Path, real_data: Path, tmp_path: Path, folder: str) -> None:
    arguments = ("--encoder", "run/pretrain/checkpoint.pth", "--images", real_data / folder, "visualize.counted=20")
    flsl(place, "visualize", "--config", "config.yaml", "--out", tmp_path / "out", *arguments)
    assert {path.name for path in (tmp_path / "out").iterdir()} == ALL

"""The linear probe: against one trained by PyTorch alone, stopped and continued, and its choice of the best."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

from flsl.config.data import ImageFolderSettings
from flsl.data.check import check_data
from flsl.data.images import ImageSet
from flsl.model.backbone import load_backbone
from flsl.model.choice import EncoderChoice
from flsl.probe import linear
from flsl.probe.features import extract
from flsl.probe.images import ImageSource
from flsl.probe.knn import classify
from flsl.probe.linear import train
from flsl.probe.loading import CentreCrop, RandomCrop
from flsl.runtime import checkpoint
from flsl.runtime.errors import UserError


def block_features(backbone_file: Path, crops: torch.Tensor, blocks: int) -> torch.Tensor:
    backbone = load_backbone(backbone_file)
    mean, std = torch.tensor(backbone.mean)[:, None, None], torch.tensor(backbone.std)[:, None, None]
    with torch.no_grad():
        tokens = backbone.block_tokens((crops / 255 - mean) / std, blocks)
    return torch.cat([block.mean(1) for block in tokens], dim=1)


def weights(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in ("weight", "bias")}


def run(settings: Any, image_folder: Path, backbone_file: Path, out: Path) -> dict[str, Any]:
    return train(settings, EncoderChoice(backbone_file), ImageSource(image_folder), out, "base")


def test_the_best_probe_is_what_pytorch_trains_alone_on_the_same_crops(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path
) -> None:
    settings = make_settings(linear={"learning_rates": [0.02, 0.5], "weight_decay": 0.001}, seed=7)
    record = run(settings, image_folder, backbone_file, tmp_path)
    rate, blocks = record["best"]["learning_rate"], record["best"]["blocks"]

    images, val = ImageSet.scan(image_folder, "train"), ImageSet.scan(image_folder, "val")
    make = RandomCrop(7, 32, (0.08, 1.0), flip=True)
    layer = nn.Linear(blocks * 32, 6)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # the grid draws the weights of each feature choice in their order
        for count in (1, 2)[: (1, 2).index(blocks) + 1]:
            first = 0.01 * torch.randn(count * 32, 1, 6, generator=generator)
        layer.weight.copy_(first[:, 0].T)
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), rate * 16 / 256, momentum=0.9, weight_decay=0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3 * 5)
    for epoch in range(3):
        order = np.random.default_rng((7, epoch, 0, 2)).permutation(72)
        for start in range(0, 72, 16):
            chosen = order[start : start + 16].tolist()
            crops = torch.stack([make(images.pixels(i), (epoch, i)) for i in chosen])
            loss = F.cross_entropy(
                layer(block_features(backbone_file, crops, blocks)), torch.from_numpy(images.labels[chosen])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    trained = weights(tmp_path / "linear.safetensors")
    torch.testing.assert_close(trained["weight"], layer.weight.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(trained["bias"], layer.bias.detach(), rtol=1e-3, atol=1e-5)

    crop = CentreCrop(36, 32)
    crops = torch.stack([crop(Image.open(val.path(i)).convert("RGB"), (0, i)) for i in range(len(val))])
    with torch.no_grad():
        logits = layer(block_features(backbone_file, crops, blocks))
    truth = torch.from_numpy(val.labels)
    top5 = (logits.topk(5).indices == truth[:, None]).any(1)
    assert record["metrics"]["linear/top1"] == pytest.approx(100 * (logits.argmax(1) == truth).double().mean().item())
    assert record["metrics"]["linear/top5"] == pytest.approx(100 * top5.double().mean().item())


def test_all_probes_are_recorded_and_the_best_is_reported(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path
) -> None:
    record = run(make_settings(), image_folder, backbone_file, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    grid, names = record["grid"], ("ant", "bee", "cow", "dog", "elk", "fox")
    assert [(row["blocks"], row["learning_rate"]) for row in grid] == [(b, r) for b in (1, 2) for r in (0.01, 0.1, 1.0)]
    best = max(grid, key=lambda row: row["top1"])
    assert record["metrics"] == {"linear/top1": best["top1"], "linear/top5": best["top5"]}
    assert record["best"] == {"blocks": best["blocks"], "learning_rate": best["learning_rate"]}
    assert best["top1"] > 40  # chance is 16.7
    assert len({row["top1"] for row in grid}) > 1
    assert record["chosen_on"] == "validation"
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 5), (2, 10), (3, 15)]
    assert lines[-1]["top1"] == best["top1"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not (tmp_path / "checkpoint.pth").exists()
    probe = tmp_path / "linear.safetensors"
    with safetensors.safe_open(probe, "pt") as file:
        assert json.loads(file.metadata()["probe"]) == {**best, "classes": list(names)}
    assert probe.stat().st_mode == (tmp_path / "metrics.json").stat().st_mode  # as readable for others


def test_the_encoder_runs_once_a_batch_for_the_whole_grid(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flsl.model.backbone import Backbone

    block_tokens, seen = Backbone.block_tokens, []

    def count(self: Backbone, images: torch.Tensor, last_n: int) -> list[torch.Tensor]:
        seen.append(len(images))
        return block_tokens(self, images, last_n)

    monkeypatch.setattr(Backbone, "block_tokens", count)
    run(make_settings(), image_folder, backbone_file, tmp_path)
    assert sum(seen) == 30 + 3 * 72  # validation once, training once an epoch


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_stage_continues_bit_for_bit(
    image_folder: Path,
    backbone_file: Path,
    make_settings: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    settings = make_settings()
    straight = run(settings, image_folder, backbone_file, tmp_path / "straight")
    steps = linear.LinearGrid.step
    taken = []

    def killed(self: Any, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        taken.append(1)
        if self.done == 5 * epoch + 2:
            raise KeyboardInterrupt
        return steps(self, features, labels)

    with monkeypatch.context() as patch:
        patch.setattr(linear.LinearGrid, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(settings, image_folder, backbone_file, tmp_path / "halted")
        assert not (tmp_path / "halted" / "metrics.json").exists()
        taken.clear()
        patch.setattr(linear.LinearGrid, "step", lambda *args: (taken.append(1), steps(*args))[1])
        resumed = run(settings, image_folder, backbone_file, tmp_path / "halted")
    assert len(taken) == 15 - 5 * epoch  # only the epochs that were missing
    assert resumed["grid"] == straight["grid"]
    files = [tmp_path / name / "linear.safetensors" for name in ("straight", "halted")]
    assert files[0].read_bytes() == files[1].read_bytes()
    histories = [
        [{**json.loads(line), "time": ""} for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("straight", "halted")
    ]
    assert histories[0] == histories[1]


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_not_continued(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def keep(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        kept.append(path.read_bytes())

    save = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", keep)
        run(make_settings(), image_folder, backbone_file, tmp_path / "one")
    fresh = run(make_settings(seed=1), image_folder, backbone_file, tmp_path / "two")
    for found in (kept[0], kept[0][:1000], b""):
        (tmp_path / "two" / "checkpoint.pth").write_bytes(found)
        again = run(make_settings(seed=1), image_folder, backbone_file, tmp_path / "two")
        assert again["grid"] == fresh["grid"]


def test_a_checkpoint_of_other_pixels_is_not_continued(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, save = [], checkpoint.save

    def keep(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        kept.append(path.read_bytes())

    images, manifest = tmp_path / "images", tmp_path / "manifest"
    shutil.copytree(image_folder, images)
    check_data(ImageFolderSettings(root=str(images)), manifest)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", keep)
        run(make_settings(), manifest, backbone_file, tmp_path / "one")
    changed = min(path for path in (images / "train").rglob("*") if path.is_file())
    with Image.open(changed) as image:
        ImageOps.invert(image.convert("RGB")).save(changed)
    check_data(ImageFolderSettings(root=str(images)), manifest)
    fresh = run(make_settings(), manifest, backbone_file, tmp_path / "two")
    (tmp_path / "two" / "checkpoint.pth").write_bytes(kept[-1])
    again = run(make_settings(), manifest, backbone_file, tmp_path / "two")
    assert again["grid"] == fresh["grid"]
    assert len((tmp_path / "two/history.jsonl").read_text().splitlines()) == len(kept)
    files = [tmp_path / name / "linear.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_probes_that_diverge_are_marked_and_all_of_them_an_error(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path
) -> None:
    settings = make_settings(linear={"learning_rates": [0.1, 1e40], "blocks": [1]})
    record = run(settings, image_folder, backbone_file, tmp_path / "one")
    assert record["grid"][1] == {"blocks": 1, "learning_rate": 1e40, "top1": None, "top5": None}
    assert record["best"]["learning_rate"] == 0.1
    with pytest.raises(UserError, match=r"linear\.learning_rates: all 1 probes diverged"):
        run(
            make_settings(linear={"learning_rates": [1e40], "blocks": [1]}),
            image_folder,
            backbone_file,
            tmp_path / "two",
        )
    assert not (tmp_path / "two" / "metrics.json").exists()


def test_names_that_are_no_text_are_names(
    make_split: Callable, make_settings: Callable, backbone_file: Path, tmp_path: Path
) -> None:
    odd = os.fsdecode(b"cl\xfe")
    for split in ("train", "val"):
        make_split(tmp_path / "images" / split, 3, ("a", odd))
    settings = make_settings(knn={"k": [2]}, linear={"epochs": 1})
    source, choice = ImageSource(tmp_path / "images"), EncoderChoice(backbone_file)
    extract(settings, choice, source, tmp_path / "features", "base")
    classify(settings, tmp_path / "features", tmp_path / "knn")
    assert b"cl\xfe,3," in (tmp_path / "knn/per_class.csv").read_bytes()
    run(settings, tmp_path / "images", backbone_file, tmp_path / "linear")
    assert (tmp_path / "linear/metrics.json").is_file()


def test_more_blocks_than_the_encoder_has_is_refused(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path
) -> None:
    (tmp_path / "metrics.json").write_text("{}")  # an earlier call's, which stays
    with pytest.raises(UserError, match=r"the last 4 blocks are asked for .*, but .* has 3"):
        run(make_settings(linear={"blocks": [1, 4]}), image_folder, backbone_file, tmp_path)

"""What can be trained on is taken, the rest is counted or refused; what the weights depend on."""

from __future__ import annotations

import gc
import json
import multiprocessing
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_coco import tiny_experiment
from torch import nn
from torch.utils.data._utils.pin_memory import pin_memory

from flsl.config.detect import RecipeSettings
from flsl.data.check import check_data
from flsl.detect import stage
from flsl.detect.augment import Target
from flsl.detect.coco_files import Annotations, read_annotations
from flsl.detect.dataset import Sample, TrainingImages, loader, training_set
from flsl.detect.finetune import Task
from flsl.detect.optimiser import layer_of, learning_rate, parameter_groups, set_rate
from flsl.model.choice import EncoderChoice
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import StageRecord

CPU = torch.device("cpu")


def changed(root: Path, change: Any) -> Any:
    data = json.loads((root / "coco.json").read_text())
    change(data)
    (root / "changed.json").write_text(json.dumps(data))
    return read_annotations(root / "changed.json")


def test_skipped_and_counted(tiny: Path) -> None:
    def break_some(data: dict[str, Any]) -> None:
        a = data["annotations"]
        a[0]["bbox"] = [500, 10, 5, 5]
        a[1]["bbox"] = [5, 10, 0, 5]
        a[2]["segmentation"] = [[1, 2, 3, 4]]
        a[4]["segmentation"] = {"size": [64, 56], "counts": "P"}
        a[5]["iscrowd"] = 1
        a[6]["image_id"] = 77
        a[8]["category_id"] = 4

    found = training_set(changed(tiny, break_some), tiny / "images", masks=True)
    assert found.skipped == {
        "annotations of unknown images": 1,
        "annotations of unknown categories": 1,
        "boxes outside their image or of no area": 2,
        "broken segmentations": 2,
        "crowds": 1,
        "images without objects": 2,
    }
    assert sum(map(len, found.boxes)) == 5
    assert {label for labels in found.labels for label in labels.tolist()} <= {1, 2}
    boxes_only = training_set(changed(tiny, break_some), tiny / "images", masks=False)
    assert sum(map(len, boxes_only.boxes)) == 7


def test_missing_images_nothing_to_train_on_and_leaving_paths_are_refused(tiny: Path) -> None:
    (tiny / "images/001.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 6 images of .* are missing, e.g. 001.png"):
        training_set(read_annotations(tiny / "coco.json"), tiny / "images", masks=True)
    bad = changed(tiny, lambda data: data["images"][0].update(file_name="../coco.json"))
    with pytest.raises(UserError, match="leaves"):
        training_set(bad, tiny / "images", masks=True)
    with pytest.raises(UserError, match="no image has an object to train on"):
        training_set(changed(tiny, lambda data: data.update(annotations=[], images=[])), tiny / "images", True)


def test_an_image_of_another_size_or_unreadable_gets_one_line(tiny: Path) -> None:
    data = training_set(read_annotations(tiny / "coco.json"), tiny / "images", masks=False)
    recipe = RecipeSettings(batch_size=2)
    Image.new("RGB", (10, 12)).save(tiny / "images/000.png")
    with pytest.raises(UserError, match=r"000.png: is 10×12 pixels, but its annotations say 56×64"):
        list(loader(TrainingImages(data, recipe, 0), 0, CPU, batch_sampler=[[(0, 0), (0, 1)]]))
    (tiny / "images/000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"000.png"):
        list(loader(TrainingImages(data, recipe, 0), 0, CPU, batch_sampler=[[(0, 0)]]))


@pytest.mark.parametrize("damage", ["truncated", "of another size"])
def test_what_the_check_found_stops_the_stage_before_it_trains(tiny: Path, tmp_path: Path, damage: str) -> None:
    (tiny / "val").mkdir()
    for path in (tiny / "images").iterdir():
        (tiny / "val" / path.name).write_bytes(path.read_bytes())
    victim = tiny / "val" / "003.png"
    whole = victim.read_bytes()
    if damage == "truncated":
        victim.write_bytes(whole[:-100])
    else:
        Image.new("RGB", (9, 9)).save(victim)
    experiment = tiny_experiment(tiny, "data.coco.val_images=val", f"results={tmp_path}", "detection.coco.epochs=1")
    settings = experiment.data.coco
    assert settings is not None
    check_data(settings, tmp_path / "tiny" / "data" / "coco")
    out = tmp_path / "tiny" / "runs" / "base" / "coco"
    with pytest.raises(UserError, match=f"003.png: .*{'truncated' if damage == 'truncated' else '9×9'}"):
        stage.run("coco", experiment, EncoderChoice(random=True), out, "base")
    assert not (out / "history.jsonl").exists()
    # mended since, it stops nothing
    victim.write_bytes(whole)
    assert stage.run("coco", experiment, EncoderChoice(random=True), out, "base")


def test_each_image_has_the_segmentations_of_its_file(tiny: Path) -> None:
    def vary(data: dict[str, Any]) -> None:
        data["annotations"].reverse()  # the images' order is that of their ids
        data["annotations"][3]["segmentation"] = {"size": [64, 56], "counts": [100, 20, 64 * 56 - 120]}

    truth = changed(tiny, vary)
    data = training_set(truth, tiny / "images", masks=True)
    assert data.segmentations is not None
    assert len(data.segmentations) == len(data.images) == 6
    for index, image in enumerate(data.images):
        wanted = [entry["segmentation"] for entry in truth.annotations if entry["image_id"] == image["id"]]
        assert json.loads(data.segmentations[index]) == wanted


def test_what_training_does_not_need_of_the_annotations_is_let_go(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Path] = []

    def train(*_: Any) -> None:
        alive.extend(one.path for one in gc.get_objects() if type(one) is Annotations and one.path.parent == tiny)

    monkeypatch.setattr(stage, "train_with", train)
    (tiny / "train.json").write_bytes((tiny / "coco.json").read_bytes())
    experiment = tiny_experiment(tiny, "data.coco.train_annotations=train.json")
    assert stage.run("coco", experiment, EncoderChoice(random=True), tiny / "out", "base") is None
    assert alive == [tiny / "coco.json"]


@pytest.mark.parametrize("masks", [True, False])
def test_batches_are_of_types_that_torch_pins(tiny: Path, monkeypatch: pytest.MonkeyPatch, masks: bool) -> None:
    data = training_set(read_annotations(tiny / "coco.json"), tiny / "images", masks)
    (batch,) = loader(TrainingImages(data, RecipeSettings(batch_size=2), 0), 0, CPU, batch_sampler=[[(0, 0), (0, 1)]])
    copies: list[torch.Tensor] = []
    # pinning needs a GPU; what is to be pinned does not
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: copies.append(tensor.clone()) or copies[-1])
    pinned = pin_memory(batch)
    assert len(copies) == 2 * (3 + masks)
    for sample, other in zip(batch, pinned, strict=True):
        assert type(other) is Sample
        assert type(other.target) is Target
        # torch 2.6 makes a plain tuple a list
        assert (other.image_id, tuple(other.size)) == (sample.image_id, sample.size)
        for name, value in {**other.target._asdict(), "image": other.image}.items():
            assert value is None or any(value is one for one in copies), name
        assert torch.equal(other.image, sample.image)


def test_nothing_is_pinned_for_the_cpu_of_a_machine_with_gpus(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_set(read_annotations(tiny / "coco.json"), tiny / "images", masks=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (batch,) = loader(TrainingImages(data, RecipeSettings(), 0), 0, CPU, batch_sampler=[[(0, 0)]])
    assert len(batch) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_loading_outlives_what_asks_the_stage_to_stop(tiny: Path, signum: signal.Signals) -> None:
    data = training_set(read_annotations(tiny / "coco.json"), tiny / "images", masks=True)
    keys = [[(epoch, 0)] for epoch in range(20)]
    batches = loader(TrainingImages(data, RecipeSettings(), 0), 1, CPU, batch_sampler=keys)
    next(batches)
    (worker,) = multiprocessing.active_children()
    subprocess.run(["kill", f"-{int(signum)}", str(worker.pid)], check=True)  # from elsewhere, as by Ctrl-C
    assert len(list(batches)) == 19


def test_samples_depend_on_seed_epoch_and_index_alone(tiny: Path) -> None:
    data = training_set(read_annotations(tiny / "coco.json"), tiny / "images", masks=True)
    recipe = RecipeSettings(short_sides=[40, 50, 60], long_side=99, crop_short_sides=[50], crop_range=[20, 40])
    first, second = TrainingImages(data, recipe, 1), TrainingImages(data, recipe, 1)
    for key in ((0, 0), (3, 2)):
        a, b = first[key], second[key]
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.target.boxes, b.target.boxes)
        assert a.target.masks is not None
        assert b.target.masks is not None
        assert torch.equal(a.target.masks, b.target.masks)
    shapes = {tuple(first[(epoch, 0)].image.shape) for epoch in range(8)}
    assert len(shapes) > 1


def test_all_that_the_weights_depend_on_tells_checkpoints_apart(tiny: Path) -> None:
    experiment = tiny_experiment(tiny)
    truth = read_annotations(tiny / "coco.json")
    data = training_set(truth, tiny / "images", masks=True)
    settings = experiment.detection
    task = Task(
        "coco", settings, settings.coco, experiment.compute, 0, data, [], truth, tiny / "images", True, tiny, "encoder",
        StageRecord("coco", "base", {}),
    )  # fmt: skip
    others = [
        replace(task, backbone="another"),
        replace(task, seed=1),
        replace(task, content=["images"]),
        replace(task, train=replace(data, digest="other")),
        replace(task, recipe=settings.coco.model_copy(update={"epochs": 9})),
        replace(task, settings=settings.model_copy(update={"engine": "detectron2"})),
    ]
    assert len({json.dumps(one.identity, sort_keys=True) for one in (task, *others)}) == 7
    watched = settings.coco.model_copy(update={"evaluate_every": 5, "images_shown": 9})
    assert replace(task, recipe=watched).identity == task.identity
    looser = settings.model.model_copy(
        update={"score_threshold": 0.3, "detections": 7, "proposals_test": 9, "activation_checkpointing": True}
    )
    assert replace(task, settings=settings.model_copy(update={"model": looser})).identity == task.identity
    deeper = settings.model.model_copy(update={"mask_convs": 9})
    assert replace(task, settings=settings.model_copy(update={"model": deeper})).identity != task.identity


def test_schedule_and_groups() -> None:
    recipe = RecipeSettings(learning_rate=1e-4, batch_size=16, warmup_steps=10, milestones=[2, 3], layer_decay=0.5)
    rates = [learning_rate(step, 20, recipe) for step in (0, 5, 10, 39, 40, 59, 60)]
    assert rates == pytest.approx([2e-7, 2e-4 * 0.5005, 2e-4, 2e-4, 2e-5, 2e-5, 2e-6])
    assert layer_of("backbone.encoder.patch_embed.proj.weight", 2) == 0
    assert layer_of("backbone.encoder.blocks.1.mlp.fc1.weight", 2) == 2
    assert layer_of("rpn.head.conv.weight", 2) == 3

    encoder = nn.Module()
    encoder.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
    encoder.blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.encoder = encoder
    model.head = nn.Linear(4, 2)
    groups = parameter_groups(model, recipe, depth=2)
    optimiser = torch.optim.AdamW(groups, lr=0.0)
    set_rate(optimiser, 1.0)
    found = {id(p): (group["weight_decay"], group["lr"]) for group in optimiser.param_groups for p in group["params"]}
    assert found[id(encoder.pos_embed)] == (0.0, 0.125)
    assert found[id(encoder.blocks[0].weight)] == (0.05, 0.25)
    assert found[id(encoder.blocks[1].weight)] == (0.0, 0.5)
    assert found[id(model.head.weight)] == (0.05, 1.0)
    assert found[id(model.head.bias)] == (0.0, 1.0)
    assert len(found) == len(list(model.parameters()))
    assert np.isclose(sum(len(group["params"]) for group in groups), len(found))

"""What may be submitted: what its results depend on, what it asks for, and what its settings are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.launch.request import processes, tasks_per_node
from flsl.launch.work import Work, detection, for_detection, pretraining
from flsl.model.choice import EncoderChoice
from flsl.runtime.errors import UserError

MANIFEST = {"kind": "images", "root": "r", "splits": {}, "revision": "first", "files": 1, "content_sha256": "1"}


def experiment(**changes: Any) -> Experiment:
    return check(Experiment, {"project": "p", **changes}, "here")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an encoder, a checked image set, and the annotations of COCO and UAVDT."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "backbone").write_text("weights")
    for name in ("coco/annotations/instances_train2017.json", "coco/annotations/instances_val2017.json",
                 "uavdt/UAV-benchmark-MOTD_v1.0/GT/M0203_gt_whole.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def coco(**changes: Any) -> Work:
    asked = experiment(data={"coco": {"root": "coco"}, "uavdt": {"root": "uavdt"}}, **changes)
    return detection(asked, "coco", EncoderChoice(Path("backbone")), Path("out"), "base")


def test_a_detector_depends_on_its_recipe_its_data_and_its_encoder(data: Path) -> None:
    first = coco().recipe
    assert coco(knn={"k": [7]}, compute={"device": "cpu"}, cluster={"nodes": 3}).recipe == first
    assert coco(detection={"uavdt": {"epochs": 2}}).recipe == first
    changed = [coco(seed=1).recipe, coco(detection={"coco": {"epochs": 2}}).recipe]
    for name in ("backbone", "coco/annotations/instances_val2017.json"):
        (data / name).write_text("other")
        changed.append(coco().recipe)
    assert len({first, *changed}) == 5


def test_a_detector_depends_on_its_images_where_they_were_checked(data: Path) -> None:
    manifest = data / "results/p/data/coco/manifest.json"
    manifest.parent.mkdir(parents=True)
    recipes = {coco().recipe}
    for content in ("one", "two"):
        about = {
            "kind": "coco",
            "root": "coco",
            "splits": {},
            "revision": "first",
            "files": 1,
            "content_sha256": content,
        }
        manifest.write_text(json.dumps(about))
        recipes.add(coco().recipe)
    assert len(recipes) == 3


def test_ignore_boxes_and_a_checkpoint_for_a_model_count_and_reach_the_job(data: Path) -> None:
    asked = experiment(data={"uavdt": {"root": "uavdt"}})

    def work() -> Work:
        return detection(asked, "uavdt", EncoderChoice(model="vit", checkpoint=Path("backbone")), Path("out"), "base")

    first = work()
    assert (first.inputs["model"], first.inputs["checkpoint"]) == ("vit", str(data / "backbone"))
    (data / "uavdt/UAV-benchmark-MOTD_v1.0/GT/M0203_gt_ignore.txt").write_text("1,1,0,0,9,9,1,1,1")
    second = work()
    (data / "backbone").write_text("others")
    assert len({first.recipe, second.recipe, work().recipe}) == 3
    (data / "backbone").unlink()
    with pytest.raises(UserError, match="backbone: no such file; an encoder's weights"):
        work()


def test_an_untrained_encoder_is_another_where_its_settings_are() -> None:
    untrained = EncoderChoice(random=True)
    first = untrained.digest(experiment())
    assert untrained.digest(experiment(knn={"k": [7]})) == first
    assert untrained.digest(experiment(pretrain={"encoder": {"position_strength": 0.5}})) != first
    # timm's own are built without them
    named = EncoderChoice(model="vit_tiny_patch16_224", random=True)
    assert named.digest(experiment()) == named.digest(experiment(pretrain={"encoder": {"position_strength": 0.5}}))


def test_a_batch_that_does_not_fit_is_refused_before_it_waits_in_a_queue(data: Path) -> None:
    about = {**MANIFEST, "splits": {"train": {"images": 24, "content_sha256": "1"}}}
    (data / "images/manifest.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"pretrain\.batch_size: 1000 is more than the 24 training images"):
        pretraining(experiment(pretrain={"batch_size": 1000}), Path("images"), Path("out"), "base")
    fitting = experiment(pretrain={"batch_size": 8}, cluster={"nodes": 4})
    assert pretraining(fitting, Path("images"), Path("out"), "base").stage == "pretrain"


def test_the_outputs_are_those_of_the_rules(data: Path) -> None:
    asked = experiment(data={"uavdt": {"root": "uavdt"}})
    uavdt = detection(asked, "uavdt", EncoderChoice(random=True), Path("out"), "base")
    assert uavdt.results == ("model.pth", "detections.json", "test.json", "metrics.json")
    assert coco().results == ("model.pth", "detections.json", "metrics.json")
    work = pretraining(asked, Path("images"), Path("out"), "base")
    assert (work.results[1], work.epochs, Path(work.out)) == ("backbone.safetensors", 300, data / "out")


def test_a_detector_asks_for_a_shape_of_its_own(data: Path) -> None:
    cluster = {"nodes": 4, "partition": "gpu", "memory_gb": 200.0, "detection": {"nodes": 2, "gpus_per_node": 8}}
    asked = experiment(cluster=cluster)
    assert (processes(asked), processes(for_detection(asked))) == (4, 16)
    shape = for_detection(asked).cluster
    assert (shape.partition, shape.memory_gb, shape.nodes, shape.minutes) == ("gpu", 32.0, 2, 2880)
    # the job's own processes read the same
    again = check(Experiment, coco(cluster=cluster).settings, "the job")
    assert (again.cluster.nodes, tasks_per_node(again)) == (2, 8)
    # by default one process, which the workflow does not submit
    assert processes(for_detection(experiment())) == processes(for_detection(experiment(cluster={"nodes": 4}))) == 1


def test_errors_name_the_setting_that_holds(data: Path) -> None:
    said = UserError("cluster.nodes: 4 are more than the 3; cluster.partition, cluster.requeues: 2")
    expected = "cluster.detection.nodes: 4 are more than the 3; cluster.partition, cluster.requeues: 2"
    assert str(coco().in_its_words(said)) == expected
    assert str(pretraining(experiment(), Path("images"), Path("out"), "base").in_its_words(said)) == str(said)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("backbone", "backbone: no such file; an encoder's weights"),
        ("coco/annotations/instances_val2017.json", "instances_val2017.json: no such file; COCO's annotations"),
    ],
)
def test_missing_files_are_told_before_anything_is_submitted(data: Path, remove: str, message: str) -> None:
    (data / remove).unlink()
    with pytest.raises(UserError, match=message):
        coco()


def test_an_encoder_must_be_named(data: Path) -> None:
    asked = experiment(data={"coco": {"root": "coco"}})
    with pytest.raises(UserError, match="--backbone: name the encoder"):
        detection(asked, "coco", EncoderChoice(), Path("out"), "base")
    with pytest.raises(UserError, match=r"data\.uavdt: the data set is not set"):
        detection(asked, "uavdt", EncoderChoice(Path("backbone")), Path("out"), "base")


def test_a_retry_asks_for_more_memory_and_not_for_more_time_than_a_partition_has() -> None:
    cluster = experiment(cluster={"memory_gb": 100, "detection": {"memory_gb": None}}).cluster
    assert cluster.on_attempt(1) == {"memory_gb": 100.0}
    assert cluster.on_attempt(3) == {"memory_gb": 300.0}
    assert cluster.detection.on_attempt(2) == {}


def test_time_limits_leave_time_to_save() -> None:
    with pytest.raises(UserError, match=r"detection\.minutes \(60 s\)"):
        experiment(cluster={"detection": {"minutes": 1}})

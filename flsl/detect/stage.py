"""The stages ``coco`` and ``uavdt``: fine-tune a backbone, predict, evaluate, write the folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flsl.config.detect import RecipeSettings, UavdtRecipeSettings
from flsl.config.experiment import Experiment
from flsl.data.manifest import checked, content
from flsl.detect.coco_eval import IouType, evaluate, true_masks
from flsl.detect.coco_files import Annotations, Record, parse_annotations, read_annotations
from flsl.detect.dataset import check_files, check_suspects, training_set
from flsl.detect.draw import draw_predictions
from flsl.detect.engines import require_engine, train_with
from flsl.detect.finetune import Task
from flsl.detect.predict import write_results
from flsl.detect.uavdt_convert import convert, split_names
from flsl.detect.uavdt_eval import figures as uavdt_figures
from flsl.detect.uavdt_files import read_detections, read_sequences, truth_files, write_detections
from flsl.model.choice import EncoderChoice
from flsl.runtime import distributed
from flsl.runtime.errors import UserError
from flsl.runtime.machine import sampling
from flsl.runtime.outputs import StageRecord, write_json
from flsl.runtime.place import is_main_process
from flsl.runtime.progress import warn

Stage = Literal["coco", "uavdt"]


def run(stage: Stage, experiment: Experiment, choice: EncoderChoice, out: Path, name: str) -> Mapping[str, Any] | None:
    """Run one stage; a stage that was killed goes on from its last checkpoint when started again.

    The folder gets ``history.jsonl``, ``model.pth``, ``detections.json`` (COCO results), ``prediction-*.png`` (ground
    truth beside predictions) and at the end ``metrics.json``; for UAVDT also the ground truth in COCO's form, and the
    detections in the official toolkit's, ``official/<sequence>.txt``.

    Args:
        stage: ``coco`` (boxes and masks) or ``uavdt`` (boxes).
        experiment: the settings.
        choice: the encoder.
        out: the folder.
        name: the run's name in the record.

    Returns:
        The record; None on other ranks than the first.

    Raises:
        UserError: for settings, data or an encoder that cannot be used.
    """
    less = (
        f"detection.{stage}.batch_size, test_batch_size: too many images for the GPUs' memory; set "
        f"detection.model.activation_checkpointing=true, take more GPUs, raise detection.{stage}.accumulate or lower "
        "test_batch_size"
    )
    with sampling(out), distributed.fitting(less):
        return _run(stage, experiment, choice, out, name)


def _run(stage: Stage, experiment: Experiment, choice: EncoderChoice, out: Path, name: str) -> Mapping[str, Any] | None:
    settings = experiment.detection
    require_engine(settings.engine)
    recipe: RecipeSettings = settings.coco if stage == "coco" else settings.uavdt
    train, train_images, val, val_images, inputs = _coco(experiment) if stage == "coco" else _uavdt(experiment)
    masks = stage == "coco"
    data = training_set(train, train_images, masks)
    if is_main_process():
        for reason, count in data.skipped.items():
            warn(f"{train.path}: {count} {reason} are not trained on")
    # gigabytes of polygons, which each rank would keep to the end
    del train
    check_files(val, val_images)
    manifests = checked(experiment, stage)
    records = {train_images / record["file_name"]: record for record in data.images}
    records |= {val_images / record["file_name"]: record for record in val.images.values()}
    for manifest in manifests:
        check_suspects(manifest, records)
    del records
    device = distributed.choose_device(experiment.compute.device)
    params = {
        "seed": experiment.seed,
        "engine": settings.engine,
        "model": settings.model.plain(),
        "recipe": recipe.plain(),
        "backbone": {"model": choice.model, "random": choice.random},
    }
    record = StageRecord(stage, name, params, [*inputs, *manifests, *choice.inputs], distributed.describe(device))
    task = Task(
        stage, settings, recipe, experiment.compute, experiment.seed, data, content(manifests), val, val_images, masks,
        out, choice.digest(experiment), record,
    )  # fmt: skip
    results = train_with(task, choice.load(experiment))
    if results is None:
        return None
    write_results(out / "detections.json", results)
    draw_predictions(val, results, val_images, out, recipe.images_shown)
    about = {"train": {"images": len(data.images), "skipped": data.skipped}, "val": {"images": len(val.images)}}
    if stage == "coco":
        metrics, classes = _coco_figures(val, results, out)
        return record.write(out / "metrics.json", metrics, classes=classes, data=about)
    return _write_uavdt(experiment, record, val, out, about)


def _coco(experiment: Experiment) -> tuple[Annotations, Path, Annotations, Path, list[Path]]:
    data = experiment.data.coco
    if data is None:
        raise UserError("data.coco: the data set is not set; give at least data.coco.root=DIR")
    root = Path(data.root)
    paths = [root / data.train_annotations, root / data.val_annotations]
    train, val = (read_annotations(path) for path in paths)
    if train.categories != val.categories:
        raise UserError(f"{paths[0]}: its categories differ from those of {paths[1]}; both need the same ids and names")
    # hours of training must not end at a mask that cannot be evaluated
    true_masks(val)
    return train, root / data.train_images, val, root / data.val_images, paths


def _uavdt(experiment: Experiment) -> tuple[Annotations, Path, Annotations, Path, list[Path]]:
    data, recipe = experiment.data.uavdt, experiment.detection.uavdt
    if data is None:
        raise UserError("data.uavdt: the data set is not set; give at least data.uavdt.root=DIR")
    assert isinstance(recipe, UavdtRecipeSettings)
    frames, truth = Path(data.root) / data.frames, Path(data.root) / data.ground_truth
    train_names, test_names = split_names(truth, "train"), split_names(truth, "test")
    train, skipped = convert(frames, truth, train_names, recipe.stride, recipe.classes)
    test, _ = convert(frames, truth, test_names, 1, recipe.classes)
    if is_main_process():
        for reason, count in skipped.items():
            warn(f"{truth}: {count} {reason} skipped")
    inputs = truth_files(truth, [*train_names, *test_names])
    return parse_annotations(train, truth), frames, parse_annotations(test, truth), frames, inputs


def _coco_figures(val: Annotations, results: list[Record], out: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Return all metrics by name, and by kind a table of the classes."""
    kinds: tuple[IouType, ...] = ("bbox", "segm")
    found = {kind: evaluate(val, results, kind, out / "detections.json") for kind in kinds}
    metrics = {name: value for kind, each in found.items() for name, value in each.metrics(f"coco/{kind}").items()}
    return metrics, {kind: each.classes for kind, each in found.items()}


def _write_uavdt(
    experiment: Experiment, record: StageRecord, val: Annotations, out: Path, about: Record
) -> Mapping[str, Any]:
    data = experiment.data.uavdt
    assert data is not None
    write_json(out / "test.json", val.dataset())
    truth = read_sequences(Path(data.root) / data.ground_truth)
    found, _ = read_detections(out / "detections.json", truth)
    write_detections(out / "official", found)
    metrics, tables = uavdt_figures(truth, found)
    return record.write(out / "metrics.json", metrics, **tables, data=about)

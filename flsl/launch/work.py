"""What a job does: the stages that may be submitted, and all in which they differ for the launcher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flsl.config.cluster import ShapeSettings
from flsl.config.experiment import Experiment
from flsl.data.batch import check_batch
from flsl.data.manifest import checked, content, load_manifest, trained_on
from flsl.model.choice import EncoderChoice
from flsl.pretrain.recipe import check_previous, recipe_of
from flsl.runtime.errors import UserError, require_file, require_folder
from flsl.runtime.outputs import sha256_file, sha256_json

Detection = Literal["coco", "uavdt"]
_ENCODER_FILES = ("backbone", "checkpoint")


@dataclass(frozen=True)
class Work:
    """One stage of one run, as plain data: submitit pickles it.

    Attributes:
        stage: ``pretrain``, ``coco`` or ``uavdt``.
        settings: the experiment; its ``cluster`` is this stage's.
        inputs: what the stage's function is given besides.
        out: the stage's folder.
        run: the run's name.
        recipe: digest of all that the weights depend on.
        epochs: how many there will be.
    """

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    out: str
    run: str
    recipe: str
    epochs: int

    @property
    def command(self) -> str:
        """The command that submits such work."""
        return "pretrain" if self.stage == "pretrain" else "detect"

    @property
    def results(self) -> tuple[str, ...]:
        """The files that the workflow declares as this stage's outputs."""
        if self.stage == "pretrain":
            return ("checkpoint.pth", "backbone.safetensors", "metrics.json")
        truth = ("test.json",) if self.stage == "uavdt" else ()
        return ("model.pth", "detections.json", *truth, "metrics.json")

    def in_its_words(self, error: UserError) -> UserError:
        """Return an error about a job's shape with the name of the setting that holds for this stage."""
        return error if self.stage == "pretrain" else in_words_of_detection(error)

    def do(self) -> Mapping[str, float]:
        """Run the stage, as one of the processes that do so together; return the final figures, if this one has them.

        Raises:
            UserError: as the stage's own function.
            Stopped: when a signal ended it after it was saved.
        """
        from flsl.config.checking import check

        settings, out = check(Experiment, self.settings, "the submitted settings"), Path(self.out)
        if self.stage == "pretrain":
            from flsl.pretrain.stage import pretrain_folder

            previous = self.inputs["previous"]
            earlier = Path(previous) if previous else None
            return pretrain_folder(settings, Path(self.inputs["images"]), out, self.run, earlier)
        from flsl.detect.stage import run

        backbone, checkpoint = (Path(file) if (file := self.inputs[name]) else None for name in _ENCODER_FILES)
        choice = EncoderChoice(backbone, self.inputs["model"], checkpoint, self.inputs["random"])
        stage: Detection = "coco" if self.stage == "coco" else "uavdt"
        record = run(stage, settings, choice, out, self.run)
        return record["metrics"] if record else {}


def pretraining(experiment: Experiment, images: Path, out: Path, run: str, previous: Path | None = None) -> Work:
    """Return the pretraining of a run.

    Args:
        experiment: the resolved settings.
        images: folder that ``flsl data check`` wrote.
        out: the stage's folder.
        run: the run's name.
        previous: the encoder of an earlier run, of multi-stage pretraining.

    Raises:
        UserError: when the folder holds no manifest, the earlier run's encoder is missing, or there are fewer images.
    """
    manifest, settings = load_manifest(images), experiment.pretrain
    data = trained_on(manifest)
    check_previous(settings, previous)
    train = manifest["splits"].get("train", {})
    if "images" in train:
        # whether ranks can share it shows when there are any: SLURM may not grant them
        check_batch(settings.batch_size, 1, 1, train["images"], "pretrain.batch_size")
    recipe = recipe_of(experiment.pretrain, experiment.seed, data, previous)
    inputs = {"images": str(images.absolute()), "previous": str(previous.absolute()) if previous is not None else None}
    epochs = experiment.pretrain.epochs
    return Work("pretrain", experiment.plain(), inputs, str(out.absolute()), run, sha256_json(recipe), epochs)


def detection(experiment: Experiment, stage: Detection, choice: EncoderChoice, out: Path, run: str) -> Work:
    """Return the fine-tuning of a detector.

    Args:
        experiment: the resolved settings.
        stage: ``coco`` or ``uavdt``.
        choice: the encoder.
        out: the stage's folder.
        run: the run's name.

    Raises:
        UserError: when no encoder is named, or a file is missing.
    """
    chosen = experiment.detection
    training = chosen.coco if stage == "coco" else chosen.uavdt
    annotations = _annotations(experiment, stage)
    manifests = checked(experiment, stage)
    recipe = {
        "engine": chosen.engine,
        "model": chosen.model.plain(),
        "recipe": training.plain(),
        "seed": experiment.seed,
        "data": [sha256_file(path) for path in annotations] + content(manifests),
        "encoder": choice.digest(experiment),
    }
    inputs: dict[str, Any] = {"model": choice.model, "random": choice.random}
    for name in _ENCODER_FILES:
        path = getattr(choice, name)
        inputs[name] = str(path.absolute()) if path is not None else None
    return Work(
        stage, for_detection(experiment).plain(), inputs, str(out.absolute()), run, sha256_json(recipe), training.epochs
    )


def for_detection(experiment: Experiment) -> Experiment:
    """Return the experiment with ``cluster`` as it holds for the training of a detector."""
    return experiment.model_copy(update={"cluster": experiment.cluster.for_detection()})


def in_words_of_detection(error: UserError) -> UserError:
    """Return an error about the shape of a detection's job with the names of the settings that ask for it."""
    shape = "|".join(ShapeSettings.model_fields)
    return UserError(re.sub(rf"\bcluster\.({shape})\b", r"cluster.detection.\1", str(error)))


def _annotations(experiment: Experiment, stage: Detection) -> list[Path]:
    """Return the annotation files that a detector is trained on and evaluated by."""
    if stage == "coco":
        coco = experiment.data.coco
        if coco is None:
            raise UserError("data.coco: the data set is not set; give at least data.coco.root=DIR")
        paths = [Path(coco.root) / name for name in (coco.train_annotations, coco.val_annotations)]
        return [require_file(path, "COCO's annotations") for path in paths]
    uavdt = experiment.data.uavdt
    if uavdt is None:
        raise UserError("data.uavdt: the data set is not set; give at least data.uavdt.root=DIR")
    folder = require_folder(Path(uavdt.root) / uavdt.ground_truth, "UAVDT's ground truth")
    return [*sorted(folder.glob("*_gt_whole.txt")), *sorted(folder.glob("*_gt_ignore.txt"))]

"""The two engines behind ``detection.engine``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flsl.config.compute import ComputeSettings
from flsl.config.detect import RecipeSettings
from flsl.detect.coco_files import Annotations, Record
from flsl.detect.finetune import Task
from flsl.detect.model_file import load_model
from flsl.detect.predict import Predict, predict
from flsl.detect.train import train
from flsl.model.backbone import Backbone
from flsl.runtime import distributed
from flsl.runtime.errors import UserError

INSTALL = "`bash envs/detectron2.post-deploy.sh`"


def require_engine(engine: str) -> None:
    """Refuse an engine that is not installed.

    Raises:
        UserError: saying how it is installed.
    """
    if engine == "detectron2" and importlib.util.find_spec("detectron2") is None:
        raise UserError(
            f"detection.engine: detectron2 is not installed; install it with {INSTALL} in the project's folder, or set "
            "detection.engine=torchvision"
        )


def train_with(task: Task, backbone: Backbone) -> list[Record] | None:
    """Train with the task's engine; see :func:`flsl.detect.train.train`."""
    require_engine(task.settings.engine)
    if task.settings.engine == "torchvision":
        return train(task, backbone)
    from flsl.detect.detectron2_engine import train as train_detectron2

    return train_detectron2(task, backbone)


@distributed.fitting("--batch-size, --short-side: too much for the GPU's memory; lower one")
def predict_files(
    model: Path, truth: Annotations, images: Path, compute: ComputeSettings, changes: dict[str, int] | None = None
) -> list[Record]:
    """Return a ``model.pth``'s COCO results on the images of ``truth``.

    Args:
        model: what ``flsl detect train`` wrote.
        truth: images and categories; annotations are not looked at.
        images: folder of the image files.
        compute: device and workers.
        changes: of the recipe's prediction sizes.

    Raises:
        UserError: when the file is no detector, the categories are others than it was trained on, an engine is
            missing, or an image cannot be read.
    """
    file, backbone = load_model(model)
    require_engine(file.engine)
    if list(file.categories) != sorted(truth.categories):
        raise UserError(
            f"{truth.path}: its {len(truth.categories)} category ids are not the {len(file.categories)} that {model} "
            "was trained on"
        )
    recipe = RecipeSettings(**{**file.recipe.plain(), **(changes or {})})
    device = distributed.choose_device(compute.device)
    detector: Predict
    if file.engine == "torchvision":
        from flsl.detect.rcnn import Detector

        built = Detector(backbone, len(file.categories), file.model, file.masks)
        built.load_state_dict(file.weights)
        built.bf16 = recipe.precision == "bf16"
        detector = built.to(device).eval()
    else:
        from flsl.detect.detectron2_engine import predictor

        detector = predictor(file, backbone, device)
    return predict(detector, truth, images, recipe, compute.workers, distributed.Process(0, 0, 1, device))

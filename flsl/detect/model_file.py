"""``model.pth``: a trained detector with all that is needed to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from flsl.config.checking import check
from flsl.config.detect import DetectorSettings, RecipeSettings
from flsl.model.backbone import Backbone, load_backbone, read_checkpoint, timm_metadata
from flsl.runtime import checkpoint
from flsl.runtime.errors import UserError, require_file


class ModelFile(NamedTuple):
    """What a ``model.pth`` says.

    Attributes:
        engine: ``torchvision`` or ``detectron2``.
        model: settings of the detector.
        recipe: settings of its training and prediction.
        masks: whether it has a mask head.
        categories: names by COCO's ids.
        mean, std: of the images, for values in [0, 1].
        weights: the detector's state dictionary.
    """

    engine: str
    model: DetectorSettings
    recipe: RecipeSettings
    masks: bool
    categories: dict[int, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Mapping[str, Tensor]


def save_model(path: Path, file: ModelFile, backbone: Backbone) -> None:
    """Write a detector; :func:`flsl.model.backbone.load_backbone` finds its encoder in the file, too."""
    state = {
        "detector": {
            "engine": file.engine,
            "model": file.model.plain(),
            "recipe": {name: getattr(file.recipe, name) for name in RecipeSettings.model_fields},
            "masks": file.masks,
            "categories": dict(file.categories),
            "mean": list(file.mean),
            "std": list(file.std),
        },
        **timm_metadata(backbone.name, backbone.arguments),
        "model": dict(file.weights),
    }
    checkpoint.save(path, state)


def load_model(path: Path) -> tuple[ModelFile, Backbone]:
    """Read a detector and build its encoder, whose weights it has.

    Raises:
        UserError: when the file is missing, damaged, or no detector.
    """
    data = read_checkpoint(require_file(path, "a trained detector (model.pth)"))
    about = data.get("detector")
    if not isinstance(about, dict) or not isinstance(data.get("model"), dict):
        raise UserError(f"{path}: is no detector; a model.pth of `flsl detect train` is expected")
    file = ModelFile(
        engine=about["engine"],
        model=check(DetectorSettings, about["model"], str(path)),
        recipe=check(RecipeSettings, about["recipe"], str(path)),
        masks=about["masks"],
        categories={int(number): name for number, name in about["categories"].items()},
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        weights=data["model"],
    )
    backbone = load_backbone(path)
    backbone.mean, backbone.std = file.mean, file.std
    return file, backbone

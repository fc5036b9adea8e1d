"""Fine-tuning with detectron2 (Wu et al., 2019): its Mask R-CNN as a LazyConfig, its trainer's loop.

This module imports detectron2, which is installed separately; nothing else does.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.engine import TrainerBase, hooks
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone as Detectron2Backbone
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from torch import Tensor

from flsl.config.detect import DetectorSettings
from flsl.detect.augment import Target
from flsl.detect.coco_files import Record
from flsl.detect.finetune import CALMER, FineTuning, Task
from flsl.detect.model_file import ModelFile
from flsl.detect.predict import Predict
from flsl.model.backbone import Backbone
from flsl.model.pyramid import LEVELS, STRIDES, ViTPyramid
from flsl.runtime.errors import UserError
from flsl.runtime.interrupt import StopRequest
from flsl.runtime.progress import Bar, bar
from flsl.runtime.training import begin

_LOSSES = {
    "loss_rpn_cls": "rpn_objectness",
    "loss_rpn_loc": "rpn_box",
    "loss_cls": "box_class",
    "loss_box_reg": "box_regression",
    "loss_mask": "mask",
}


class Pyramid(ViTPyramid, Detectron2Backbone):  # type: ignore[misc]
    """Our pyramid as a detectron2 ``Backbone``."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        strides = (*STRIDES, 2 * STRIDES[-1])
        return {
            name: ShapeSpec(channels=self.out_channels, stride=stride)
            for name, stride in zip(LEVELS, strides, strict=True)
        }


class Detector(GeneralizedRCNN):  # type: ignore[misc]
    """detectron2's R-CNN behind the interface of :class:`flsl.detect.rcnn.Detector`."""

    bf16 = False

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Return the losses by our names in training, else each image's detections."""
        device = self.device
        pixels = [(image.to(device, non_blocking=True).float() - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(pixels, self.backbone.size_divisibility)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(batch.tensor, batch.image_sizes)
        with torch.autocast(device.type, enabled=False):
            features = {name: level.float() for name, level in features.items()}
            wanted = None
            if targets is not None:
                wanted = [_instances(t, size, device) for t, size in zip(targets, batch.image_sizes, strict=True)]
            proposals, first = self.proposal_generator(batch, features, wanted)
            detections, second = self.roi_heads(batch, features, proposals, wanted)
        if self.training:
            return {_LOSSES[name]: loss for name, loss in (first | second).items()}
        return [_detections(found) for found in detections]


def _instances(target: Target, size: tuple[int, int], device: torch.device) -> Instances:
    instances = Instances(size)
    instances.gt_boxes = Boxes(target.boxes.to(device, non_blocking=True))
    instances.gt_classes = target.labels.to(device, non_blocking=True) - 1
    if target.masks is not None:
        instances.gt_masks = BitMasks(target.masks.to(device, non_blocking=True).bool())
    return instances


def _detections(found: Instances) -> dict[str, Tensor]:
    detections = {"boxes": found.pred_boxes.tensor, "labels": found.pred_classes + 1, "scores": found.scores}
    if found.has("pred_masks"):
        detections["masks"] = found.pred_masks
    return detections


def lazy_config(backbone: Backbone, classes: int, settings: DetectorSettings, masks: bool) -> Any:
    """Return detectron2's ``mask_rcnn_fpn`` LazyConfig with our pyramid in it; :func:`instantiate` builds it.

    Args:
        backbone: the encoder.
        classes: number of classes, without the background.
        settings: of the detector.
        masks: whether it has a mask head.
    """
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model._target_ = Detector
    model.backbone = LazyCall(Pyramid)(encoder=backbone.vit, settings=settings)
    model.pixel_mean = [255 * value for value in backbone.mean]
    model.pixel_std = [255 * value for value in backbone.std]
    model.input_format = "RGB"
    rpn, heads, channels = model.proposal_generator, model.roi_heads, settings.channels
    rpn.head.in_channels = channels
    rpn.anchor_generator.sizes = [[size] for size in settings.anchor_sizes]
    rpn.batch_size_per_image = settings.anchors
    rpn.pre_nms_topk = (2 * settings.proposals_train, settings.proposals_test)
    rpn.post_nms_topk = (settings.proposals_train, settings.proposals_test)
    heads.num_classes = classes
    heads.batch_size_per_image = settings.regions
    heads.box_head.input_shape = ShapeSpec(channels=channels, height=7, width=7)
    heads.box_head.fc_dims = [settings.box_hidden] * 2
    heads.box_predictor.input_shape = ShapeSpec(channels=settings.box_hidden)
    heads.box_predictor.test_score_thresh = settings.score_threshold
    heads.box_predictor.test_topk_per_image = settings.detections
    if masks:
        heads.mask_head.input_shape = ShapeSpec(channels=channels, height=14, width=14)
        # the last of them is the upsampling one
        heads.mask_head.conv_dims = [channels] * (settings.mask_convs + 1)
    else:
        for name in ("mask_in_features", "mask_pooler", "mask_head"):
            del heads[name]
    return model


class Trainer(TrainerBase):  # type: ignore[misc]
    """detectron2's loop over the steps of a fine-tuning."""

    def __init__(self, tuning: FineTuning, stop: StopRequest, shown: Bar) -> None:
        super().__init__()
        self._tuning, self._stop, self._shown = tuning, stop, shown
        self.register_hooks([hooks.CallbackHook(after_step=lambda _: self._after())])

    def run_step(self) -> None:
        """Make one step."""
        try:
            self._tuning.step(self.iter)
        except FloatingPointError:  # on all ranks alike, as their weights are equal
            raise UserError(f"the proposals of step {self.iter + 1} are not finite; {CALMER}") from None

    def _after(self) -> None:
        self._shown.advance(1, self._tuning.after(self.iter + 1, self._stop.agreed()))


def train(task: Task, backbone: Backbone) -> list[Record] | None:
    """Train with detectron2; see :func:`flsl.detect.train.train`."""
    process = begin(task.compute, task.seed)
    detector = instantiate(lazy_config(backbone, len(task.val.categories), task.settings.model, task.masks))
    detector.bf16 = task.recipe.precision == "bf16"
    # pictures of proposals would need images in detectron2's own form
    detector.vis_period = 0
    tuning = FineTuning(task, detector, backbone, process)
    with StopRequest() as stop, bar("fine-tuning (steps)", tuning.steps, tuning.start, process.is_main) as shown:
        # it prints the traceback of whatever it raises again, be it a broken image or a stop
        logging.getLogger(TrainerBase.__module__).setLevel(logging.CRITICAL)
        Trainer(tuning, stop, shown).train(tuning.start, tuning.steps)
    return tuning.finish()


def predictor(file: ModelFile, backbone: Backbone, device: torch.device) -> Predict:
    """Return a trained detector that predicts."""
    detector = instantiate(lazy_config(backbone, len(file.categories), file.model, file.masks))
    detector.load_state_dict(file.weights)
    detector.bf16 = file.recipe.precision == "bf16"
    built: Predict = detector.to(device).eval()
    return built

"""Mask R-CNN (Faster R-CNN without masks) on our pyramid, of torchvision's parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from flsl.config.detect import DetectorSettings
from flsl.detect.augment import Target
from flsl.model.backbone import Backbone
from flsl.model.pyramid import LEVELS, STRIDES, ViTPyramid

_LOSSES = {
    "loss_objectness": "rpn_objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "box_class",
    "loss_box_reg": "box_regression",
    "loss_mask": "mask",
}


class _Pooler(MultiScaleRoIAlign):  # type: ignore[misc]
    """torchvision's, which infers the levels' strides from the first images that it is given.

    It would do so once and for all from sizes before padding: small images can make them wrong by a factor of two, and
    a run that resumes is given others first. The first level's own size tells them exactly.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return the regions' features; see :class:`torchvision.ops.MultiScaleRoIAlign`."""
        height, width = x[LEVELS[0]].shape[-2:]
        pooled: Tensor = super().forward(x, boxes, [(STRIDES[0] * height, STRIDES[0] * width)])
        return pooled


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's, which takes the padded size over the map's size, rounded down, for a level's stride.

    Of a side of 800 pixels, stride 64 has 13 places, which would be 61 pixels apart: the last one 36 pixels off.
    """

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """Return each level's anchors; see :class:`torchvision.models.detection.anchor_utils.AnchorGenerator`."""
        true = [[stride, stride] for stride in (*STRIDES, 2 * STRIDES[-1])]
        anchors: list[Tensor] = super().grid_anchors(grid_sizes, true)
        return anchors


class Detector(nn.Module):
    """The detector; images are lists of (3, height, width) uint8 tensors of any sizes."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, classes: int, settings: DetectorSettings, masks: bool) -> None:
        """Build the detector on an encoder.

        Args:
            backbone: the encoder.
            classes: number of classes, without the background.
            settings: of the detector.
            masks: whether it has a mask head.

        Raises:
            UserError: when the encoder does not fit the settings.
        """
        super().__init__()
        pyramid = ViTPyramid(backbone.vit, settings)
        anchors = _Anchors(tuple((size,) for size in settings.anchor_sizes), ((0.5, 1.0, 2.0),) * len(LEVELS))
        common: dict[str, Any] = {
            "backbone": pyramid,
            "rpn_anchor_generator": anchors,
            "rpn_pre_nms_top_n_train": 2 * settings.proposals_train,
            "rpn_post_nms_top_n_train": settings.proposals_train,
            "rpn_pre_nms_top_n_test": settings.proposals_test,
            "rpn_post_nms_top_n_test": settings.proposals_test,
            "box_roi_pool": _Pooler(list(LEVELS[:4]), 7, 2),
            "box_head": TwoMLPHead(settings.channels * 49, settings.box_hidden),
            "box_predictor": FastRCNNPredictor(settings.box_hidden, classes + 1),
            "box_score_thresh": settings.score_threshold,
            "box_batch_size_per_image": settings.regions,
            "rpn_batch_size_per_image": settings.anchors,
            "box_detections_per_img": settings.detections,
        }
        if masks:
            model: Any = MaskRCNN(
                **common,
                mask_roi_pool=_Pooler(list(LEVELS[:4]), 14, 2),
                mask_head=MaskRCNNHeads(settings.channels, [settings.channels] * settings.mask_convs, 1),
                mask_predictor=MaskRCNNPredictor(settings.channels, settings.channels, classes + 1),
            )
        else:
            model = FasterRCNN(**common)
        self.backbone, self.rpn, self.roi_heads = model.backbone, model.rpn, model.roi_heads
        self.masks = masks
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std)[:, None, None], persistent=False)
        self.bf16 = False

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Return the losses by name in training; else, an image, ``boxes``, ``labels``, ``scores`` and ``masks``.

        Boxes are x0, y0, x1, y1 in the given image's pixels; masks (n, 1, 28, 28) are probabilities within the boxes.
        The encoder and pyramid compute in bfloat16 where :attr:`bf16` is set; boxes and losses always in float32.
        """
        device = self.mean.device
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        step = self.backbone.size_divisibility
        height, width = (-(-max(size[axis] for size in sizes) // step) * step for axis in (0, 1))
        batch = torch.zeros(len(images), 3, height, width, device=device)
        for index, image in enumerate(images):
            pixels = image.to(device, non_blocking=True).float()
            batch[index, :, : image.shape[1], : image.shape[2]] = (pixels - self.mean) / self.std
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(batch, sizes)
        with torch.autocast(device.type, enabled=False):
            # boxes of a thousand pixels need more than bfloat16's eight bits
            features = {name: level.float() for name, level in features.items()}
            wanted = None if targets is None else [self._wanted(target) for target in targets]
            shown = ImageList(batch, sizes)
            proposals, first = self.rpn(shown, features, wanted)
            detections, second = self.roi_heads(features, proposals, sizes, wanted)
        if self.training:
            return {_LOSSES[name]: loss for name, loss in (first | second).items()}
        return detections

    def _wanted(self, target: Target) -> dict[str, Tensor]:
        device = self.mean.device
        wanted = {
            "boxes": target.boxes.to(device, non_blocking=True),
            "labels": target.labels.to(device, non_blocking=True),
        }
        if target.masks is not None:
            wanted["masks"] = target.masks.to(device, non_blocking=True)
        return wanted

"""Our detector of torchvision's parts."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from flsl.config.checking import check
from flsl.config.detect import DetectorSettings
from flsl.config.experiment import Experiment
from flsl.detect.rcnn import Detector
from flsl.model.choice import EncoderChoice


def tiny_detector(depth: int = 4) -> Detector:
    encoder = {"name": "vit_tiny_patch16_224", "patch_size": 8, "width": 32, "depth": depth, "heads": 2}
    views = {"teacher_size": 32, "global_size": 32, "local_size": 16}
    experiment = check(Experiment, {"project": "p", "pretrain": {"encoder": encoder, "views": views}}, "here")
    torch.manual_seed(0)
    settings = DetectorSettings(channels=16, box_hidden=16, mask_convs=1, score_threshold=0.0, proposals_test=50)
    return Detector(EncoderChoice(random=True).load(experiment), 3, settings, masks=True).eval()


@pytest.mark.parametrize(("height", "width"), [(64, 192), (192, 64), (128, 128)])
def test_levels_have_their_strides_on_images_of_any_shape(height: int, width: int) -> None:
    detector = tiny_detector()
    with torch.no_grad():
        detector([torch.randint(256, (3, height, width), dtype=torch.uint8)])
    assert detector.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_anchors_lie_a_stride_apart_where_it_does_not_divide_the_image() -> None:
    height, width = 800, 1312  # whole times 32, as images are padded, and not 64
    levels = [(stride, -(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)]
    maps = [torch.zeros(1, 1, rows, columns) for _, rows, columns in levels]
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (anchors,) = tiny_detector().rpn.anchor_generator(images, maps)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    parts = middles.split([3 * rows * columns for _, rows, columns in levels])
    for part, (stride, rows, columns) in zip(parts, levels, strict=True):
        assert part[:, 0].unique().tolist() == [stride * place for place in range(columns)]
        assert part[:, 1].unique().tolist() == [stride * place for place in range(rows)]


def test_what_is_found_does_not_depend_on_the_images_before() -> None:
    detector = tiny_detector()
    image = torch.randint(256, (3, 128, 96), dtype=torch.uint8)
    with torch.no_grad():
        # padded from 40 to 64 pixels: torchvision would take the strides for half of what they are, from then on
        detector([image[:, :40, :40]])
        after = detector([image])[0]
        for pooler in (detector.roi_heads.box_roi_pool, detector.roi_heads.mask_roi_pool):
            assert pooler.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
            pooler.scales = None
        alone = detector([image])[0]
    assert len(alone["scores"])
    for name in alone:
        assert torch.equal(after[name], alone[name]), name

"""What evaluations compute on the device, on a pretended GPU: nothing of it waits for a number or mixes devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from pretended import Elsewhere, Pretended, needs_pretence
from torch import Tensor

from flsl.config.detect import DetectorSettings
from flsl.model.backbone import Backbone
from flsl.model.mean_shift import attention_map
from flsl.model.neighbours import predict
from flsl.model.pyramid import ViTPyramid
from flsl.probe.grid import LinearGrid

NAME = "vit_tiny_patch16_224"


def vit() -> torch.nn.Module:
    return timm.create_model(
        NAME, depth=3, class_token=False, global_pool="avg", fc_norm=False, num_classes=0, dynamic_img_size=True
    )


def numbers(*shape: int) -> Tensor:
    return torch.empty(*shape, device="cuda")


def classes(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, device="cuda")


def block_tokens(gpu: Pretended) -> Callable[[], object]:
    model = gpu.module(lambda: Backbone(vit(), NAME, {}))
    return lambda: model.block_tokens(numbers(2, 3, 64, 48), 2)


def pyramid(kind: str, gpu: Pretended) -> Callable[[], object]:
    settings = DetectorSettings.model_validate({"pyramid": kind, "blocks": [1, 2, 3, 3]})
    model = gpu.module(lambda: ViTPyramid(vit(), settings))
    return lambda: model(numbers(3, 3, 96, 128), [(96, 100), (80, 128), (96, 100)])


def linear_probes(gpu: Pretended) -> Callable[[], object]:
    grid = LinearGrid(32, [1, 2], [0.1, 0.2], 10, 5, device=gpu.device)
    return lambda: grid.step(numbers(8, 2, 32), classes(8))


def votes(gpu: Pretended) -> Callable[[], object]:
    return lambda: predict(numbers(5, 3), classes(5, 3), 10, 0.07)


def attention(gpu: Pretended) -> Callable[[], object]:
    return lambda: attention_map(numbers(2, 5, 32), numbers(2, 7, 32), 0.1)


@needs_pretence
@pytest.mark.parametrize(
    "prepare", [block_tokens, partial(pyramid, "fpn"), partial(pyramid, "simple"), linear_probes, votes, attention]
)
def test_nothing_waits_for_the_device(prepare: Callable[[Pretended], Callable[[], object]]) -> None:
    pretended = Pretended("cuda")
    with pretended.mode:
        work = prepare(pretended)
        with Elsewhere(pretended.device) as elsewhere:
            work()
    assert elsewhere.seen == set()

"""The training step on a pretended GPU: it reads nothing from there, and leaves the device for nothing."""

from __future__ import annotations

import pytest
import torch
from pretended import Elsewhere, Pretended, needs_pretence
from test_step import CPU, SETTINGS, STEPS_PER_EPOCH, batch_of
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import PretrainSettings
from flsl.pretrain import step as step_module
from flsl.pretrain.network import FLSLNetwork
from flsl.pretrain.schedules import values_at
from flsl.pretrain.step import TrainingStep

CENTRED = SETTINGS.model_copy(
    update={"centering": True, "head": SETTINGS.head.model_copy(update={"batch_norm": True}), "clip": 0.0}
)


@pytest.mark.parametrize("settings", [SETTINGS, CENTRED], ids=["volume", "centred"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_pretence), "cpu"])
def test_a_step_reads_nothing_and_leaves_the_device_for_nothing(
    device: str, settings: PretrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(device)
    batch, _ = batch_of(TrainingStep(settings, ComputeSettings(), CPU), 0)
    monkeypatch.setattr(step_module, "FLSLNetwork", lambda *a, **k: pretended.module(lambda: FLSLNetwork(*a, **k)))
    with pretended.mode:
        step = TrainingStep(settings, ComputeSettings(), pretended.device)
        trained = [parameter for parameter in step.student.parameters() if parameter.requires_grad]

        def backward(loss: Tensor) -> None:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)

        if device == "cuda":
            monkeypatch.setattr(Tensor, "backward", backward)
        given = pretended.data(batch)
        # the first step makes what is kept on the device
        for number in range(3):
            values = values_at(number, settings, STEPS_PER_EPOCH)
            with Elsewhere(pretended.device) as elsewhere:
                loss = step.accumulate(given, values, number)
                step.update(values)
        assert loss.device.type == device
        assert elsewhere.seen == set()


@needs_pretence
def test_the_pretence_notices_what_would_wait() -> None:
    with FakeTensorMode(), Elsewhere(torch.device("cuda")) as elsewhere:
        made = torch.ones(3, device="cuda")
        made * 2.0 + torch.tensor(1.0)
        assert elsewhere.seen == {"aten.lift_fresh.default"}
        with pytest.raises(DataDependentOutputException):
            made.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            made.nonzero()
        torch.tensor([1.0, 2.0]).to("cuda")
        assert "aten._to_copy.default" in elsewhere.seen

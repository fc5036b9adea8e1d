"""The training step on a pretended GPU: tensors without numbers, which can neither be read nor moved unseen.

Reading a number from the device, or asking how many elements are nonzero, raises here; what is computed on the CPU or
copied between devices is noted. Autograd wants a driver for such tensors, so the backward pass is pretended on the CPU.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_step import CPU, SETTINGS, STEPS_PER_EPOCH, batch_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import PretrainSettings
from flsl.pretrain import step as step_module
from flsl.pretrain.network import FLSLNetwork
from flsl.pretrain.schedules import values_at
from flsl.pretrain.step import TrainingStep

CENTRED = SETTINGS.model_copy(
    update={"centering": True, "head": SETTINGS.head.model_copy(update={"batch_norm": True}), "clip": 0.0}
)


class Pretended:
    """Makes pretended tensors of real ones."""

    def __init__(self, device: str) -> None:
        self.mode = FakeTensorMode()
        self.device = torch.device(device)

    def tensor(self, real: Tensor) -> Tensor:
        with unset_fake_temporarily():
            real = real.detach()
        with self.mode:
            return self.mode.from_tensor(real).to(self.device)

    def network(self, settings: PretrainSettings, drop_path: float) -> FLSLNetwork:
        with unset_fake_temporarily():
            network = FLSLNetwork(settings, drop_path)
        for module in network.modules():
            for name, real in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(self.tensor(real), requires_grad=real.requires_grad)
            for name, real in module.named_buffers(recurse=False):
                module._buffers[name] = self.tensor(real)
        network.to = lambda *_: network  # type: ignore[method-assign]
        return network

    def data(self, real: Any) -> Any:
        if isinstance(real, Tensor):
            return self.tensor(real)
        if isinstance(real, list | tuple):
            return type(real)(self.data(item) for item in real)
        if dataclasses.is_dataclass(real) and not isinstance(real, type):
            return type(real)(
                **{field.name: self.data(getattr(real, field.name)) for field in dataclasses.fields(real)}
            )
        return real


class Elsewhere(TorchDispatchMode):
    """Notes what is not computed on the device alone; a CPU scalar among the arguments is a number and no tensor."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor) and item.ndim]
        found = given + [item for item in tree_leaves(made) if isinstance(item, Tensor)]
        if any(item.device.type != self.device.type for item in found):
            self.seen.add(str(func))
        return made


@pytest.mark.parametrize("settings", [SETTINGS, CENTRED], ids=["volume", "centred"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_step_reads_nothing_and_leaves_the_device_for_nothing(
    device: str, settings: PretrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = Pretended(device)
    batch, _ = batch_of(TrainingStep(settings, ComputeSettings(), CPU), 0)
    monkeypatch.setattr(step_module, "FLSLNetwork", pretended.network)
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

"""A GPU that is only pretended: its tensors have no numbers, and can neither be read nor moved unseen.

Reading a number from the device, or asking how many elements are nonzero, raises; what is computed elsewhere or copied
between devices is noted. Autograd wants a driver for such tensors: a backward pass can be pretended on the CPU only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Module = TypeVar("Module", bound=nn.Module)

needs_pretence = pytest.mark.skipif(
    torch.__version__ < (2, 14) and not torch.cuda.is_available(),
    reason="older versions of torch ask the driver about pretended tensors, too",
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

    def module(self, make: Callable[[], Module]) -> Module:
        """Make a module with its real weights, and pretend these."""
        with unset_fake_temporarily():
            made = make()
        for module in made.modules():
            for name, real in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(self.tensor(real), requires_grad=real.requires_grad)
            for name, real in module.named_buffers(recurse=False):
                module._buffers[name] = self.tensor(real)
        # it is where it belongs
        made.to = lambda *_: made  # type: ignore[method-assign]
        return made

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

"""AdamW, clipping by tensor, and the teacher's moving average, each as a few fused calls over all tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def build_optimiser(network: nn.Module) -> torch.optim.AdamW:
    """Return AdamW with two groups: matrices, which decay, and one-dimensional weights and biases, which do not."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.0},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # rates and decay are set before every step, by schedule
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_rates(optimiser: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set the step's learning rate, and its weight decay for the matrices."""
    for group, decay in zip(optimiser.param_groups, (weight_decay, 0.0), strict=True):
        group["lr"], group["weight_decay"] = learning_rate, decay


@torch.no_grad()
def clip_by_tensor(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale each tensor's gradient down to a norm of ``largest`` (as DINO does); 0 leaves them alone."""
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if largest <= 0 or not gradients:
        return
    factors = torch._foreach_norm(gradients)
    torch._foreach_add_(factors, 1e-6)
    factors = torch._foreach_reciprocal(factors)
    torch._foreach_mul_(factors, largest)
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(gradients, factors)


class MovingAverage:
    """The teacher follows the student: every parameter as an exponential moving average, every buffer as a copy.

    Args:
        teacher: gets no gradients from here on and starts from the student's weights.
        student: of the same architecture.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        teacher.load_state_dict(student.state_dict())
        teacher.requires_grad_(False)
        self._parameters: tuple[list[Tensor], list[Tensor]] = (list(teacher.parameters()), list(student.parameters()))
        self._buffers = list(zip(teacher.buffers(), student.buffers(), strict=True))

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move each parameter by (1 - momentum) of its distance to the student's; copy the buffers."""
        torch._foreach_lerp_(*self._parameters, 1 - momentum)
        for theirs, ours in self._buffers:
            theirs.copy_(ours)

"""Assignments of student and teacher to the prototypes, without keeping matrices of them.

With thousands of tokens and prototypes a float32 matrix (tokens × K) is among the largest things of a training step,
and losses that are written plainly keep half a dozen of them until the backward pass. Here only the logits live, in the
type that the head gave them; all else is computed a block of rows at a time, and once more in the backward pass. A
block fits a CPU's cache, so that this is the faster way, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# numbers of a block: few enough for a CPU's cache, enough to fill a GPU
_BLOCK = {"cpu": 2**18, "cuda": 2**25}


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Cut the rows of a matrix into blocks that are computed at a time."""
    rows = max(1, _BLOCK.get(matrix.device.type, 2**25) // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        yield slice(start, start + rows)


def cross_entropy_and_mean(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    center: Tensor | None = None,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """Compare the assignments s = softmax(student / T_s) with their targets t = softmax((teacher - centre) / T_t).

    Args:
        student_logits: (tokens, K).
        teacher_logits: (tokens, K); no gradient flows into them.
        student_temperature: T_s.
        teacher_temperature: T_t.
        center: (K,), or None.
        blocks: how a block is computed; None: by :data:`PLAIN`.

    Returns:
        the cross-entropy mean(-Σₖ tₖ log sₖ), a scalar, and the student's mean assignment p̄ (K,), both float32
        (float64 where the student's logits are).
    """
    # tensors, because a compiled function would be compiled anew for every other number
    exact = torch.promote_types(student_logits.dtype, torch.float32)
    temperatures = [student_logits.new_full((), t, dtype=exact) for t in (student_temperature, teacher_temperature)]
    # a copy of the centre: it moves on before the backward pass
    center = student_logits.new_zeros((), dtype=exact) if center is None else center.clone()
    found: tuple[Tensor, Tensor] = _CrossEntropyAndMean.apply(
        student_logits, teacher_logits.detach(), *temperatures, center, PLAIN if blocks is None else blocks
    )
    return found


class _CrossEntropyAndMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        *numbers, ctx.blocks = others
        ctx.save_for_backward(student, teacher, *numbers)
        entropy = student.new_zeros((), dtype=numbers[0].dtype)
        total = student.new_zeros(student.shape[1], dtype=numbers[0].dtype)
        for rows in row_blocks(student):
            part = ctx.blocks.losses(student[rows], teacher[rows], *numbers)
            entropy += part[0]
            total += part[1]
        return entropy / len(student), total / len(student)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *numbers = ctx.saved_tensors
        of_entropy, of_mean = (gradient / len(student) for gradient in gradients)
        gradient = torch.empty_like(student)
        for rows in row_blocks(student):
            gradient[rows] = ctx.blocks.gradient(student[rows], teacher[rows], *numbers, of_entropy, of_mean)
        return gradient, None, None, None, None, None


def _losses(
    student: Tensor, teacher: Tensor, student_temperature: Tensor, teacher_temperature: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sums over a block's rows of the cross-entropy, (), and of the student's assignments, (K,)."""
    exact = student_temperature.dtype
    log_s = torch.log_softmax(student.to(exact) / student_temperature, dim=-1)
    t = torch.softmax((teacher.to(exact) - center) / teacher_temperature, dim=-1)
    return -(t * log_s).sum(), log_s.exp().sum(0)


def _gradient(
    student: Tensor,
    teacher: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    center: Tensor,
    of_entropy: Tensor,
    of_mean: Tensor,
) -> Tensor:
    """Return the gradient of a block's student logits, given those of what :func:`_losses` returns.

    With x the logits over T_s: ∂(-Σ t log s)/∂x = s - t, as Σ t = 1; and ∂(g·s)/∂x = s ∘ (g - g·s).
    """
    exact = student_temperature.dtype
    s = torch.softmax(student.to(exact) / student_temperature, dim=-1)
    t = torch.softmax((teacher.to(exact) - center) / teacher_temperature, dim=-1)
    along = (s * of_mean).sum(-1, keepdim=True)
    return (s * (of_entropy + of_mean - along) - of_entropy * t) / student_temperature


def _entropy(logits: Tensor, temperature: Tensor, center: Tensor) -> Tensor:
    """Return the sum over a block's rows of the entropy (nats) of softmax((logits - center) / temperature)."""
    log_t = torch.log_softmax((logits.to(temperature.dtype) - center) / temperature, dim=-1)
    return -(log_t.exp() * log_t).sum()


class Blocks(NamedTuple):
    """How a block of rows is computed.

    Attributes:
        losses: sums of the losses.
        gradient: of the student's logits.
        entropy: sum of the entropies.
    """

    losses: Callable[..., tuple[Tensor, Tensor]]
    gradient: Callable[..., Tensor]
    entropy: Callable[..., Tensor]

    @classmethod
    def compiled(cls, backend: str = "inductor") -> Blocks:
        """Return blocks that ``torch.compile`` fuses into one pass over the logits each."""
        return cls(
            torch.compile(_losses, backend=backend),
            torch.compile(_gradient, backend=backend),
            torch.compile(_entropy, backend=backend),
        )


PLAIN = Blocks(_losses, _gradient, _entropy)


def mean_entropy(logits: Tensor, temperature: float, center: Tensor | None = None, blocks: Blocks = PLAIN) -> Tensor:
    """Return the mean entropy (nats) of softmax((logits - center) / temperature) over the rows of (tokens, K)."""
    divisor = logits.new_full((), temperature, dtype=torch.float32)
    center = logits.new_zeros((), dtype=torch.float32) if center is None else center
    total = sum(
        (blocks.entropy(logits[rows], divisor, center) for rows in row_blocks(logits)),
        logits.new_zeros((), dtype=torch.float32),
    )
    return total / len(logits)

"""Signs of life and of collapse, gathered on the device and fetched only when a line is written.

A small VMR is no sign of health: student and teacher can agree on one prototype, or on the position alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flsl.pretrain.assignments import PLAIN, Blocks, mean_entropy, row_blocks
from flsl.runtime.distributed import sum_over_ranks


class Health(nn.Module):
    """Counts of hard assignments and sums of what is averaged; its buffers are part of a checkpoint.

    Args:
        prototypes: their number K.
        positions: tokens of the student's global view, whose positions are watched.
        blocks: how blocks of assignments are computed, plainly or compiled.
    """

    student: Tensor
    teacher: Tensor
    joint: Tensor
    sums: Tensor

    def __init__(self, prototypes: int, positions: int, blocks: Blocks = PLAIN) -> None:
        super().__init__()
        self._blocks = blocks
        self._positions = positions
        self.register_buffer("student", torch.zeros(prototypes))
        self.register_buffer("teacher", torch.zeros(prototypes))
        self.register_buffer("joint", torch.zeros(prototypes * positions))
        # updates, teacher entropy, feature variance
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))

    @torch.no_grad()
    def update(
        self,
        tokens: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor,
        teacher_temperature: float,
        global_queries: Tensor,
        center: Tensor | None = None,
    ) -> None:
        """Count one batch.

        Args:
            tokens: the sampled student tokens, (tokens, C).
            student_logits: (tokens, K).
            teacher_logits: (tokens, K).
            teacher_temperature: T_t.
            global_queries: (batch, M) positions of the global view's tokens, which come first among ``tokens``.
            center: (K,) the teacher's, where its assignments are centred.
        """
        ones = torch.ones_like(student_logits[:, 0], dtype=torch.float32)
        self.student.scatter_add_(0, student_logits.argmax(1), ones)
        assigned = _assigned(teacher_logits, center)
        self.teacher.scatter_add_(0, assigned, ones)
        positions = global_queries.flatten()
        cells = assigned[: len(positions)] * self._positions + positions
        self.joint.scatter_add_(0, cells, ones[: len(positions)])
        entropy = mean_entropy(teacher_logits, teacher_temperature, center, self._blocks)
        variance = tokens.float().var(0, correction=min(1, len(tokens) - 1)).mean()
        self.sums += torch.stack([torch.ones_like(entropy), entropy, variance])

    @torch.no_grad()
    def window(self) -> dict[str, float]:
        """Return the figures since the last call, over all ranks, and start anew.

        Returns:
            ``perplexity`` and ``student_perplexity`` of the hard assignments (1 … K; 1 is collapse),
            ``prototypes_used`` (share of K, percent), ``teacher_entropy`` (nats), ``feature_variance``.
        """
        student, teacher, sums = (sum_over_ranks(values) for values in (self.student, self.teacher, self.sums))
        count = sums[0].clamp(min=1)
        figures = {
            "perplexity": _entropy(teacher).exp(),
            "student_perplexity": _entropy(student).exp(),
            "prototypes_used": 100 * (teacher > 0).float().mean(),
            "teacher_entropy": sums[1] / count,
            "feature_variance": sums[2] / count,
        }
        for values in (self.student, self.teacher, self.sums):
            values.zero_()
        return {name: float(value) for name, value in figures.items()}

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        """Return the figures of the whole epoch, over all ranks, and start anew.

        Returns:
            ``position_information``: how much of the grid position's entropy the assigned prototype explains beyond
            what chance would explain for as many tokens, percent.
        """
        joint = sum_over_ranks(self.joint).reshape(-1, self._positions).cpu()
        self.joint.zero_()
        # a few tokens a cell explain each other by chance: with 1,000 images and 4,096 prototypes half of the entropy
        chance = _information(_independent(joint))
        explained, left = _information(joint) - chance, _entropy(joint.sum(0)) - chance
        return {"position_information": float(100 * (explained / left).clamp(0, 1)) if left > 0 else 0.0}


def _information(joint: Tensor) -> Tensor:
    """Return the mutual information (nats) of the rows and the columns of a table of counts."""
    return _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint.flatten())


def _independent(joint: Tensor) -> Tensor:
    """Draw a table of counts (float64, on the CPU) whose rows and columns are independent, and on average as frequent.

    The same one each time: a training that is resumed writes what it would have written.
    """
    expected = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True) / joint.sum().clamp(min=1)
    return torch.poisson(expected, torch.Generator().manual_seed(0))


def _assigned(logits: Tensor, center: Tensor | None) -> Tensor:
    """Return the prototype that each row of (tokens, K) is assigned to."""
    if center is None:
        return logits.argmax(1)
    # a block at a time: no further matrix as large as the logits
    return torch.cat([(logits[rows].float() - center).argmax(1) for rows in row_blocks(logits)])


def _entropy(counts: Tensor) -> Tensor:
    """Return the entropy (nats) of the distribution that the counts make."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return -torch.xlogy(shares, shares).sum()

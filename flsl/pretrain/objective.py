"""The FLSL objective: intra-view clustering, inter-view assignment, and volume maximisation (arXiv 2306.06203)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flsl.pretrain.assignments import PLAIN, Blocks, cross_entropy_and_mean
from flsl.runtime.distributed import mean_over_ranks


class FLSLObjective(nn.Module):
    """L = υ·L_intra + η·L_inter + γ·VMR over the sampled tokens of all student views of the batch together.

    With sampled student tokens z, their modes in the student view ẑ, and the assignments s of ẑ (student) and t of the
    modes in the teacher's view ẑ⁺ (teacher):

    - L_intra = mean(2 - 2 cos(z, ẑ)),
    - L_inter = mean(-Σₖ tₖ log sₖ), s = softmax(student logits / T_s), t = softmax(teacher logits / T_t), no gradient,
    - VMR = KL(p̄ ‖ uniform) = Σₖ p̄ₖ log p̄ₖ + log K, p̄ the mean of s over the batch and over all ranks.

    Args:
        prototypes: their number K.
        intra_weight: υ; a value given in the call replaces it (it may follow a schedule).
        inter_weight: η.
        volume_weight: γ.
        student_temperature: T_s.
        center_momentum: momentum of the teacher's centre (DINO's centring), or None for no centring.
        blocks: how blocks of assignments are computed, plainly or compiled.

    >>> objective = FLSLObjective(prototypes=4)
    >>> tokens, modes, logits = torch.randn(6, 8), torch.randn(6, 8), torch.rand(6, 4)
    >>> loss, parts = objective(tokens, modes, logits, logits, teacher_temperature=0.07)
    >>> sorted(parts)
    ['inter_view', 'intra_view', 'volume']
    """

    center: Tensor

    def __init__(
        self,
        prototypes: int,
        intra_weight: float = 0.03,
        inter_weight: float = 1.0,
        volume_weight: float = 5.0,
        student_temperature: float = 0.1,
        center_momentum: float | None = None,
        blocks: Blocks = PLAIN,
    ) -> None:
        super().__init__()
        self.intra_weight, self.inter_weight, self.volume_weight = intra_weight, inter_weight, volume_weight
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self._blocks = blocks
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(
        self,
        tokens: Tensor,
        modes: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor,
        teacher_temperature: float,
        intra_weight: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (a scalar) and its unweighted parts, detached.

        Args:
            tokens: z, (tokens, C).
            modes: ẑ, (tokens, C).
            student_logits: of ẑ, (tokens, K), before the temperature.
            teacher_logits: of ẑ⁺, (tokens, K), before the temperature; no gradient flows into them.
            teacher_temperature: T_t.
            intra_weight: υ at this step.
        """
        # float32 whatever autocast says: a small p log p of 4096 prototypes is lost in half precision
        with torch.autocast(tokens.device.type, enabled=False):
            intra = (2 - 2 * F.cosine_similarity(tokens.float(), modes.float(), dim=-1)).mean()
            center = None if self.center_momentum is None else self.center
            inter, mean_assignment = cross_entropy_and_mean(
                student_logits, teacher_logits, self.student_temperature, teacher_temperature, center, self._blocks
            )
            mean_assignment = mean_over_ranks(mean_assignment)
            # a prototype that nothing is assigned to counts 0, with a finite gradient: not 0 · -∞
            least = torch.finfo(mean_assignment.dtype).tiny
            volume = (mean_assignment * mean_assignment.clamp(min=least).log()).sum() + math.log(len(mean_assignment))
            weight = self.intra_weight if intra_weight is None else intra_weight
            loss = weight * intra + self.inter_weight * inter + self.volume_weight * volume
            self._move_center(teacher_logits)
        parts = {"intra_view": intra.detach(), "inter_view": inter.detach(), "volume": volume.detach()}
        return loss, parts

    @torch.no_grad()
    def _move_center(self, teacher_logits: Tensor) -> None:
        if self.center_momentum is not None:
            mean = mean_over_ranks(teacher_logits.mean(0, dtype=torch.float32))
            self.center.lerp_(mean, 1 - self.center_momentum)

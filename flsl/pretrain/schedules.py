"""What changes from step to step, as functions of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flsl.config.pretrain import PretrainSettings, Schedule


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Return the value at ``step`` of ``steps`` on half a cosine from ``start`` towards ``end``, as DINO does."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class StepValues:
    """The values of one step.

    Attributes:
        learning_rate: of AdamW.
        weight_decay: of matrices.
        momentum: of the teacher's EMA.
        teacher_temperature: of the teacher's assignments.
        tau_sa: of self-attention, in units of √384 / C.
        tau_ca: of cross-attention, in the same units.
        intra_weight: υ.
        prototypes_frozen: whether the prototypes' gradient is dropped.
        attention_share: of the run's own cross-attention where an earlier run's encoder is its prior.
    """

    learning_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    tau_sa: float
    tau_ca: float
    intra_weight: float
    prototypes_frozen: bool
    attention_share: float


def values_at(step: int, settings: PretrainSettings, steps_per_epoch: int) -> StepValues:
    """Return the values of ``step`` (0 … epochs × steps_per_epoch - 1)."""
    steps = settings.epochs * steps_per_epoch
    peak = settings.learning_rate * settings.batch_size / 256
    warmup = round(settings.warmup * steps)
    if step < warmup:
        learning_rate = peak * step / max(1, warmup - 1)
    else:
        learning_rate = cosine(peak, settings.final_learning_rate, step - warmup, steps - warmup)
    risen = 1.0
    if settings.teacher_temperature_epochs > 0:
        risen = min(1.0, step / (settings.teacher_temperature_epochs * steps_per_epoch))
    start = settings.teacher_temperature_start

    def scheduled(value: float | Schedule) -> float:
        return cosine(value.start, value.end, step, steps) if isinstance(value, Schedule) else value

    return StepValues(
        learning_rate=learning_rate,
        weight_decay=cosine(settings.weight_decay, settings.final_weight_decay, step, steps),
        momentum=cosine(settings.momentum, settings.final_momentum, step, steps),
        teacher_temperature=start + (settings.teacher_temperature - start) * risen,
        tau_sa=scheduled(settings.tau_sa),
        tau_ca=scheduled(settings.tau_ca),
        intra_weight=scheduled(settings.intra_weight),
        prototypes_frozen=step < settings.freeze_prototypes_epochs * steps_per_epoch,
        attention_share=cosine(0.0, 1 - settings.prior.bias, step, steps),
    )

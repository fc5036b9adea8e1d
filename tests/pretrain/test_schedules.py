"""Schedules against DINO's, made as numpy arrays of all iterations."""

import numpy as np
import pytest

from flsl.config.pretrain import PretrainSettings, Schedule
from flsl.pretrain.schedules import values_at


def dino(base: float, final: float, epochs: int, steps: int, warmup_epochs: int = 0) -> np.ndarray:
    """The whole schedule as DINO's code defines it."""
    warmup = np.linspace(0, base, warmup_epochs * steps) if warmup_epochs else np.array([])
    iterations = np.arange(epochs * steps - len(warmup))
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * iterations / len(iterations)))
    return np.concatenate([warmup, cosine])


def test_paper_recipe_equals_dinos_schedules() -> None:
    settings, steps = PretrainSettings(), 7
    values = [values_at(step, settings, steps) for step in range(300 * steps)]
    wanted = {
        "learning_rate": dino(5e-4 * 512 / 256, 1e-6, 300, steps, warmup_epochs=30),
        "weight_decay": dino(0.04, 0.4, 300, steps),
        "momentum": dino(0.996, 1.0, 300, steps),
    }
    for name, array in wanted.items():
        np.testing.assert_allclose([getattr(value, name) for value in values], array, rtol=1e-9)


def test_teacher_temperature_rises_linearly_over_its_epochs() -> None:
    settings = PretrainSettings()
    at = [values_at(step, settings, 10).teacher_temperature for step in (0, 150, 300, 2999)]
    assert at == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_prototypes_are_frozen_in_the_first_epoch() -> None:
    settings = PretrainSettings()
    assert [values_at(step, settings, 10).prototypes_frozen for step in (0, 9, 10)] == [True, True, False]


def test_temperatures_and_intra_weight_may_follow_a_cosine() -> None:
    settings = PretrainSettings(
        epochs=10, tau_sa=Schedule(start=0.0, end=0.1), intra_weight=Schedule(start=1.0, end=0.0)
    )
    values = [values_at(step, settings, 2) for step in range(20)]
    np.testing.assert_allclose([value.tau_sa for value in values], dino(0.0, 0.1, 10, 2), atol=1e-12)
    np.testing.assert_allclose([value.intra_weight for value in values], dino(1.0, 0.0, 10, 2), atol=1e-12)
    assert {value.tau_ca for value in values} == {0.2}

"""The objective against an independent float64 computation written from the paper's formulas, gradients too."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from flsl.model.head import ProjectionHead
from flsl.model.mean_shift import mean_shift
from flsl.pretrain.objective import FLSLObjective

Arrays = dict[str, np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def by_formula(arrays: Arrays, teacher_temperature: float, weights: tuple[float, float, float]) -> dict[str, float]:
    z, modes = arrays["tokens"], arrays["modes"]
    intra = 0.0
    for one, other in zip(z, modes, strict=True):
        intra += 2 - 2 * (one @ other) / (np.linalg.norm(one) * np.linalg.norm(other))
    intra /= len(z)
    s, t = softmax(arrays["student"] / 0.1), softmax(arrays["teacher"] / teacher_temperature)
    inter = -np.mean(
        [sum(t_k * math.log(s_k) for t_k, s_k in zip(*rows, strict=True)) for rows in zip(t, s, strict=True)]
    )
    mean = s.mean(0)
    volume = sum(p * math.log(p) for p in mean) + math.log(len(mean))
    upsilon, eta, gamma = weights
    return {
        "loss": upsilon * intra + eta * inter + gamma * volume,
        "intra_view": intra,
        "inter_view": inter,
        "volume": volume,
    }


def random_arrays(tokens: int, width: int, prototypes: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.standard_normal((tokens, width)),
        "modes": rng.standard_normal((tokens, width)),
        "student": rng.uniform(-1, 1, (tokens, prototypes)),
        "teacher": rng.uniform(-1, 1, (tokens, prototypes)),
    }


def call(objective: FLSLObjective, arrays: Arrays, temperature: float, dtype: torch.dtype = torch.float32):
    tensors = [torch.tensor(arrays[name], dtype=dtype) for name in ("tokens", "modes", "student", "teacher")]
    return objective(*tensors, teacher_temperature=temperature)


@example(1, 8, 2, 0.125, 10)  # a cross-entropy of 6e-5
@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(2, 20), st.integers(2, 30), st.floats(0.02, 0.2), st.integers(0, 99))
def test_equals_the_formulas(tokens: int, width: int, prototypes: int, temperature: float, seed: int) -> None:
    arrays = random_arrays(tokens, width, prototypes, seed)
    loss, parts = call(FLSLObjective(prototypes), arrays, temperature)
    wanted = by_formula(arrays, temperature, (0.03, 1.0, 5.0))
    # float32 logarithms of up to 20, and cosines near 1: a small loss is a difference of larger numbers
    assert float(loss) == pytest.approx(wanted["loss"], rel=1e-5, abs=2e-6)
    for name in ("intra_view", "inter_view"):
        assert float(parts[name]) == pytest.approx(wanted[name], rel=1e-5, abs=2e-6)
    # a difference of numbers near log K, so that its own relative error is larger
    assert float(parts["volume"]) == pytest.approx(wanted["volume"], rel=1e-4, abs=2e-6)


def step(dtype: torch.dtype, fast: bool) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients from views' tokens through mean shift and head, by the package or by plain formulas."""
    generator = torch.Generator().manual_seed(5)
    width, prototypes, temperature = 16, 12, 0.05
    tokens = torch.randn(3, 20, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    keys = torch.randn(3, 30, width, generator=generator, dtype=torch.float64).to(dtype)
    torch.manual_seed(6)
    student, teacher = (ProjectionHead(width, prototypes, hidden=24, bottleneck=8) for _ in range(2))
    with torch.no_grad():
        # larger weights than at the start: with std 0.02 all assignments would be nearly uniform
        for parameter in (*student.parameters(), *teacher.parameters()):
            parameter.mul_(20)
    for head in (student, teacher):
        head.to(dtype)
    query = tokens[:, ::4]
    if fast:
        modes, found = mean_shift(query, tokens, 0.3), mean_shift(query.detach(), keys, 0.5)
        objective = FLSLObjective(prototypes)
        with torch.no_grad():
            teacher_logits = teacher(found.flatten(0, 1))
        loss, _ = objective(
            query.flatten(0, 1), modes.flatten(0, 1), student(modes.flatten(0, 1)), teacher_logits, temperature
        )
    else:

        def shift(values: torch.Tensor, strength: float) -> torch.Tensor:
            scores = torch.exp(
                strength * torch.einsum("bmc,bnc->bmn", query if values is tokens else query.detach(), values)
            )
            return torch.einsum("bmn,bnc->bmc", scores / scores.sum(-1, keepdim=True), values)

        def logits(head: ProjectionHead, values: torch.Tensor) -> torch.Tensor:
            first, second, third = (module for module in head.mlp if isinstance(module, torch.nn.Linear))
            gelu = lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))  # noqa: E731
            x = gelu(values @ first.weight.T + first.bias)
            x = gelu(x @ second.weight.T + second.bias) @ third.weight.T + third.bias
            x = x / x.square().sum(-1, keepdim=True).sqrt()
            w = head.prototypes / head.prototypes.square().sum(-1, keepdim=True).sqrt()
            return x @ w.T

        z, modes = query.reshape(-1, width), shift(tokens, 0.3).reshape(-1, width)
        t = (logits(teacher, shift(keys, 0.5).reshape(-1, width)) / temperature).exp().detach()
        t = t / t.sum(-1, keepdim=True)
        s = (logits(student, modes) / 0.1).exp()
        s = s / s.sum(-1, keepdim=True)
        cosines = (z * modes).sum(-1) / (z.square().sum(-1).sqrt() * modes.square().sum(-1).sqrt())
        mean = s.mean(0)
        loss = (
            0.03 * (2 - 2 * cosines).mean()
            - (t * s.log()).sum(-1).mean()
            + 5 * ((mean * mean.log()).sum() + math.log(prototypes))
        )
    gradients = torch.autograd.grad(loss, [tokens, *student.parameters()])
    return float(loss.detach()), [gradient.double() for gradient in gradients]


def test_step_and_gradients_equal_float64_formulas() -> None:
    loss, gradients = step(torch.float32, fast=True)
    wanted_loss, wanted = step(torch.float64, fast=False)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_no_gradient_flows_to_the_teacher() -> None:
    arrays = {name: torch.tensor(value, requires_grad=True) for name, value in random_arrays(4, 8, 6, 0).items()}
    loss, _ = FLSLObjective(6)(arrays["tokens"], arrays["modes"], arrays["student"], arrays["teacher"], 0.05)
    loss.backward()
    assert arrays["teacher"].grad is None
    assert arrays["student"].grad is not None


def test_volume_is_zero_for_uniform_and_log_k_for_collapsed_assignments() -> None:
    even = torch.zeros(8, 5)
    collapsed = torch.zeros(8, 5)
    collapsed[:, 2] = 1000.0
    for logits, wanted in ((even, 0.0), (collapsed, math.log(5))):
        _, parts = FLSLObjective(5)(torch.rand(8, 3), torch.rand(8, 3), logits, even, 0.07)
        assert float(parts["volume"]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.02, 0.01, 0.005, 0.001])
def test_prototypes_that_nothing_is_assigned_to_leave_the_gradient_finite(temperature: float) -> None:
    logits = torch.full((5, 8), -0.9)
    logits[:, 0] = 0.9
    logits.requires_grad_()
    objective = FLSLObjective(8, student_temperature=temperature)
    loss, parts = objective(torch.rand(5, 3), torch.rand(5, 3), logits, logits.detach(), 0.07)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(parts["volume"]) == pytest.approx(math.log(8), abs=1e-5)


def test_loss_is_float32_under_autocast() -> None:
    arrays = random_arrays(6, 8, 40, 1)
    exact, _ = call(FLSLObjective(40), arrays, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = call(FLSLObjective(40), arrays, 0.05)
    assert float(loss) == float(exact)


def test_centring_is_dinos() -> None:
    objective, center = FLSLObjective(6, volume_weight=0.0, center_momentum=0.9), np.zeros(6)
    for seed in range(3):
        arrays = random_arrays(5, 8, 6, seed)
        loss, _ = call(objective, arrays, 0.05)
        shifted = arrays | {"teacher": arrays["teacher"] - center}
        assert float(loss) == pytest.approx(by_formula(shifted, 0.05, (0.03, 1.0, 0.0))["loss"], rel=1e-5)
        center = 0.9 * center + 0.1 * arrays["teacher"].mean(0)
        np.testing.assert_allclose(objective.center.numpy(), center, atol=1e-6)


def test_scheduled_weight_replaces_the_own_one() -> None:
    arrays = random_arrays(5, 8, 6, 0)
    tensors = [torch.tensor(arrays[name]) for name in ("tokens", "modes", "student", "teacher")]
    loss, _ = FLSLObjective(6)(*tensors, teacher_temperature=0.05, intra_weight=0.5)
    assert float(loss) == pytest.approx(by_formula(arrays, 0.05, (0.5, 1.0, 5.0))["loss"], rel=1e-5)

"""Losses of assignments block by block against their plain form, gradients and memory too."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from flsl.pretrain import assignments
from flsl.pretrain.assignments import PLAIN, Blocks, cross_entropy_and_mean, mean_entropy


def plain(student: Tensor, teacher: Tensor, center: Tensor | None, t_s: float, t_t: float) -> tuple[Tensor, Tensor]:
    s = torch.softmax(student / t_s, -1)
    t = torch.softmax((teacher if center is None else teacher - center) / t_t, -1)
    return -(t * s.log()).sum(-1).mean(), s.mean(0)


def value(entropy: Tensor, mean: Tensor) -> Tensor:
    """Something that depends on both results in different ways."""
    return 1.5 * entropy + 5 * torch.xlogy(mean, mean).sum()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # a few rows each, and a shorter last one
    monkeypatch.setitem(assignments._BLOCK, "cpu", 30)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(2, 12), st.booleans(), st.floats(0.03, 0.2), st.integers(0, 99))
def test_losses_and_gradients_equal_the_plain_form(
    tokens: int, prototypes: int, centred: bool, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.rand(2, tokens, prototypes, generator=generator, dtype=torch.float64) - 1).unbind()
    student.requires_grad_()
    center = torch.rand(prototypes, generator=generator, dtype=torch.float64) if centred else None
    found = cross_entropy_and_mean(student, teacher, 0.1, temperature, center)
    wanted = plain(student, teacher, center, 0.1, temperature)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(value(*pair), student)[0] for pair in (found, wanted)))


def test_gradients_equal_finite_differences() -> None:
    student, teacher = (torch.rand(7, 6, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: cross_entropy_and_mean(logits, teacher, 0.1, 0.07), (student,))


def test_a_centre_that_moves_before_the_backward_pass_does_not_matter() -> None:
    student, teacher, center = torch.rand(7, 6, requires_grad=True), torch.rand(7, 6), torch.rand(6)
    wanted = torch.autograd.grad(value(*plain(student, teacher, center.clone(), 0.1, 0.07)), student)[0]
    found = value(*cross_entropy_and_mean(student, teacher, 0.1, 0.07, center))
    center += 1
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], wanted)


def test_half_precision_logits_are_kept_once_and_computed_with_in_float32() -> None:
    student, teacher = torch.rand(50, 40).bfloat16().requires_grad_(), torch.rand(50, 40).bfloat16()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        entropy, mean = cross_entropy_and_mean(student, teacher, 0.1, 0.07)
    # the student's and the teacher's logits as they are, and nothing else of that size
    assert sorted(tensor.data_ptr() for tensor in kept if tensor.numel() >= 50 * 40) == sorted(
        [student.data_ptr(), teacher.data_ptr()]
    )
    wanted = plain(student.float(), teacher.float(), None, 0.1, 0.07)
    assert entropy.dtype == mean.dtype == torch.float32
    torch.testing.assert_close((entropy, mean), wanted)


def test_mean_entropy_equals_the_definition() -> None:
    logits = torch.rand(11, 9)
    for center in (None, torch.rand(9)):
        shares = torch.softmax((logits if center is None else logits - center) / 0.05, -1)
        torch.testing.assert_close(mean_entropy(logits, 0.05, center), -(shares * shares.log()).sum(-1).mean())


def test_compiled_blocks_equal_plain_ones_at_all_sizes_and_temperatures() -> None:
    # the backend that makes machine code takes a minute; this one shows that the functions can be compiled
    compiled = Blocks.compiled("aot_eager")
    for tokens, temperature in ((7, 0.04), (12, 0.05), (3, 0.07)):
        student, teacher = torch.rand(tokens, 6, requires_grad=True), torch.rand(tokens, 6)
        pairs = [
            cross_entropy_and_mean(student, teacher, 0.1, temperature, None, blocks) for blocks in (PLAIN, compiled)
        ]
        torch.testing.assert_close(*pairs)
        torch.testing.assert_close(*(torch.autograd.grad(value(*pair), student)[0] for pair in pairs))
        torch.testing.assert_close(*(mean_entropy(teacher, temperature, None, blocks) for blocks in (PLAIN, compiled)))

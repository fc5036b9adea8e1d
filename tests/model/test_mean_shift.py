"""Mean shift against its definition, written out with loops."""

import math

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from flsl.model.mean_shift import absolute_temperature, attention_map, mean_shift, sharp_attention_map


def by_definition(queries: np.ndarray, keys: np.ndarray, temperature: float) -> np.ndarray:
    modes = np.zeros((*queries.shape[:2], keys.shape[-1]))
    for image in range(len(queries)):
        for row, query in enumerate(queries[image]):
            weights = [math.exp(temperature * float(query @ key)) for key in keys[image]]
            for weight, key in zip(weights, keys[image], strict=True):
                modes[image, row] += weight / sum(weights) * key
    return modes


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7), st.integers(1, 9), st.floats(0, 2), st.integers(0, 9))
def test_equals_the_definition(batch: int, m: int, n: int, width: int, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, keys = rng.standard_normal((batch, m, width)), rng.standard_normal((batch, n, width))
    modes = mean_shift(torch.tensor(queries), torch.tensor(keys), temperature)
    assert modes.dtype == torch.float32
    np.testing.assert_allclose(modes.numpy(), by_definition(queries, keys, temperature), rtol=2e-4, atol=2e-5)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(2, 7), st.floats(0, 1), st.floats(1, 1e4), st.integers(0, 9))
def test_mixture_with_a_sharp_prior_equals_the_definition(
    m: int, n: int, share: float, sharpness: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    queries, keys, others = (torch.tensor(rng.standard_normal((2, rows, 6))) for rows in (m, n, m))
    prior = sharp_attention_map(others, keys, 0.5, sharpness)
    attention = attention_map(others, keys, 0.5).double()
    mask = torch.sigmoid(sharpness * (attention - attention.mean(-1, keepdim=True)))
    np.testing.assert_allclose(prior, mask / mask.sum(-1, keepdim=True), atol=2e-3)
    np.testing.assert_allclose(prior.sum(-1), 1, rtol=1e-5)
    mixed = share * attention_map(queries, keys, 0.5) + (1 - share) * prior
    mixed = mixed / mixed.sum(-1, keepdim=True)
    modes = mean_shift(queries, keys, 0.5, prior, share)
    np.testing.assert_allclose(modes, mixed @ keys.float(), rtol=1e-4, atol=1e-5)


def test_gradients_flow_to_queries_and_keys() -> None:
    torch.manual_seed(0)
    queries = torch.randn(2, 3, 4, requires_grad=True)
    keys = torch.randn(2, 5, 4, requires_grad=True)
    ours = torch.autograd.grad(mean_shift(queries, keys, 0.7).square().sum(), (queries, keys))
    plain = torch.softmax(0.7 * queries @ keys.transpose(1, 2), -1) @ keys
    theirs = torch.autograd.grad(plain.square().sum(), (queries, keys))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_softmax_is_float32_under_autocast() -> None:
    queries, keys = 3 * torch.randn(1, 4, 64), 3 * torch.randn(1, 9, 64)
    exact = mean_shift(queries, keys, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mean_shift(queries, keys, 0.5), exact, atol=1e-6, rtol=1e-6)


def test_attention_map_gives_the_modes() -> None:
    queries, keys = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    torch.testing.assert_close(attention_map(queries, keys, 0.3) @ keys, mean_shift(queries, keys, 0.3))


def test_temperature_keeps_its_sharpness_at_any_width() -> None:
    assert math.isclose(absolute_temperature(0.1, 384), 0.1 / math.sqrt(384))
    # layer-normalised tokens of width C have logits τ·C·cos
    assert math.isclose(absolute_temperature(0.1, 128) * 128, absolute_temperature(0.1, 384) * 384)

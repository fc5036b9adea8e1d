"""Health figures against counting by hand, and on known kinds of collapse."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.cluster import expected_mutual_information, mutual_info_score

from flsl.pretrain.health import Health


def one_hot(assigned: np.ndarray, prototypes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(assigned), prototypes).float()


def entropy(values: list[object]) -> float:
    _, counts = np.unique(np.array(values), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def test_figures_equal_counting_by_hand() -> None:
    rng = np.random.default_rng(0)
    health = Health(prototypes=7, positions=9)
    student, teacher, entropies, variances = [], [], [], []
    for _ in range(3):
        tokens, logits = rng.standard_normal((20, 4)), rng.uniform(-1, 1, (20, 7))
        mine, queries = rng.integers(0, 7, 20), rng.integers(0, 9, (3, 4))
        health.update(torch.tensor(tokens), one_hot(mine, 7), torch.tensor(logits), 0.1, torch.tensor(queries))
        student += mine.tolist()
        teacher += logits.argmax(1).tolist()
        powers = np.exp(logits / 0.1)
        shares = powers / powers.sum(1, keepdims=True)
        entropies.append(-(shares * np.log(shares)).sum(1).mean())
        variances.append(tokens.var(0, ddof=1).mean())
    figures = health.window()
    assert figures["student_perplexity"] == pytest.approx(math.exp(entropy(student)), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(entropy(teacher)), rel=1e-5)
    assert figures["prototypes_used"] == pytest.approx(100 * len(set(teacher)) / 7)
    assert figures["teacher_entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert figures["feature_variance"] == pytest.approx(np.mean(variances), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_position_information_is_scikit_learns_adjusted_for_chance(share: float) -> None:
    rng = np.random.default_rng(0)
    prototypes, tokens = 64, 2000  # not one token a cell
    positions = rng.integers(0, 36, (tokens // 4, 4))
    own = np.where(rng.random(tokens) < share, positions.ravel(), rng.integers(0, prototypes, tokens))
    health = Health(prototypes, 36)
    logits = one_hot(own, prototypes)
    health.update(torch.rand(tokens, 2), logits, logits, 0.1, torch.from_numpy(positions))
    table = np.bincount(own * 36 + positions.ravel(), minlength=prototypes * 36).reshape(-1, 36)
    found = mutual_info_score(own, positions.ravel())
    chance = expected_mutual_information(table[table.any(1)], tokens)
    wanted = 100 * (found - chance) / (entropy(positions.ravel().tolist()) - chance)
    assert health.epoch()["position_information"] == pytest.approx(max(0.0, wanted), abs=0.7)


def test_centred_assignments_are_those_of_the_targets() -> None:
    tokens, logits, center = torch.rand(12, 3), torch.rand(12, 5), torch.tensor([0.9, 0.0, 0.2, 0.0, 0.1])
    queries = torch.arange(12).reshape(3, 4) % 4
    centred, shifted = Health(5, 4), Health(5, 4)
    centred.update(tokens, logits, logits, 0.05, queries, center)
    shifted.update(tokens, logits, logits - center, 0.05, queries)
    assert centred.window() == pytest.approx(shifted.window())
    assert centred.epoch() == pytest.approx(shifted.epoch())


def test_a_single_token_has_no_variance() -> None:
    health = Health(4, 1)
    health.update(torch.rand(1, 2), torch.rand(1, 4), torch.rand(1, 4), 0.1, torch.zeros(1, 1, dtype=torch.int64))
    assert health.window()["feature_variance"] == 0


def test_window_and_epoch_start_anew() -> None:
    health = Health(4, 4)
    health.update(torch.rand(4, 2), torch.rand(4, 4), torch.rand(4, 4), 0.1, torch.arange(4)[None])
    health.window()
    health.epoch()
    assert all(not buffer.any() for buffer in health.buffers())


def test_collapse_to_one_prototype_shows() -> None:
    health = Health(8, 4)
    same = one_hot(np.zeros(16, dtype=np.int64), 8)
    health.update(torch.rand(16, 2), same, same, 0.1, torch.arange(4).repeat(4, 1))
    figures = health.window()
    assert figures["perplexity"] == pytest.approx(1)
    assert figures["prototypes_used"] == pytest.approx(100 / 8)
    assert health.epoch()["position_information"] == pytest.approx(0, abs=1e-6)


def test_agreeing_on_the_position_alone_shows() -> None:
    health = Health(8, 4)
    positions = np.tile(np.arange(4), 4)
    own = one_hot(positions, 8)
    health.update(torch.rand(16, 2), own, own, 0.1, torch.from_numpy(positions).reshape(4, 4))
    assert health.epoch()["position_information"] == pytest.approx(100)

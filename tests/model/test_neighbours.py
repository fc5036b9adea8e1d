"""Neighbour search and k-NN votes against slow, obvious references and scikit-learn."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from flsl.model import neighbours
from flsl.model.neighbours import accuracies, knn_accuracy, knn_predictions, predict, top_neighbours, vote
from flsl.runtime.errors import UserError


def reference_neighbours(queries: torch.Tensor, bank: torch.Tensor, k: int) -> tuple[list, list]:
    """Sort every row in Python by (larger inner product, smaller index)."""
    similarities, indices = [], []
    for row in (queries.double() @ bank.double().T).tolist():
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        similarities.append([row[i] for i in order])
        indices.append(order)
    return similarities, indices


def reference_vote(similarities: list[float], labels: list[int], classes: int, temperature: float) -> list[int]:
    """Return the first five classes, the one with most votes first, equal votes by smaller class."""
    votes = dict.fromkeys(range(classes), 0.0)
    for similarity, label in zip(similarities, labels, strict=True):
        votes[label] += math.exp(similarity / temperature)
    return sorted(votes, key=lambda c: (-votes[c], c))[:5]


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    monkeypatch.setattr(neighbours, "_chunk_sizes", lambda *_: (rows, columns))


@settings(max_examples=150)
@given(
    data=st.data(),
    queries=st.integers(1, 9),
    bank=st.integers(1, 40),
    width=st.integers(1, 4),
    rows=st.integers(1, 10),
    columns=st.integers(1, 41),
)
def test_equals_a_full_sort_with_many_ties_however_the_sets_are_cut(data, queries, bank, width, rows, columns) -> None:
    # small integers: inner products are exact, and equal ones abound
    k = data.draw(st.integers(1, bank))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    asked = torch.randint(-2, 3, (queries, width), generator=generator).float()
    keys = torch.randint(-2, 3, (bank, width), generator=generator).float()
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, rows, columns)
        similarities, indices = top_neighbours(asked, keys, k, cosine=False)
    expected_similarities, expected_indices = reference_neighbours(asked, keys, k)
    assert similarities.tolist() == expected_similarities
    assert indices.tolist() == expected_indices


def test_all_equal_rows_give_the_first_ones() -> None:
    similarities, indices = top_neighbours(torch.ones(3, 8), torch.ones(500, 8), 7)
    assert indices.tolist() == [list(range(7))] * 3
    torch.testing.assert_close(similarities, torch.ones(3, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_cosines_equal_brute_force_for_every_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    queries, bank = torch.randn(37, 24).to(dtype), (5 * torch.randn(301, 24)).to(dtype)
    similarities, indices = top_neighbours(queries, bank, 11, memory_mb=16)
    expected = torch.nn.functional.cosine_similarity(queries.double()[:, None], bank.double()[None], dim=2)
    values, places = expected.topk(11, dim=1)
    torch.testing.assert_close(similarities.double(), values, atol=1e-6, rtol=0)
    assert (indices == places).float().mean() > 0.999  # float32 rounding may swap near-equals


def test_cutting_by_memory_leaves_the_result_and_chunks_within_the_limit() -> None:
    torch.manual_seed(1)
    queries, bank = torch.randn(700, 64), torch.randn(30_000, 64)
    whole = top_neighbours(queries, bank, 20, memory_mb=2048)
    rows, columns = neighbours._chunk_sizes(700, 30_000, 64, 16)
    assert rows * columns * 4 <= 8 * 2**20 < 700 * 30_000 * 4
    assert columns * 64 * 4 * 2 + rows * 64 * 4 * 2 <= 8 * 2**20
    cut = top_neighbours(queries, bank, 20, memory_mb=16)
    torch.testing.assert_close(cut[0], whole[0], atol=1e-6, rtol=0)
    assert (cut[1] == whole[1]).float().mean() > 0.9999


def test_memory_stays_bounded_even_when_every_row_is_tied() -> None:
    # the whole similarity matrix would take 122 MiB; a limit of 16 MiB must show in the process's peak
    script = """
import resource, sys, torch
from flsl.model.neighbours import top_neighbours
queries, bank = torch.ones(800, 16), torch.ones(40_000, 16)
top_neighbours(queries[:10], bank[:1000], 20, memory_mb=16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
top_neighbours(queries, bank, 20, memory_mb=16)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 40


def test_vote_equals_the_definition() -> None:
    similarities = torch.tensor([[0.9, 0.5, 0.5, -0.2]])
    labels = torch.tensor([[2, 0, 2, 1]])
    weights = [math.exp(s / 0.07) for s in (0.9, 0.5, 0.5, -0.2)]
    expected = [weights[1], weights[3], weights[0] + weights[2], 0.0]
    got = vote(similarities, labels, 4, 0.07)[0]
    assert got.tolist() == pytest.approx([e / sum(weights) for e in expected], rel=1e-6)


def test_vote_does_not_overflow_at_small_temperatures() -> None:
    shares = vote(torch.tensor([[1.0, 0.99]]), torch.tensor([[1, 0]]), 2, 1e-4)
    assert shares[0].tolist() == pytest.approx([0, 1], abs=1e-12)


def test_equal_votes_go_to_the_smaller_class_and_classes_without_votes_come_last() -> None:
    similarities = torch.full((1, 4), 0.3)
    classes, shares = predict(similarities, torch.tensor([[5, 3, 3, 5]]), 7, 0.07)
    assert classes.tolist() == [[3, 5, 0, 1, 2]]
    assert shares[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0])


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 9), k=st.integers(1, 30), memory=st.sampled_from([16, 64]))
def test_predictions_equal_the_slow_reference(seed: int, classes: int, k: int, memory: int) -> None:
    torch.manual_seed(seed)
    queries, bank = torch.randn(12, 5), torch.randn(30, 5)
    labels = torch.randint(classes, (30,))
    got = knn_predictions(queries, bank, labels, classes, [k], memory_mb=memory)[k]
    similarities, indices = reference_neighbours(
        torch.nn.functional.normalize(queries.double()), torch.nn.functional.normalize(bank.double()), k
    )
    for predicted, near, places in zip(got.tolist(), similarities, indices, strict=True):
        assert predicted == reference_vote(near, labels[places].tolist(), classes, 0.07)


def test_one_search_serves_every_k() -> None:
    torch.manual_seed(3)
    queries, bank, labels = torch.randn(50, 8), torch.randn(200, 8), torch.randint(6, (200,))
    together = knn_predictions(queries, bank, labels, 6, [20, 1, 5])
    assert list(together) == [1, 5, 20]
    for k, predicted in together.items():
        assert torch.equal(predicted, knn_predictions(queries, bank, labels, 6, [k])[k])


def test_accuracy_equals_scikit_learns_classifier() -> None:
    torch.manual_seed(4)
    labels, query_labels = torch.randint(8, (600,)), torch.randint(8, (250,))
    centres = torch.randn(8, 16)
    bank = centres[labels] + 1.3 * torch.randn(600, 16)
    queries = centres[query_labels] + 1.3 * torch.randn(250, 16)
    judge = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank.numpy(), labels.numpy())
    shares = judge.predict_proba(queries.numpy())
    figures = knn_accuracy(queries, query_labels, bank, labels, 8, [20])
    assert figures["top1@20"] == pytest.approx(100 * (shares.argmax(1) == query_labels.numpy()).mean())
    best = np.argsort(-shares, axis=1, kind="stable")[:, :5]
    hits = (best == query_labels.numpy()[:, None]).any(1)
    assert figures["top5@20"] == pytest.approx(100 * hits.mean())
    assert 20 < figures["top1@20"] < 95  # neither trivial nor perfect


@pytest.mark.parametrize("k", [1, 3, 10])
def test_top5_is_that_of_dinos_evaluation(k: int) -> None:
    torch.manual_seed(5)
    labels, query_labels = torch.randint(30, (900,)), torch.randint(30, (300,))
    centres = torch.randn(30, 16)
    bank, queries = centres[labels] + torch.randn(900, 16), centres[query_labels] + torch.randn(300, 16)
    cosines, places = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2).topk(k)
    votes = torch.zeros(300, 30).scatter_add_(1, labels[places], (cosines / 0.07).exp())
    right = votes.sort(dim=1, descending=True, stable=True).indices == query_labels[:, None]
    expected = 100 * right[:, : min(5, k)].any(1).double().mean().item()
    assert knn_accuracy(queries, query_labels, bank, labels, 30, [k])[f"top5@{k}"] == pytest.approx(expected)


def test_top5_is_left_out_with_fewer_than_five_classes() -> None:
    predictions = {3: torch.tensor([[0, 1], [1, 0]])}
    assert accuracies(predictions, torch.tensor([1, 1]), 2) == {"top1@3": 50.0}


@pytest.mark.parametrize(
    ("queries", "bank", "k", "message"),
    [
        (torch.ones(2, 4), torch.ones(5, 4), 6, "k-NN: 6 neighbours are asked for, but there are only 5"),
        (torch.ones(2, 4), torch.full((5, 4), torch.nan), 2, "row 0 is not finite"),
        (torch.tensor([[1.0], [torch.inf]]), torch.ones(5, 1), 2, "row 1 is not finite"),
    ],
)
def test_bad_input_is_one_clear_line(queries: torch.Tensor, bank: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        top_neighbours(queries, bank, k)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_what_the_cpu_finds() -> None:
    torch.manual_seed(5)
    queries, bank = torch.randn(100, 32), torch.randn(5000, 32)
    cpu = top_neighbours(queries, bank, 20)
    cuda = top_neighbours(queries, bank, 20, memory_mb=16, device=torch.device("cuda"))
    torch.testing.assert_close(cuda[0].cpu(), cpu[0], atol=1e-5, rtol=0)
    assert (cuda[1].cpu() == cpu[1]).float().mean() > 0.999

"""The grid of linear probes against PyTorch's own layer, optimiser and schedule, and scikit-learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from flsl.probe.grid import LinearGrid

WIDTH, CLASSES = 7, 4


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [16] * (count - 1) + [5]  # the last batch of an epoch is smaller
    return [
        (torch.randn(n, 4, WIDTH, generator=generator), torch.randint(CLASSES, (n,), generator=generator))
        for n in sizes
    ]


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_every_probe_becomes_what_torch_trains_alone(decay: float) -> None:
    blocks, rates, data = [1, 4, 2], [1e-3, 0.1, 2.0], batches(12)
    grid = LinearGrid(WIDTH, blocks, rates, CLASSES, len(data), decay, seed=3)
    starts = [grid.weights(index) for index in range(len(grid.probes))]
    losses = [grid.step(features, labels) for features, labels in data]
    assert [(probe.blocks, probe.learning_rate) for probe in grid.probes] == [(b, r) for b in blocks for r in rates]
    for index, probe in enumerate(grid.probes):
        layer = nn.Linear(probe.blocks * WIDTH, CLASSES)
        with torch.no_grad():
            layer.weight.copy_(starts[index][0])
            layer.bias.copy_(starts[index][1])
        optimiser = torch.optim.SGD(layer.parameters(), probe.learning_rate, momentum=0.9, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(data))
        for step, (features, labels) in enumerate(data):
            chosen = torch.cat([features[:, block] for block in range(4 - probe.blocks, 4)], dim=1)
            loss = F.cross_entropy(layer(chosen), labels)
            torch.testing.assert_close(losses[step][index], loss.detach(), rtol=1e-4, atol=1e-5)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        weight, bias = grid.weights(index)
        torch.testing.assert_close(weight, layer.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias, layer.bias.detach(), rtol=1e-4, atol=1e-5)
        assert not torch.equal(weight, starts[index][0])


def test_probes_of_one_choice_start_equal_and_small() -> None:
    grid = LinearGrid(WIDTH, [1, 2], [0.1, 0.2], CLASSES, 1)
    assert torch.equal(grid.weights(0)[0], grid.weights(1)[0])
    assert torch.equal(grid.weights(2)[0], grid.weights(3)[0])
    assert grid.weights(2)[0].shape == (CLASSES, 2 * WIDTH)
    assert 0 < grid.weights(2)[0].std() < 0.03
    assert not grid.weights(0)[1].any()


def test_a_diverging_probe_leaves_the_others_alone() -> None:
    data = batches(20)
    with_wild, without = (LinearGrid(WIDTH, [2], rates, CLASSES, 20) for rates in ([0.1, 1e38], [0.1]))
    for features, labels in data:
        with_wild.step(features, labels)
        without.step(features, labels)
    assert not with_wild.weights(1)[0].isfinite().all()
    torch.testing.assert_close(with_wild.weights(0)[0], without.weights(0)[0])
    features, labels = data[0]
    right = with_wild.right(features, labels)
    assert right[:, 1].tolist() == [0, 0]
    assert torch.equal(right[:, :1], without.right(features, labels))


def test_right_counts_as_a_sort_does() -> None:
    grid = LinearGrid(WIDTH, [1, 3], [0.5, 0.05], 8, 30)
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(200, 4, WIDTH, generator=generator), torch.randint(8, (200,), generator=generator)
    for _ in range(30):
        grid.step(features[:100], labels[:100])
    right = grid.right(features, labels, (1, 5))
    for index, probe in enumerate(grid.probes):
        weight, bias = grid.weights(index)
        logits = features[:, 4 - probe.blocks :].reshape(200, -1) @ weight.T + bias
        order = logits.sort(dim=1, descending=True, stable=True).indices
        assert right[0, index] == (order[:, 0] == labels).sum()
        assert right[1, index] == (order[:, :5] == labels[:, None]).any(1).sum()


def test_equal_logits_are_ordered_by_class() -> None:
    grid = LinearGrid(WIDTH, [1], [0.1], CLASSES, 1)
    zeros = torch.zeros(CLASSES, 1, WIDTH)  # every class gets the same logit, its bias of 0
    assert grid.right(zeros, torch.arange(CLASSES), (1, 2)).tolist() == [[1], [2]]


def test_training_continues_exactly_from_its_state() -> None:
    data = batches(10)
    straight, halted = (LinearGrid(WIDTH, [1, 4], [0.1, 1.0], CLASSES, 10) for _ in range(2))
    for features, labels in data:
        straight.step(features, labels)
    for features, labels in data[:6]:
        halted.step(features, labels)
    state = {name: value.clone() for name, value in halted.state_dict().items()}
    resumed = LinearGrid(WIDTH, [1, 4], [0.1, 1.0], CLASSES, 10, seed=99)
    resumed.load_state_dict(state)
    assert resumed.done == 6
    for features, labels in data[6:]:
        resumed.step(features, labels)
    for index in range(4):
        for got, expected in zip(resumed.weights(index), straight.weights(index), strict=True):
            assert torch.equal(got, expected)


def test_separable_classes_are_learnt_as_scikit_learn_does() -> None:
    torch.manual_seed(0)
    centres = 3 * torch.randn(5, 16)
    labels, test_labels = torch.randint(5, (600,)), torch.randint(5, (300,))
    features, test = centres[labels] + torch.randn(600, 16), centres[test_labels] + torch.randn(300, 16)
    grid = LinearGrid(16, [1], [0.01, 0.1], 5, 20 * 6)
    for _ in range(20):
        for part in torch.randperm(600).split(100):
            grid.step(features[part, None], labels[part])
    ours = grid.right(test[:, None], test_labels, (1,))[0].max().item() / 300
    judge = LogisticRegression(max_iter=1000).fit(features.numpy(), labels.numpy())
    theirs = judge.score(test.numpy(), test_labels.numpy())
    assert theirs > 0.97
    assert ours >= theirs - 0.01

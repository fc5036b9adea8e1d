"""Many linear classifiers trained at once on shared features, as DINOv2's evaluation does (arXiv 2304.07193).

The probes of one feature choice are one parameter tensor: a step is one matrix product forward, one backward, and one
fused update with a learning rate for each probe. What each probe computes is what ``nn.Linear``, the mean
cross-entropy, ``torch.optim.SGD`` with momentum and ``CosineAnnealingLR`` (a step a batch, to 0) would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM = 0.9
_INITIAL_STD = 0.01


@dataclass(frozen=True)
class Probe:
    """One probe of the grid.

    Attributes:
        blocks: its features are the mean tokens of this many last blocks, concatenated.
        learning_rate: at the first step.
    """

    blocks: int
    learning_rate: float


class _Group:
    """The probes of one feature choice: weights (D, G, classes), biases (G, classes), and momenta times rates."""

    def __init__(self, width: int, rates: Tensor, classes: int, generator: torch.Generator) -> None:
        # all start from equal weights, so that they differ in nothing but the learning rate
        first = _INITIAL_STD * torch.randn(width, 1, classes, generator=generator)
        self.weight = first.expand(-1, len(rates), -1).contiguous().to(rates.device)
        self.bias = torch.zeros(len(rates), classes, device=rates.device)
        self.weight_momentum, self.bias_momentum = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.rates = rates[:, None]

    def logits(self, features: Tensor) -> Tensor:
        """Return (batch, G, classes) of features (batch, D)."""
        product = torch.mm(features, self.weight.flatten(1))
        return product.view(len(features), *self.bias.shape).add_(self.bias)

    def step(self, features: Tensor, labels: Tensor, factor: float, decay: float) -> Tensor:
        """Take one step of SGD; return each probe's loss (G,) before it."""
        logits = self.logits(features)
        level = logits.logsumexp(2, keepdim=True)
        target = labels[:, None, None].expand(-1, logits.shape[1], 1)
        losses = (level - logits.gather(2, target))[..., 0].mean(0)
        # the gradient of the mean cross-entropy: softmax less one at the label
        gradient = logits.sub_(level).exp_().scatter_add_(2, target, -torch.ones_like(level))
        # momenta hold rate × momentum: scaling this small tensor leaves two passes over the weights, none a broadcast
        gradient.mul_(self.rates / len(features))
        self.weight_momentum.flatten(1).addmm_(features.T, gradient.flatten(1), beta=MOMENTUM)
        self.bias_momentum.mul_(MOMENTUM).add_(gradient.sum(0))
        for value, momentum in ((self.weight, self.weight_momentum), (self.bias, self.bias_momentum)):
            if decay:
                momentum.addcmul_(value, self.rates, value=decay)
            value.sub_(momentum, alpha=factor)
        return losses


class LinearGrid:
    """A grid of linear probes: every learning rate on every feature choice.

    Attributes:
        probes: in the order of all results: by feature choice, then by learning rate.
        done: steps taken.
        classes: number of classes.

    Args:
        width: width C of a block's features.
        blocks: feature choices: numbers of last blocks.
        learning_rates: at the first step, not scaled any more.
        classes: number of classes.
        steps: of the whole training; the learning rates follow a cosine to 0 over them.
        weight_decay: of weights and biases.
        seed: of the initial weights.
        device: where to compute.
    """

    def __init__(
        self,
        width: int,
        blocks: Sequence[int],
        learning_rates: Sequence[float],
        classes: int,
        steps: int,
        weight_decay: float = 0.0,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.probes = [Probe(count, rate) for count in blocks for rate in learning_rates]
        self.done, self.classes = 0, classes
        self._steps, self._decay = steps, weight_decay
        generator = torch.Generator().manual_seed(seed)
        rates = torch.tensor(list(learning_rates), device=device)
        self._groups = {count: _Group(count * width, rates, classes, generator) for count in blocks}

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor) -> Tensor:
        """Take one step of every probe.

        Args:
            features: (batch, blocks, C), float32, of at least as many last blocks as the largest choice, the last last.
            labels: (batch,), int64.

        Returns:
            the probes' losses (len(probes),) before the step.
        """
        factor = 0.5 * (1 + math.cos(math.pi * self.done / self._steps))
        self.done += 1
        losses = [
            group.step(_choose(features, count), labels, factor, self._decay) for count, group in self._groups.items()
        ]
        return torch.cat(losses)

    @torch.no_grad()
    def right(self, features: Tensor, labels: Tensor, top: Sequence[int] = (1, 5)) -> Tensor:
        """Count the images whose class is among a probe's first ones, equal logits ordered by class.

        Args:
            features: (n, blocks, C), as for :meth:`step`.
            labels: (n,), int64.
            top: how many first classes count.

        Returns:
            (len(top), len(probes)), int64; a probe that has diverged has none right.
        """
        return torch.cat(
            [self._right(group, _choose(features, count), labels, top) for count, group in self._groups.items()], 1
        )

    @staticmethod
    def _right(group: _Group, features: Tensor, labels: Tensor, top: Sequence[int]) -> Tensor:
        logits = group.logits(features)
        own = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))
        earlier = torch.arange(logits.shape[2], device=logits.device) < labels[:, None, None]
        before = ((logits > own) | ((logits == own) & earlier)).sum(2)
        # comparisons with NaN are false: a diverged probe would seem always right
        before[~logits.isfinite().all(2)] = max(top)
        return torch.stack([(before < count).sum(0) for count in top])

    def weights(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the weight (classes, D) and bias (classes,) of ``probes[index]``, as ``nn.Linear`` holds them."""
        group = self._groups[self.probes[index].blocks]
        place = index % len(group.rates)
        return group.weight[:, place].T.contiguous(), group.bias[place].clone()

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that training changes."""
        state = {"done": torch.tensor(self.done)}
        for count, group in self._groups.items():
            for name in ("weight", "bias", "weight_momentum", "bias_momentum"):
                state[f"{count}.{name}"] = getattr(group, name)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.done = int(state["done"])
        for count, group in self._groups.items():
            for name in ("weight", "bias", "weight_momentum", "bias_momentum"):
                getattr(group, name).copy_(state[f"{count}.{name}"])


def _choose(features: Tensor, blocks: int) -> Tensor:
    """Return the features of the last ``blocks`` blocks, concatenated: (batch, blocks × C)."""
    return features[:, features.shape[1] - blocks :].flatten(1)

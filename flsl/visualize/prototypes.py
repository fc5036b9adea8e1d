"""How a data set uses the prototypes, and which patches lie nearest to each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flsl.visualize.models import Looked


@dataclass(frozen=True)
class Usage:
    """The use of K prototypes over a data set.

    Attributes:
        counts: (K,) patches whose mode is assigned to each prototype, int64.
        similarity: (n, K) cosines of the nearest patches, falling; no two patches are of one image.
        image: (n, K) which image each is of.
        patch: (n, K) which patch of it, row by row.
    """

    counts: Tensor
    similarity: Tensor
    image: Tensor
    patch: Tensor

    @property
    def used(self) -> int:
        """How many prototypes have at least one patch."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the assignments: how many prototypes an even use would come to."""
        share = self.counts.double() / self.counts.sum()
        return float(torch.exp(-torch.xlogy(share, share).sum()))

    def most_used(self, count: int) -> list[int]:
        """Return the ``count`` prototypes with the most patches, falling; only those that have any."""
        order = torch.sort(self.counts, descending=True, stable=True).indices[:count].tolist()
        return [index for index in order if self.counts[index] > 0]


@torch.no_grad()
def count_usage(model: Looked, batches: Iterable[Tensor], nearest: int) -> Usage:
    """Assign each patch's mode of all images to its prototype, and keep each prototype's nearest patches.

    Args:
        model: with a head.
        batches: images (batch, 3, S, S) in [0, 1].
        nearest: how many patches are kept for a prototype.
    """
    assert model.head is not None
    device = model.head.prototypes.device
    prototypes = len(model.head.prototypes)
    counts = torch.zeros(prototypes, dtype=torch.int64, device=device)
    best = [torch.empty(0, prototypes, device=device, dtype=kind) for kind in (torch.float32, torch.int64, torch.int64)]
    seen = 0
    for images in batches:
        similarities = model.similarities(model.tokens(images))
        counts += torch.bincount(model.assigned(similarities).flatten(), minlength=prototypes)
        similarity, patch = similarities.max(1)
        image = torch.arange(seen, seen + len(images), device=device)[:, None].expand_as(patch)
        seen += len(images)
        both = [torch.cat(pair) for pair in zip(best, (similarity, image, patch), strict=True)]
        order = both[0].argsort(stable=True, dim=0, descending=True)[:nearest]
        best = [part.gather(0, order) for part in both]
    return Usage(counts.cpu(), *(part.cpu() for part in best))

"""The projection head: an MLP, L2 normalisation, and K prototypes on the unit sphere (arXiv 2306.06203)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flsl.config.pretrain import HeadSettings
from flsl.runtime.distributed import all_reduce_with_gradient, world_size


class ProjectionHead(nn.Module):
    """Linear-GELU layers, an L2-normalised bottleneck, and cosine similarities to the prototypes.

    Args:
        in_dim: width C of the tokens.
        prototypes: their number K.
        hidden: width of the hidden layers.
        bottleneck: width of the normalised features.
        layers: linear layers before the prototypes (3 at paper scale).
        batch_norm: normalise after each hidden layer, with statistics over all ranks.

    Shape: (tokens, C) → (tokens, K), the cosines of features and prototypes in [-1, 1].

    >>> head = ProjectionHead(in_dim=8, prototypes=5, hidden=16, bottleneck=4)
    >>> head(torch.randn(3, 8)).shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        width = in_dim
        for _ in range(layers - 1):
            # a bias before batch norm would be subtracted again
            modules.append(nn.Linear(width, hidden, bias=not batch_norm))
            if batch_norm:
                modules.append(SynchronizedBatchNorm(hidden))
            modules.append(nn.GELU())
            width = hidden
        modules.append(nn.Linear(width, bottleneck))
        self.mlp = nn.Sequential(*modules)
        # directions only: normalised in forward, which is weight normalisation with its gain fixed to 1
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_settings(cls, in_dim: int, prototypes: int, settings: HeadSettings) -> ProjectionHead:
        """Build the head that the settings describe."""
        return cls(in_dim, prototypes, settings.hidden, settings.bottleneck, settings.layers, settings.batch_norm)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the cosine of each token's projection with each prototype, (tokens, K), float32."""
        features = F.normalize(self.mlp(tokens).float(), dim=-1)
        # whatever autocast says: divided by a temperature of 0.04, the steps of bfloat16 near 0.7 are a tenth of a nat
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(features, F.normalize(self.prototypes.float(), dim=-1))


class SynchronizedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the tokens of all ranks, on any backend and device.

    torch's SyncBatchNorm works on CUDA only; with this one, two CPU ranks with half a batch each compute what one rank
    computes with the whole.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (tokens, width) by the statistics of all ranks (training) or the running ones (evaluating)."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = input.float()
        ones = values.new_full((1,), values.shape[0])
        sums = all_reduce_with_gradient(torch.cat([values.sum(0), ones]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean
        # squares of centred values: the difference of two large sums would lose digits
        variance = all_reduce_with_gradient(centred.square().sum(0)) / count
        with torch.no_grad():
            momentum = self.momentum if self.momentum is not None else 0.1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            self.num_batches_tracked += 1
        normalised = centred * torch.rsqrt(variance + self.eps)
        return (normalised * self.weight + self.bias).to(input.dtype)

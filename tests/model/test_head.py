"""The projection head: shapes, unit prototypes, initial weights, and batch norm over ranks."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flsl.model.head import ProjectionHead


def test_logits_are_cosines_with_the_prototypes() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(8, prototypes=5, hidden=16, bottleneck=4)
    tokens = torch.randn(3, 8)
    features = tokens
    for layer in head.mlp:
        features = layer(features)
    wanted = torch.stack(
        [torch.stack([F.cosine_similarity(row, prototype, dim=0) for prototype in head.prototypes]) for row in features]
    )
    torch.testing.assert_close(head(tokens), wanted)


def test_cosines_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(8, prototypes=50, hidden=16, bottleneck=4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(torch.randn(9, 8))
    assert logits.dtype == torch.float32
    # not rounded to bfloat16 on the way
    assert not torch.equal(logits, logits.bfloat16().float())


def test_layers_are_the_papers() -> None:
    kinds = [type(module) for module in ProjectionHead(384, 4096).mlp]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    shapes = [tuple(module.weight.shape) for module in ProjectionHead(384, 4096).mlp if isinstance(module, nn.Linear)]
    assert shapes == [(2048, 384), (2048, 2048), (256, 2048)]
    assert ProjectionHead(384, 4096).prototypes.shape == (4096, 256)


def test_weights_start_truncated_normal() -> None:
    head = ProjectionHead(384, 1024)
    for weight in (head.prototypes, head.mlp[0].weight, head.mlp[2].weight):
        assert np.isclose(float(weight.detach().std()), 0.02, rtol=0.05)
        assert float(weight.detach().abs().max()) <= 2.0


def test_length_of_a_prototype_does_not_count() -> None:
    head = ProjectionHead(8, 5, hidden=16, bottleneck=4)
    tokens = torch.randn(3, 8)
    before = head(tokens)
    with torch.no_grad():
        head.prototypes *= torch.rand(5, 1) * 7 + 0.1
    torch.testing.assert_close(head(tokens), before)


def test_batch_norm_follows_each_hidden_layer() -> None:
    head = ProjectionHead(8, 5, hidden=16, bottleneck=4, batch_norm=True)
    assert [isinstance(module, nn.BatchNorm1d) for module in head.mlp] == [
        False,
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    hidden = head.mlp[1](head.mlp[0](100 * torch.randn(64, 8)))
    torch.testing.assert_close(hidden.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var(0, unbiased=False), torch.ones(16), atol=1e-2, rtol=0)

"""The encoder by fused kernels against the encoder, through Triton's interpreter, which multiplies float32 alone."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from flsl.config.pretrain import EncoderSettings
from flsl.model import fused_vit
from flsl.model.fused_vit import FusedEncoder, can_fuse
from flsl.model.vit import build_encoder, set_drop_path

SMALL = EncoderSettings(name="vit_tiny_patch16_224", patch_size=4, width=128, depth=3, heads=2)


def made(settings: EncoderSettings = SMALL, drop_path: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    encoder = build_encoder(settings, 12, drop_path).train()
    for parameter in encoder.parameters():  # biases and norms that are not 0 and 1
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def compare(drop_path: float, settings: EncoderSettings = SMALL) -> None:
    encoder = made(settings, drop_path)
    fused = FusedEncoder(encoder, torch.float32, torch.float32, backend="eager")
    generator = torch.Generator().manual_seed(0)
    for side in (12, 8):
        images = torch.randn(3, 3, side, side, generator=generator)
        set_drop_path(encoder, torch.rand(3, 2 * settings.depth, generator=generator))
        found, weights = [], torch.randn(3, (side // 4) ** 2, settings.width, generator=generator)
        for forward in (encoder.forward_features, fused.forward_features):
            encoder.zero_grad()
            tokens = forward(images)
            (tokens * weights).sum().backward()
            found.append([tokens.detach(), *(p.grad for p in encoder.parameters() if p.requires_grad)])
        names = ["tokens", *(name for name, p in encoder.named_parameters() if p.requires_grad)]
        for name, wanted, ours in zip(names, *found, strict=True):
            assert wanted is not None
            assert ours is not None, name
            torch.testing.assert_close(ours, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=2e-4, msg=name)


def check_all() -> None:
    assert can_fuse(made())
    compare(0.0)
    compare(0.5)
    # heads of another size, and what the kernels' attention is too short for
    compare(0.5, SMALL.model_copy(update={"heads": 4}))
    fused_vit.LONGEST = 5
    compare(0.0)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_tokens_and_all_gradients_are_the_encoders(interpreted) -> None:
    interpreted("test_fused_vit")


def test_what_the_kernels_do_not_compute_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_fuse(made())  # on a CPU
    monkeypatch.setattr(fused_vit, "available", lambda tensor: True)
    assert can_fuse(made())
    others = []
    for _ in range(6):
        others.append(made())
    others[0].blocks[1].attn.q_norm = torch.nn.LayerNorm(64)
    others[1].blocks[1].ls2 = torch.nn.Linear(128, 128)
    others[2].blocks[2].mlp.act = torch.nn.GELU(approximate="tanh")
    others[3].blocks[0].attn.qkv = torch.nn.Linear(128, 384, bias=False)
    others[4].norm_pre = torch.nn.LayerNorm(128)
    others[5].blocks[0].attn.proj_drop = torch.nn.Dropout(0.1)
    assert not any(map(can_fuse, others))

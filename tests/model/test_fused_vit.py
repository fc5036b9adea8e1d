"""The encoder by fused kernels against the encoder, through Triton's interpreter, which multiplies float32 alone."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from interpreter import needs_interpreter

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


def compare(drop_path: float, settings: EncoderSettings = SMALL, backend: str = "aot_eager") -> None:
    encoder = made(settings, drop_path)
    fused = FusedEncoder(encoder, torch.float32, torch.float32, backend=backend)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(count, 3, side, side, generator=generator) for count, side in ((2, 12), (4, 8))]
    uniforms = [torch.rand(len(images), 2 * settings.depth, generator=generator) for images in views]
    weights = [torch.randn(len(v), (v.shape[-1] // 4) ** 2, settings.width, generator=generator) for v in views]

    def one_by_one(views: list[torch.Tensor], uniforms: list[torch.Tensor]) -> list[torch.Tensor]:
        found = []
        for images, numbers in zip(views, uniforms, strict=True):
            set_drop_path(encoder, numbers)
            found.append(encoder.forward_features(images))
        return found

    found = []
    for encode in (one_by_one, fused):
        encoder.zero_grad()
        tokens = encode(views, uniforms)
        sum((t * w).sum() for t, w in zip(tokens, weights, strict=True)).backward()
        found.append([*(t.detach() for t in tokens), *(p.grad for p in encoder.parameters() if p.requires_grad)])
    names = ["global", "local", *(name for name, p in encoder.named_parameters() if p.requires_grad)]
    for name, wanted, ours in zip(names, *found, strict=True):
        assert wanted is not None
        assert ours is not None, name
        torch.testing.assert_close(ours, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=2e-4, msg=name)
    # as the teacher's
    with torch.no_grad():
        (alone,) = FusedEncoder(encoder.eval(), torch.float32, torch.float32, backend=backend)(views[1:])
        torch.testing.assert_close(alone, encoder.forward_features(views[1]), atol=1e-5, rtol=1e-4)


class Student(torch.nn.Module):
    """An encoder in training, fused or not, as DistributedDataParallel takes it."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        # blocks of 3 MB, which PyTorch compiles in parts: the gradients of each are sent as they are there
        self.encoder = made(SMALL.model_copy(update={"width": 256, "heads": 4, "depth": 2}))
        self._fused = FusedEncoder(self.encoder, torch.float32, torch.float32, backend="aot_eager") if fused else None

    def forward(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
        return self._fused(views) if self._fused else [self.encoder.forward_features(images) for images in views]


def train_rank(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)
    views = [torch.randn(count, 3, side, side, generator=generator) for count, side in ((2, 12), (4, 8))]
    found = []
    for fused in (False, True):
        model = torch.nn.parallel.DistributedDataParallel(Student(fused), gradient_as_bucket_view=True, bucket_cap_mb=1)
        sum((tokens * tokens[..., :1]).sum() for tokens in model(views)).backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for wanted, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=2e-4)
    torch.distributed.destroy_process_group()


def check_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_rank, args=(port,), nprocs=2)


def check_all() -> None:
    assert can_fuse(made())
    compare(0.5)
    # heads of another size, and what the kernels' attention is too short for
    compare(0.0, SMALL.model_copy(update={"heads": 4, "depth": 2}))
    fused_vit.LONGEST = 5
    compare(0.5, SMALL.model_copy(update={"depth": 1}))


@needs_interpreter
def test_tokens_and_all_gradients_are_the_encoders(interpreted) -> None:
    interpreted("test_fused_vit")


@needs_interpreter
def test_ranks_share_the_gradients_of_compiled_blocks(interpreted) -> None:
    interpreted("test_fused_vit", "check_ranks")


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

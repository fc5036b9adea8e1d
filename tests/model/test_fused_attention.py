"""The kernels against plain attention, through Triton's interpreter."""

import json
import os
import subprocess
import sys

import pytest
import torch
from interpreter import needs_interpreter
from pretended import needs_pretence
from torch._subclasses.fake_tensor import FakeTensorMode

from flsl.model import fused_attention

# In a process of its own: Triton reads the variable as it is imported. What the kernels do not write stays NaN, and so
# does what lies behind each result, where a longer sequence would go on.
CHECK = """
import json
import math
import sys

import torch

from flsl.model import fused_attention

behind = []
new_empty = torch.Tensor.new_empty


def make(tensor, *shape, dtype=torch.float32, **others):
    if others:  # the interpreter's own
        return new_empty(tensor, *shape, dtype=dtype, **others)
    size = math.prod(shape)
    buffer = torch.full((size + 3 * 3 * 64 * 256,), float("nan"), dtype=dtype)
    behind.append(buffer[size:])
    return buffer[:size].view(shape)


torch.Tensor.new_empty = make
torch.empty_like = lambda tensor: make(tensor, *tensor.shape)


def error(ours, plain):
    # (a gradient that is nothing, as that of the only key's logit, is compared as it is)
    size = plain.norm()
    return ((ours - plain).norm() / (size if size > 1e-5 else 1.0)).item()


def compare(sizes, H, with_bias):
    tokens = sum(B * N for B, N in sizes)
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, 3, H, 64, generator=generator) + 0.5
    weights = torch.randn(tokens, H * 64, generator=generator)
    ours, plain = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    bias = torch.randn(3 * H * 64, generator=generator).requires_grad_()
    assert fused_attention.available(ours)
    found = fused_attention.attend(ours, sizes, bias if with_bias else None)
    wanted = []
    for (B, N), part in zip(sizes, plain.split([B * N for B, N in sizes])):
        q, k, v = part.view(B, N, 3, H, 64).permute(2, 0, 3, 1, 4)
        wanted.append(((q @ k.mT / 8).softmax(-1) @ v).transpose(1, 2).reshape(B * N, H * 64))
    wanted = torch.cat(wanted)
    for result in (found, wanted):
        # (a gradient that is not contiguous)
        (result.mT.contiguous().mT * weights).sum().backward()
    errors = {"forward": error(found, wanted)}
    for place, name in enumerate(("dq", "dk", "dv")):
        errors[name] = error(ours.grad[:, place], plain.grad[:, place])
    if with_bias:
        errors["bias"] = error(bias.grad, plain.grad.sum(0).flatten())
    else:
        assert bias.grad is None
    assert len(behind) >= 4 and all(buffer.isnan().all() for buffer in behind), (sizes, H)
    behind.clear()
    return errors


print(json.dumps([compare(*case) for case in json.loads(sys.argv[1])]))
"""
# ROWS of 64 and 128; one tile of keys, several, and a last one of one key; grids of one and of several heads
CASES = [
    ([(2, 1)], 2),
    ([(3, 5)], 1),
    ([(2, 36)], 3),
    ([(1, 64)], 2),
    ([(2, 65)], 1),
    ([(1, 70), (2, 9), (1, 4)], 2),
]


@pytest.fixture(scope="module")
def errors() -> list[dict[str, float]]:
    """The relative errors of each case (groups of sequences, heads), and of the last one without a bias."""
    cases = [(*case, True) for case in CASES] + [(*CASES[-1], False)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    found = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps(cases)], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


@needs_interpreter
@pytest.mark.parametrize("result", ["forward", "dq", "dk", "dv", "bias"])
def test_kernels_agree_with_plain_attention(errors: list[dict[str, float]], result: str) -> None:
    for case, found in zip(CASES, errors, strict=False):
        assert found[result] < 1e-5, (case, found)


@needs_interpreter
def test_without_a_bias_the_gradients_are_the_same(errors: list[dict[str, float]]) -> None:
    assert errors[-1] == {name: error for name, error in errors[-2].items() if name != "bias"}


@pytest.mark.parametrize(
    ("qkv", "size", "said"),
    [
        (torch.zeros(4, 3, 1, 32, dtype=torch.bfloat16), (1, 4), "qkv is"),
        (torch.zeros(4, 3, 1, 64, dtype=torch.float16), (1, 4), "qkv is"),
        (torch.zeros(3, 4, 1, 64).transpose(0, 1), (1, 4), "qkv is"),
        (torch.zeros(257, 3, 1, 64, dtype=torch.bfloat16), (1, 257), "groups"),
        (torch.zeros(8, 3, 1, 64, dtype=torch.bfloat16), (1, 4), "groups"),
    ],
)
def test_other_tensors_are_refused(qkv: torch.Tensor, size: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=f"attend: {said}"):
        fused_attention.attend(qkv, [size], None)


def test_the_compiler_knows_the_shapes_of_what_it_does_not_run() -> None:
    qkv = torch.zeros(14, 3, 3, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    bias = torch.zeros(3 * 3 * 64, device="meta", requires_grad=True)
    out = fused_attention.attend(qkv, [(2, 5), (1, 4)], bias)
    assert out.shape == (14, 192)
    assert out.dtype == torch.bfloat16
    out.backward(torch.ones_like(out))
    assert qkv.grad is not None
    assert qkv.grad.shape == qkv.shape
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32


@pytest.mark.parametrize("n", [1, 64, 65, 196, 256])
def test_the_backward_kernel_holds_the_sequence_at_once(n: int) -> None:
    assert fused_attention.launch(n)[1].rows >= n


@needs_pretence
def test_nothing_is_promised_but_on_a_hopper_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fused_attention.available(torch.zeros(1))
    monkeypatch.setattr(fused_attention, "triton", object())
    for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        with FakeTensorMode():
            assert fused_attention.available(torch.zeros(1, device="cuda")) == (capability == (9, 0))

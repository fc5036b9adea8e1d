"""Self-attention of short sequences on the packed projection, one Triton kernel forward and one backward.

PyTorch's fused attention reads queries, keys and values apart and gives their gradients apart, which costs copies of
both, and its backward takes two kernels more (delta, and the gradient of the queries from float32). Here a sequence is
short enough that one program computes all gradients of a head: the queries' gradient stays in registers while the tiles
of keys go by, each of which is complete after its turn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flsl.model.fused_common import column_sums, on_device, operation, shapes

try:
    import triton
    import triton.language as tl
except ImportError:  # machines without a GPU may have a PyTorch without it
    triton = None

HEAD_SIZE = 64
LONGEST = 256  # tokens of a sequence: what the backward pass holds at once


class Tiles(NamedTuple):
    """How a kernel is launched."""

    rows: int  # queries of a program, a power of two; the backward kernel's cover the sequence
    keys: int  # keys of a turn, a power of two
    warps: int
    stages: int


# By the sequence's length, rounded up: forward and backward (measured on an H200).
TUNING: dict[int, tuple[Tiles, Tiles]] = {
    64: (Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 1)),
    128: (Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 1)),
    256: (Tiles(64, 64, 4, 2), Tiles(256, 64, 8, 1)),
}


def launch(n: int) -> tuple[Tiles, Tiles]:
    """Return the tiles of the forward and the backward kernel for sequences of ``n`` tokens."""
    return TUNING[next(length for length in TUNING if n <= length)]


def available(tensor: Tensor) -> bool:
    """Tell whether :func:`attend` computes on the tensor's device: on Hopper GPUs (H100, H200).

    The backward kernel takes 140 KB of a multiprocessor's memory there, which older and smaller GPUs do not have; on
    none but those was it measured.
    """
    if triton is None or not tensor.is_cuda:
        return triton is not None and os.environ.get("TRITON_INTERPRET") == "1"
    return torch.cuda.get_device_capability(tensor.device) == (9, 0)


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


@_jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    qkv,  # (B, N, 3, H, D)
    out,  # (B, N, H, D)
    lse,  # (B, N, H): log2 of the sum of the exponentials
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,  # of the logits to base 2
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    tiles: tl.constexpr = (N + ROWS - 1) // ROWS
    head = tl.program_id(0) // tiles
    first = (head // H).to(tl.int64) * N
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, D)
    qkv += first * (3 * H * D) + head % H * D
    out += first * (H * D) + head % H * D

    q = tl.load(qkv + row[:, None] * (3 * H * D) + column[None, :], mask=row[:, None] < N, other=0.0)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, N, KEYS):
        key = start + tl.arange(0, KEYS)
        place = qkv + key[:, None] * (3 * H * D) + column[None, :]
        k = tl.load(place + H * D, mask=key[:, None] < N, other=0.0)
        v = tl.load(place + 2 * H * D, mask=key[:, None] < N, other=0.0)
        s = tl.where(key[None, :] < N, tl.dot(q, tl.trans(k)), float("-inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s * SCALE - (higher * SCALE)[:, None])
        fade = tl.exp2((highest - higher) * SCALE)
        total = total * fade + tl.sum(p, 1)
        mixed = tl.dot(p.to(v.dtype), v, mixed * fade[:, None])
        highest = higher
    mixed = mixed / total[:, None]
    tl.store(out + row[:, None] * (H * D) + column[None, :], mixed.to(q.dtype), mask=row[:, None] < N)
    tl.store(lse + (first + row) * H + head % H, highest * SCALE + tl.log2(total), mask=row < N)


@_jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    qkv,  # (B, N, 3, H, D)
    out,  # (B, N, H, D)
    lse,  # (B, N, H)
    dout,  # (B, N, H, D)
    dqkv,  # (B, N, 3, H, D)
    sums,  # (B, 3, H, D)
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,  # of the logits
    SCALE2: tl.constexpr,  # of the logits to base 2
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    head = tl.program_id(0)
    first = (head // H).to(tl.int64) * N
    row = tl.arange(0, ROWS)
    column = tl.arange(0, D)
    qkv += first * (3 * H * D) + head % H * D
    dqkv += first * (3 * H * D) + head % H * D
    out += first * (H * D) + head % H * D
    dout += first * (H * D) + head % H * D
    sums += head // H * (3 * H * D) + head % H * D + column

    # Rows beyond the sequence are 0 in q, dout and delta: with them is every product that their p goes into.
    inside = row[:, None] < N
    whole = row[:, None] * (H * D) + column[None, :]
    q = tl.load(qkv + row[:, None] * (3 * H * D) + column[None, :], mask=inside, other=0.0)
    do = tl.load(dout + whole, mask=inside, other=0.0)
    o = tl.load(out + whole, mask=inside, other=0.0)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    log = tl.load(lse + (first + row) * H + head % H, mask=row < N, other=0.0)

    dq = tl.zeros((ROWS, D), tl.float32)
    dk_sum = tl.zeros((D,), tl.float32)
    dv_sum = tl.zeros((D,), tl.float32)
    for start in range(0, N, KEYS):
        key = start + tl.arange(0, KEYS)
        place = key[:, None] * (3 * H * D) + column[None, :]
        k = tl.load(qkv + place + H * D, mask=key[:, None] < N, other=0.0)
        v = tl.load(qkv + place + 2 * H * D, mask=key[:, None] < N, other=0.0)
        # (keys beyond the sequence would count in the sums)
        p = tl.where(key[None, :] < N, tl.exp2(tl.dot(q, tl.trans(k)) * SCALE2 - log[:, None]), 0.0)
        ds = (p * (tl.dot(do, tl.trans(v)) - delta[:, None])).to(q.dtype)
        # (D, KEYS): the tensor cores take 64 rows at least, which D is and KEYS need not be
        dv = tl.dot(tl.trans(do), p.to(q.dtype))
        dk = tl.dot(tl.trans(q), ds) * SCALE
        dq = tl.dot(ds, k, dq)
        turned = key[None, :] * (3 * H * D) + column[:, None]
        tl.store(dqkv + turned + H * D, dk.to(q.dtype), mask=key[None, :] < N)
        tl.store(dqkv + turned + 2 * H * D, dv.to(q.dtype), mask=key[None, :] < N)
        if SUMS:
            dk_sum += tl.sum(dk, 1)
            dv_sum += tl.sum(dv, 1)
    dq *= SCALE
    tl.store(dqkv + row[:, None] * (3 * H * D) + column[None, :], dq.to(q.dtype), mask=inside)
    if SUMS:
        tl.store(sums, tl.sum(dq, 0))
        tl.store(sums + H * D, dk_sum)
        tl.store(sums + 2 * H * D, dv_sum)


def _check(qkv: Tensor, sizes: list[int]) -> None:
    if qkv.dim() != 4 or qkv.shape[1] != 3 or qkv.shape[3] != HEAD_SIZE:
        raise ValueError(f"attend: qkv is (tokens, 3, H, {HEAD_SIZE}), not {tuple(qkv.shape)}")
    groups = list(zip(sizes[::2], sizes[1::2], strict=True))
    if sum(batch * count for batch, count in groups) != len(qkv) or not all(0 < n <= LONGEST for _, n in groups):
        raise ValueError(f"attend: groups {groups} of at most {LONGEST} tokens do not make {len(qkv)} tokens")
    # (the interpreter multiplies no bfloat16)
    if qkv.dtype != (torch.bfloat16 if qkv.is_cuda else torch.float32) or not qkv.is_contiguous():
        raise ValueError(f"attend: qkv is contiguous and bfloat16 on CUDA, not {qkv.dtype} with strides {qkv.stride()}")


def _options(tiles: Tiles) -> dict[str, Any]:
    return {"ROWS": tiles.rows, "KEYS": tiles.keys, "num_warps": tiles.warps, "num_stages": tiles.stages}


def _groups(sizes: list[int]) -> Iterator[tuple[int, int, slice, slice]]:
    """Give of each group how many sequences it has and their length, and which of all tokens and sequences are its."""
    tokens = sequences = 0
    for batch, count in zip(sizes[::2], sizes[1::2], strict=True):
        own = slice(tokens, tokens + batch * count)
        yield batch, count, own, slice(sequences, sequences + batch)
        tokens, sequences = own.stop, sequences + batch


@operation("attend(Tensor qkv, int[] sizes) -> (Tensor, Tensor)")
def _attend(qkv: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    _check(qkv, sizes)
    out, lse = _made_forward(qkv, sizes)
    H, D = qkv.shape[2:]
    with on_device(qkv):
        for batch, count, own, _ in _groups(sizes):
            tiles = launch(count)[0]
            _forward_kernel[(batch * H * math.ceil(count / tiles.rows),)](
                qkv[own], out[own], lse[own], count, H, D, math.log2(math.e) / math.sqrt(D), **_options(tiles)
            )
    return out, lse


@shapes("attend")
def _made_forward(qkv: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    tokens, _, H, D = qkv.shape
    return qkv.new_empty(tokens, H * D), qkv.new_empty(tokens, H, dtype=torch.float32)


@operation(
    "attend_backward(Tensor qkv, int[] sizes, Tensor out, Tensor lse, Tensor dout, bool sums) -> (Tensor, Tensor)"
)
def _attend_backward(
    qkv: Tensor, sizes: list[int], out: Tensor, lse: Tensor, dout: Tensor, sums: bool
) -> tuple[Tensor, Tensor]:
    H, D = qkv.shape[2:]
    dqkv, dout = torch.empty_like(qkv), dout.contiguous()
    partial = qkv.new_empty(sum(sizes[::2]) if sums else 0, 3, H, D, dtype=torch.float32)
    scale = 1 / math.sqrt(D)
    with on_device(qkv):
        for batch, count, own, sequences in _groups(sizes):
            _backward_kernel[(batch * H,)](
                qkv[own],
                out[own],
                lse[own],
                dout[own],
                dqkv[own],
                partial[sequences],
                count,
                H,
                D,
                scale,
                scale * math.log2(math.e),
                sums,
                **_options(launch(count)[1]),
            )
    return dqkv, column_sums(partial.flatten(1)) if sums else partial.flatten()


@shapes("attend_backward")
def _made_backward(
    qkv: Tensor, sizes: list[int], out: Tensor, lse: Tensor, dout: Tensor, sums: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), qkv.new_empty(qkv[0].numel() if sums else 0, dtype=torch.float32)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, sizes: list[int], bias: Tensor | None) -> Tensor:
        out: Tensor
        out, lse = torch.ops.flsl.attend(qkv, sizes)
        ctx.save_for_backward(qkv, out, lse)
        ctx.sizes, ctx.sums = sizes, bias is not None
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, Tensor | None]:
        qkv, out, lse = ctx.saved_tensors
        dqkv, total = torch.ops.flsl.attend_backward(qkv, ctx.sizes, out, lse, dout, ctx.sums)
        return dqkv, None, total if ctx.sums else None


def attend(qkv: Tensor, sizes: Sequence[tuple[int, int]], bias: Tensor | None) -> Tensor:
    """Return softmax(q kᵀ / √64) v of every head and sequence, (tokens, H × 64) bfloat16.

    Args:
        qkv: queries, keys and values as one product gives them, (tokens, 3, H, 64), contiguous bfloat16, of sequences
            one after another.
        sizes: how many sequences of how many tokens, at most 256, there are in each group of equally long ones.
        bias: (3 × H × 64,) float32, what was added to ``qkv`` already, detached there: it takes no part in the result,
            and its gradient, the sum of that of ``qkv`` over the tokens, comes from the backward kernel, which saves a
            pass over that gradient. None where there is none to be had.
    """
    out: Tensor = _Attend.apply(qkv, [number for size in sizes for number in size], bias)
    return out

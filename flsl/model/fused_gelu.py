"""Exact GELU in one pass over memory, whose backward also gives the gradient of the bias before it (Triton).

The erf of CUDA's library makes this kernel arithmetic-bound, so Φ is taken from Abramowitz and Stegun's 7.1.26, which
needs one exponential and one reciprocal: with t = 1 / (1 + 0.3275911 |h|/√2), Φ(-|h|) = ½ poly(t) exp(-h²/2). Its
absolute error is below 1e-7 (5e-7 with float32's own rounding), thousands of times less than bfloat16 rounds off near
1. The backward shares the exponential with the density.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flsl.model.fused_common import column_sums, multiprocessors, on_device, operation, shapes

try:
    import triton
    import triton.language as tl
except ImportError:  # see fused_norm
    triton = None

# Launch parameters: elements (forward) or rows and columns (backward) in a tile, warps, and programs for each
# multiprocessor and stages of loads in flight (backward); measured on an H200.
TUNING: dict[str, dict[str, int]] = {
    "forward": {"block": 1024, "warps": 4},
    "backward": {"rows": 4, "columns": 256, "warps": 4, "programs": 12, "stages": 1},
}

if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def tail_terms(size, APPROXIMATE: tl.constexpr):  # type: ignore[no-untyped-def]
        """For size = |h|, return q and e with Φ(-|h|) = q · e and e = exp(-h²/2)."""
        scaled = size * (0.3275911 * 0.7071067811865476) + 1.0
        if APPROXIMATE:  # one instruction, within 1 ulp; the interpreter cannot run it
            t = tl.inline_asm_elementwise(
                "rcp.approx.ftz.f32 $0, $1;", "=f,f", [scaled], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            t = 1.0 / scaled
        poly = 0.5 * 1.061405429 * t - 0.5 * 1.453152027
        poly = poly * t + 0.5 * 1.421413741
        poly = poly * t - 0.5 * 0.284496736
        poly = poly * t + 0.5 * 0.254829592
        exponent = size * size * -0.7213475204444817  # -log2(e) / 2
        if APPROXIMATE:
            e = tl.inline_asm_elementwise(
                "ex2.approx.ftz.f32 $0, $1;", "=f,f", [exponent], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            e = tl.exp2(exponent)
        return poly * t, e

    @triton.jit  # type: ignore[untyped-decorator]
    def forward_kernel(h_ptr, y_ptr, size, BLOCK: tl.constexpr, APPROXIMATE: tl.constexpr):  # type: ignore[no-untyped-def]
        """y = h Φ(h) = max(h, 0) - |h| Φ(-|h|) over one block of size elements."""
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        h = tl.load(h_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        q, e = tail_terms(tl.abs(h), APPROXIMATE)
        y = tl.maximum(h, 0.0) - tl.abs(h) * (q * e)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < size)

    @triton.jit  # type: ignore[untyped-decorator]
    def backward_kernel(  # type: ignore[no-untyped-def]
        dy_ptr, h_ptr, dh_ptr, partial_ptr, rows,
        W: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, APPROXIMATE: tl.constexpr,
    ):  # fmt: skip
        """Walk down one block of columns, by tiles; partial (programs, W) takes the sums of dh unless it is None."""
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        for tile in tl.range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1), num_stages=STAGES):
            row = tile * ROWS + tl.arange(0, ROWS)
            mask = (row < rows)[:, None] & (column < W)[None, :]
            at = row.to(tl.int64)[:, None] * W + column[None, :]
            h = tl.load(h_ptr + at, mask=mask, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
            q, e = tail_terms(tl.abs(h), APPROXIMATE)
            # Φ(h) + h φ(h) at -|h|; what it is at |h| adds up with this to one
            slope = (q - 0.3989422804014327 * tl.abs(h)) * e
            dh = dy * tl.where(h < 0, slope, 1.0 - slope)
            tl.store(dh_ptr + at, dh.to(dh_ptr.dtype.element_ty), mask=mask)
            total += dh
        if partial_ptr is not None:
            tl.store(partial_ptr + tl.program_id(1) * W + column, tl.sum(total, 0), mask=column < W)


@operation("gelu(Tensor h) -> Tensor")
def _gelu(h: Tensor) -> Tensor:
    h = h.contiguous()
    y = torch.empty_like(h)
    block, warps = TUNING["forward"]["block"], TUNING["forward"]["warps"]
    with on_device(h):
        forward_kernel[(math.ceil(h.numel() / block),)](
            h, y, h.numel(), BLOCK=block, APPROXIMATE=h.is_cuda, num_warps=warps
        )
    return y


@operation("gelu_backward(Tensor dy, Tensor h, bool bias) -> (Tensor, Tensor)")
def _gelu_backward(dy: Tensor, h: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Return dh as h, and its column sums (W,) in float32 (empty unless bias is set)."""
    dy, h = dy.contiguous(), h.contiguous()
    dh = torch.empty_like(h)
    W = h.shape[-1]
    rows = h.numel() // W
    chosen = TUNING["backward"]
    blocks = math.ceil(W / chosen["columns"])
    programs = math.ceil(chosen["programs"] * multiprocessors(h.device) / blocks)
    programs = max(1, min(programs, math.ceil(rows / chosen["rows"])))
    partial = torch.empty(programs, W, dtype=torch.float32, device=h.device) if bias else None
    with on_device(h):
        backward_kernel[(blocks, programs)](
            dy, h, dh, partial, rows, W=W, ROWS=chosen["rows"], BLOCK=chosen["columns"], STAGES=chosen["stages"],
            APPROXIMATE=h.is_cuda, num_warps=chosen["warps"],
        )  # fmt: skip
    return dh, h.new_empty(0, dtype=torch.float32) if partial is None else column_sums(partial)


@shapes("gelu")
def _made_gelu(h: Tensor) -> Tensor:
    return h.new_empty(h.shape)


@shapes("gelu_backward")
def _made_gelu_backward(dy: Tensor, h: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape[-1] if bias else 0, dtype=torch.float32)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(h)
        ctx.bias = bias is not None
        y: Tensor = torch.ops.flsl.gelu(h)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        (h,) = ctx.saved_tensors
        dh, total = torch.ops.flsl.gelu_backward(dy, h, ctx.bias)
        return dh, total if ctx.bias else None


def gelu(h: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return GELU(h) = h Φ(h) in h's shape (..., W) and dtype, computed in float32.

    bias (W,) in float32 is the bias of the linear layer that made h, which has been added there (detached). It takes no
    part in the forward; the backward gives its gradient, the column sums of h's gradient, so that no other pass has to.
    """
    y: Tensor = _Gelu.apply(h, bias)
    return y

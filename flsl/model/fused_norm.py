"""Residual addition and LayerNorm in one pass over memory, forward and backward (Triton).

A ViT block adds a branch to the residual stream and normalises the sum at once; both steps are bound by memory, so the
kernels here read every tensor once and write every tensor once. The backward also takes the column sums (gradients of
the norm's weight and bias, and of the bias of the linear layer that made the branch) while it has the rows at hand.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flsl.model.fused_common import column_sums, multiprocessors, on_device, operation, shapes

try:
    import triton
    import triton.language as tl
except ImportError:  # the modules import anywhere; only calling an operation needs Triton
    triton = None

# Launch parameters by pass and width (next power of two): rows in a tile, warps, programs for each multiprocessor and
# stages of loads in flight (measured on an H200). Widths that are not listed take the nearest one, see _launch.
TUNING: dict[str, dict[int, dict[str, int]]] = {
    "forward": {
        512: {"rows": 4, "warps": 4, "programs": 8, "stages": 2},
        1024: {"rows": 2, "warps": 4, "programs": 8, "stages": 1},
    },
    "backward": {
        512: {"rows": 2, "warps": 2, "programs": 8, "stages": 1},
        1024: {"rows": 2, "warps": 4, "programs": 4, "stages": 1},
    },
}

if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def forward_kernel(  # type: ignore[no-untyped-def]
        x_ptr, branch_ptr, factor_ptr, weight_ptr, bias_ptr, new_ptr, normed_ptr, mean_ptr, rstd_ptr,
        rows, tokens, eps,
        C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """Walk over tiles of ROWS rows of (rows, C); without branch_ptr, x is only normalised and new_ptr is None."""
        column = tl.arange(0, BLOCK)
        inside = column < C
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
        for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
            row = tile * ROWS + tl.arange(0, ROWS)
            mask = (row < rows)[:, None] & inside[None, :]
            at = row.to(tl.int64)[:, None] * C + column[None, :]
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            if branch_ptr is not None:
                branch = tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
                if factor_ptr is not None:
                    branch *= tl.load(factor_ptr + row // tokens, mask=row < rows, other=0.0)[:, None]
                new = (x + branch).to(new_ptr.dtype.element_ty)
                tl.store(new_ptr + at, new, mask=mask)
                x = new.to(tl.float32)
            mean = tl.sum(x, 1) / C
            centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
            rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
            normed = centred * rstd[:, None] * weight[None, :] + bias[None, :]
            tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=mask)
            tl.store(mean_ptr + row, mean, mask=row < rows)
            tl.store(rstd_ptr + row, rstd, mask=row < rows)

    @triton.jit  # type: ignore[untyped-decorator]
    def backward_kernel(  # type: ignore[no-untyped-def]
        dnew_ptr, dnormed_ptr, new_ptr, mean_ptr, rstd_ptr, factor_ptr, weight_ptr, dx_ptr, dbranch_ptr, partial_ptr,
        rows, tokens,
        C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, SUMS: tl.constexpr,
    ):  # fmt: skip
        """As forward_kernel; column sums stay in registers and end in partial (programs, SUMS, C)."""
        column = tl.arange(0, BLOCK)
        inside = column < C
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
        dweight = tl.zeros((ROWS, BLOCK), tl.float32)
        dbias = tl.zeros((ROWS, BLOCK), tl.float32)
        dbranch_bias = tl.zeros((ROWS, BLOCK), tl.float32)
        for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
            row = tile * ROWS + tl.arange(0, ROWS)
            mask = (row < rows)[:, None] & inside[None, :]
            at = row.to(tl.int64)[:, None] * C + column[None, :]
            # all loads first, so that they are in flight together
            new = tl.load(new_ptr + at, mask=mask, other=0.0)
            dnormed = tl.load(dnormed_ptr + at, mask=mask, other=0.0)
            if dnew_ptr is not None:
                dnew = tl.load(dnew_ptr + at, mask=mask, other=0.0)
            mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
            rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
            dnormed = dnormed.to(tl.float32)
            # Columns from C on hold nonsense in xhat and g: dnormed and weight are nought there, and g isn't stored.
            xhat = (new.to(tl.float32) - mean[:, None]) * rstd[:, None]
            dweight += dnormed * xhat
            dbias += dnormed
            scaled = dnormed * weight[None, :]
            along = tl.sum(scaled * xhat, 1) / C
            level = tl.sum(scaled, 1) / C
            g = (scaled - level[:, None] - xhat * along[:, None]) * rstd[:, None]
            if dnew_ptr is not None:
                g += dnew.to(tl.float32)
            tl.store(dx_ptr + at, g.to(dx_ptr.dtype.element_ty), mask=mask)
            if factor_ptr is not None:
                g *= tl.load(factor_ptr + row // tokens, mask=row < rows, other=0.0)[:, None]
            if dbranch_ptr is not None:
                tl.store(dbranch_ptr + at, g.to(dbranch_ptr.dtype.element_ty), mask=mask)
            if SUMS == 3:
                dbranch_bias += g
        partial = partial_ptr + tl.program_id(0) * SUMS * C + column
        tl.store(partial, tl.sum(dweight, 0), mask=inside)
        tl.store(partial + C, tl.sum(dbias, 0), mask=inside)
        if SUMS == 3:
            tl.store(partial + 2 * C, tl.sum(dbranch_bias, 0), mask=inside)


@cache
def _launch(direction: str, rows: int, C: int, device: torch.device) -> tuple[int, dict[str, int]]:
    """Choose the number of programs and the launch options for a (rows, C) matrix."""
    table = TUNING[direction]
    block = 1 << (C - 1).bit_length()
    width = min(table, key=lambda known: abs(known.bit_length() - block.bit_length()))
    chosen = table[width]
    tile = max(1, chosen["rows"] * width // block) if block > width else chosen["rows"]
    warps = min(16, chosen["warps"] * max(1, block // (width * chosen["rows"])))
    programs = max(1, min(math.ceil(rows / tile), chosen["programs"] * multiprocessors(device)))
    return programs, {"BLOCK": block, "ROWS": tile, "STAGES": chosen["stages"], "num_warps": warps}


def _forward(
    x: Tensor, branch: Tensor | None, factor: Tensor | None, weight: Tensor, bias: Tensor, eps: float, out: torch.dtype
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    C = x.shape[-1]
    rows = x.numel() // C
    x = x.contiguous()
    branch = None if branch is None else branch.contiguous()
    new = None if branch is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=out)
    mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    programs, options = _launch("forward", rows, C, x.device)
    with on_device(x):
        forward_kernel[(programs,)](
            x, branch, factor, weight, bias, new, normed, mean, rstd, rows, x.shape[-2], eps, C=C, **options
        )
    return new, normed, mean, rstd


@operation(
    "add_norm(Tensor x, ScalarType out_dtype, Tensor branch, Tensor? factor, Tensor weight, Tensor bias, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def _add_norm(
    x: Tensor,
    out_dtype: torch.dtype,
    branch: Tensor,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x_new, normed, and the rows' mean and rstd (rows,), which the backward needs."""
    new, normed, mean, rstd = _forward(x, branch, factor, weight, bias, eps, out_dtype)
    assert new is not None
    return new, normed, mean, rstd


@operation("norm(Tensor x, ScalarType out_dtype, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)")
def _norm(x: Tensor, out_dtype: torch.dtype, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return normed, and the rows' mean and rstd (rows,)."""
    return _forward(x, None, None, weight, bias, eps, out_dtype)[1:]


@operation(
    "add_norm_backward(Tensor new, ScalarType? branch_dtype, bool branch_sum, Tensor? dnew, Tensor dnormed,"
    " Tensor mean, Tensor rstd, Tensor? factor, Tensor weight) -> (Tensor, Tensor, Tensor)"
)
def _add_norm_backward(
    new: Tensor,
    branch_dtype: torch.dtype | None,
    branch_sum: bool,
    dnew: Tensor | None,
    dnormed: Tensor,
    mean: Tensor,
    rstd: Tensor,
    factor: Tensor | None,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx as new, dbranch (empty where branch_dtype is None) and the sums of dweight, dbias, dbranch_bias (3, C).

    Without branch_sum there are only the first two sums (2, C).
    """
    C = new.shape[-1]
    rows = new.numel() // C
    dnew = None if dnew is None else dnew.contiguous()
    dx = torch.empty_like(new)
    dbranch = None if branch_dtype is None else torch.empty_like(new, dtype=branch_dtype)
    programs, options = _launch("backward", rows, C, new.device)
    sums = 3 if branch_sum else 2
    partial = torch.empty(programs, sums, C, dtype=torch.float32, device=new.device)
    with on_device(new):
        backward_kernel[(programs,)](
            dnew, dnormed.contiguous(), new, mean, rstd, factor, weight, dx, dbranch, partial,
            rows, new.shape[-2], C=C, SUMS=sums, **options,
        )  # fmt: skip
    return dx, new.new_empty(0) if dbranch is None else dbranch, column_sums(partial.flatten(1)).view(sums, C)


# what the results look like depends on the first arguments alone


@shapes("add_norm")
def _made_add_norm(x: Tensor, out_dtype: torch.dtype, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (x.new_empty(x.shape), *_made_norm(x, out_dtype))


@shapes("norm")
def _made_norm(x: Tensor, out_dtype: torch.dtype, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1].numel(), dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=out_dtype), mean, rstd


@shapes("add_norm_backward")
def _made_add_norm_backward(
    new: Tensor, branch_dtype: torch.dtype | None, branch_sum: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dbranch = new.new_empty(0) if branch_dtype is None else torch.empty_like(new, dtype=branch_dtype)
    return torch.empty_like(new), dbranch, new.new_empty(3 if branch_sum else 2, new.shape[-1], dtype=torch.float32)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor,
        branch_bias: Tensor | None,
        factor: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        new, normed, mean, rstd = torch.ops.flsl.add_norm(x, out_dtype, branch, factor, weight, bias, eps)
        ctx.save_for_backward(new, mean, rstd, factor, weight)
        ctx.branch_dtype, ctx.branch_sum = branch.dtype, branch_bias is not None
        return new, normed

    @staticmethod
    def backward(ctx: Any, dnew: Tensor, dnormed: Tensor) -> tuple[Tensor | None, ...]:
        new, mean, rstd, factor, weight = ctx.saved_tensors
        shared = factor is None and ctx.branch_dtype == new.dtype  # dbranch is dx: nothing more to write
        dx, dbranch, sums = torch.ops.flsl.add_norm_backward(
            new, None if shared else ctx.branch_dtype, ctx.branch_sum, dnew, dnormed, mean, rstd, factor, weight
        )
        dbranch_bias = sums[2] if ctx.branch_sum else None
        return dx, dx if shared else dbranch, dbranch_bias, None, sums[0], sums[1], None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
        normed: Tensor
        normed, mean, rstd = torch.ops.flsl.norm(x, out_dtype, weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        return normed

    @staticmethod
    def backward(ctx: Any, dnormed: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        dx, _, sums = torch.ops.flsl.add_norm_backward(
            x.contiguous(), None, False, None, dnormed, mean, rstd, None, weight
        )
        return dx, sums[0], sums[1], None, None


def add_norm(
    x: Tensor,
    branch: Tensor,
    branch_bias: Tensor | None,
    factor: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum.

    x is the stream (B, N, C), bfloat16 or float32; branch is (B, N, C); factor, one number for each sample, is (B,) or
    (B, 1, 1) in float32 (stochastic depth), or None for one; weight and bias are (C,) in float32.

    branch_bias (C,) in float32 is the bias of the linear layer that made the branch, which has been added there
    (detached). It takes no part in the forward; the backward gives its gradient, the sum of the branch's gradient over
    all rows, so that no other pass has to.

    Returns x_new = x + factor · branch (B, N, C), rounded to x's dtype, and LayerNorm(x_new) (B, N, C) in out_dtype,
    computed in float32 from x_new as rounded.
    """
    factor = None if factor is None else factor.reshape(-1)
    found: tuple[Tensor, Tensor] = _AddNorm.apply(x, branch, branch_bias, factor, weight, bias, eps, out_dtype)
    return found


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
    """Normalise the residual stream x (B, N, C) as it is: add_norm without a branch; returns (B, N, C) in out_dtype."""
    normed: Tensor = _Norm.apply(x, weight, bias, eps, out_dtype)
    return normed

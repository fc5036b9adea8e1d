"""Sums of the columns of a matrix of partial sums, and what else the fused kernels share."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, library

try:
    import triton
    import triton.language as tl
except ImportError:  # the modules import anywhere; only calling an operation needs Triton
    triton = None

# rows and columns in a tile, of as many programs as there are tiles of columns
_ROWS, _COLUMNS = 64, 16

if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _kernel(  # type: ignore[no-untyped-def]
        matrix, sums, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
    ):
        """Walk down the rows of a tile of columns."""
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, rows, ROWS):
            row = start + tl.arange(0, ROWS)
            mask = (row < rows)[:, None] & (column < width)[None, :]
            total += tl.load(matrix + row[:, None] * width + column[None, :], mask=mask, other=0.0)
        tl.store(sums + column, tl.sum(total, 0), mask=column < width)


def column_sums(matrix: Tensor) -> Tensor:
    """Return the sums (width,) of the columns of a contiguous matrix (rows, width), float32, some thousand rows.

    It takes 6 µs where ``torch.sum`` takes 14 (a thousand rows of 1,152, H200); a training step makes fifty.
    """
    rows, width = matrix.shape
    sums = matrix.new_empty(width)
    with on_device(matrix):
        _kernel[(math.ceil(width / _COLUMNS),)](matrix, sums, rows, width, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4)
    return sums


@cache
def multiprocessors(device: torch.device) -> int:
    """Say how many multiprocessors a GPU has; two for a CPU, where kernels are only interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the one that kernels are launched on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def operation(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function an operation of PyTorch's, which its compiler calls as it is: ``flsl::`` and the schema's name.

    PyTorch's ``custom_op`` would do more (gradients, checks), and take longer to call than many a kernel runs.
    """
    name = f"flsl::{schema.split('(')[0]}"

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        library.define(name, schema[schema.index("(") :])
        library.impl(name, "default", function)
        return function

    return register


def shapes(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let the compiler ask a function what an :func:`operation` would return."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        library.register_fake(f"flsl::{name}", function)
        return function

    return register

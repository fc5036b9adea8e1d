"""Sums of columns, through Triton's interpreter."""

import importlib.util

import pytest
import torch

from flsl.model.fused_common import column_sums


def check_all() -> None:
    for rows, width in ((1, 1), (64, 16), (130, 37), (3, 100)):
        matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(column_sums(matrix), matrix.double().sum(0).float())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_column_sums_are_the_sums_of_the_columns(interpreted) -> None:
    interpreted("test_fused_common")

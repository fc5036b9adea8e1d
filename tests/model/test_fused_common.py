"""Sums of columns, through Triton's interpreter."""

import torch
from interpreter import needs_interpreter

from flsl.model.fused_common import column_sums


def check_all() -> None:
    for rows, width in ((1, 1), (64, 16), (130, 37), (3, 100)):
        matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(column_sums(matrix), matrix.double().sum(0).float())


@needs_interpreter
def test_column_sums_are_the_sums_of_the_columns(interpreted) -> None:
    interpreted("test_fused_common")

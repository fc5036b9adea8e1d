"""The order of images: permutations by epoch, shared by ranks and micro-batches, and gone on with anywhere."""

import numpy as np
import pytest
import torch

from flsl.data.order import Order
from flsl.runtime.distributed import Process
from flsl.runtime.errors import UserError


def process(rank: int, size: int) -> Process:
    return Process(rank, rank, size, torch.device("cpu"))


def test_every_epoch_is_another_permutation_without_repeats() -> None:
    order = Order(23, batch_size=4, accumulate=1, epochs=3, seed=0, process=process(0, 1))
    keys = [key for batch in order for key in batch]
    assert order.steps_per_epoch == 5
    assert len(order) == 15
    epochs = [[index for epoch, index in keys if epoch == number] for number in range(3)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_order_goes_on_where_it_was() -> None:
    whole = list(Order(23, 4, 1, 3, 0, process(0, 1)))
    for start in (0, 1, 5, 7, 14, 15):
        order = Order(23, 4, 1, 3, 0, process(0, 1))
        order.go_on(start)
        assert list(order) == whole[start:]
        assert len(order) == len(whole) - start


def test_ranks_and_micro_batches_share_the_global_batch() -> None:
    whole = list(Order(40, 8, 1, 1, 0, process(0, 1)))
    shares = [list(Order(40, 8, 2, 1, 0, process(rank, 2))) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [shares[rank][2 * step + micro] for micro in range(2) for rank in range(2)]
        assert np.concatenate(parts).tolist() == np.array(batch).tolist()


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "ranks", "words"),
    [(64, 1, 1, "more than the 40 training images"), (8, 3, 1, "multiple of 3"), (6, 1, 4, "multiple of 4")],
)
def test_batches_that_do_not_fit_are_refused(batch_size: int, accumulate: int, ranks: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Order(40, batch_size, accumulate, 1, 0, process(0, ranks))

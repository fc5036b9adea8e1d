"""What doctor adds up before a cluster is asked."""

from __future__ import annotations

from typing import Any

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.doctor import checkpoints_bytes

SMALL = {"encoder": {"width": 32, "depth": 1, "heads": 2}, "prototypes": 16, "head": {"hidden": 16}}


def needed(ablations: dict[str, Any]) -> int:
    plain = {"project": "a", "pretrain": SMALL, "ablations": ablations}
    return checkpoints_bytes(check(Experiment, plain, "test"))


def test_checkpoints_of_ablations_count_once_for_each_pretraining() -> None:
    one = needed({})
    assert one > 0
    # the base and another seed; k alone is no pretraining of its own
    assert needed({"seeds": {"grid": {"seed": [0, 1]}, "stages": ["knn"]}}) == 2 * one
    assert needed({"votes": {"grid": {"knn.k": [[5], [20]]}, "stages": ["knn"]}}) == one

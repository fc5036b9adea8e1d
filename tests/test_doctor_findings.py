"""What doctor adds up and how it judges a machine, before a cluster is asked."""

from __future__ import annotations

from typing import Any

import pytest

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.doctor import checkpoints_bytes, judge_devices

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


@pytest.mark.parametrize(
    ("kind", "gpus", "level", "says"),
    [
        ("auto", 1, "warn", "1 GPU can be used, where cluster.gpus_per_node is 8; the workflow trains in one process"),
        ("local", 2, "FAIL", "2 GPUs can be used, where cluster.gpus_per_node is 8"),
        ("auto", 8, None, ""),
        ("auto", 0, None, ""),
    ],
)
def test_fewer_gpus_than_a_cluster_is_asked_for_hinder_no_workflow(
    monkeypatch: pytest.MonkeyPatch, kind: str, gpus: int, level: str | None, says: str
) -> None:
    monkeypatch.setenv("PATH", "")  # no sbatch
    facts = {"gpus": gpus, "nccl": "2.30", "visible": "", "compiling": {"cuda": "", "cpu": ""}}
    plain = {"project": "a", "cluster": {"kind": kind, "gpus_per_node": 8}}
    found = list(judge_devices(check(Experiment, plain, "test"), facts, "torch"))
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(finding.text.startswith(says) for finding in found)

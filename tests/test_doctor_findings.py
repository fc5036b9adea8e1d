"""What doctor adds up and how it judges a machine, before a cluster is asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import command

from flsl import doctor
from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.doctor import _data, checkpoints_bytes, examine, judge_devices

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


def findings(**settings: Any) -> dict[str, str]:
    """Examine with SLURM's commands that say nothing but yes; what is found by check."""
    plain = {"project": "a", "pretrain": SMALL, **settings}
    found = examine(check(Experiment, {**plain, "cluster": {"kind": "slurm", **settings.get("cluster", {})}}, "test"))
    return {finding.check: f"{finding.level} {finding.text}" for finding in found}


@pytest.fixture
def commands(slurm: Path) -> Path:
    for name in ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel"):
        command(slurm, name)
    return slurm


def test_slurm_is_asked_as_a_submitted_job_will_ask_it(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "3")  # an interactive shell on a node
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    findings(results=str(tmp_path), cluster={"setup": ["module load gcc"]})
    assert not (commands / "sbatch.env").read_text() + (commands / "srun.env").read_text()
    said = (commands / "calls").read_text()
    assert said.count("--account=mine") == 2
    # the compiler that is looked for may come with it
    assert "eval 'module load gcc'" in said


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["sbatch: error: lua: name an account", "allocation failure: Unspecified error"], "lua: name an account"),
        (["allocation failure: Invalid account"], "allocation failure: Invalid account"),
    ],
)
def test_a_refusal_is_told_by_its_reason(commands: Path, tmp_path: Path, said: list[str], reason: str) -> None:
    command(commands, "sbatch", code=1, error="\n".join(["sbatch: lua: welcome", *said]))
    found = findings(results=str(tmp_path))
    assert found["request"] == f"FAIL sbatch would refuse the pretraining of cluster.*: {reason}"


def test_a_check_that_cannot_be_made_is_a_line_and_stops_no_other(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    found = findings(results=str(tmp_path / "file"))
    assert found["compute node"].startswith(f"FAIL {tmp_path}/file/.doctor-")
    assert "a file stands where a folder is needed" in found["compute node"]

    def missing() -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor, "torch_facts", missing)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = findings(results=str(tmp_path))
    assert found["torch"].startswith("FAIL cannot be imported (libcudart.so.12")
    assert found["results"].startswith("FAIL ")
    assert found["slurm"].startswith("ok ")


def test_data_that_may_not_be_reached_are_told_from_data_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "closed").mkdir()
    real = Path.stat

    def refuse(path: Path, **options: Any) -> Any:
        if path.is_relative_to(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    images = {"root": str(tmp_path), "val": "gone", "boxes": "closed/boxes.csv"}
    found = _data(check(Experiment, {"project": "a", "data": {"images": images}}, "test"))
    assert [str(finding) for finding in found] == [
        f"FAIL  data.images: not there: {tmp_path}/gone",
        f"FAIL  data.images: permission denied: {tmp_path}/closed/boxes.csv",
    ]


def test_a_real_data_set_beside_made_ones_is_looked_for(tmp_path: Path) -> None:
    made, real = tmp_path / "scenes", tmp_path / "coco"
    data = {"scenes": {"root": str(made)}, "images": {"root": str(made / "images")}, "coco": {"root": str(real)}}
    found = _data(check(Experiment, {"project": "a", "data": data}, "test"))
    assert [(one.level, one.check) for one in found] == [("ok", "data"), ("FAIL", "data.coco")]

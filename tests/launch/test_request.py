"""What reaches sbatch of a user's shell and of a job around it, and what is said when it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import command

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.launch.queue import _own_folder
from flsl.launch.request import arguments, check_request, submit
from flsl.launch.task import Task
from flsl.launch.work import Work
from flsl.runtime.errors import UserError

PARTITIONS = """\
PartitionName=debug Default=YES MaxNodes=1 MaxTime=00:30:00 State=UP TotalNodes=8
PartitionName=gpu Default=NO MaxNodes=UNLIMITED MaxTime=2-00:00:00 State=UP TotalNodes=8
"""


def experiment(**cluster: object) -> Experiment:
    return check(Experiment, {"project": "p", "cluster": cluster}, "here")


def submitted(slurm: Path, folder: Path, asked: Experiment) -> str:
    """Submit a job, and return its script."""
    command(slurm, "scontrol", PARTITIONS)
    command(slurm, "srun")
    command(slurm, "sbatch", "Submitted batch job 7\n")
    task = Task(Work("pretrain", {}, {}, str(folder), "run", "0" * 64, 1), "one", requeues=0)
    assert submit("slurm", asked, task, "name", folder) == "7"
    return (folder / "7_submission.sh").read_text()


def test_what_a_users_shell_says_counts_where_the_settings_do_not(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    # the default partition takes no job of a day
    script = submitted(slurm, tmp_path / "a", experiment(minutes=1440))
    assert "#SBATCH --account=mine\n" in script
    assert "#SBATCH --partition=gpu\n" in script
    assert {"--account=mine", "--partition=gpu"} <= set(arguments(experiment(), "name"))
    script = submitted(slurm, tmp_path / "b", experiment(minutes=1440, account="ours", extra={"partition": "other"}))
    assert "#SBATCH --account=ours\n" in script
    assert "#SBATCH --partition=other\n" in script
    # what it would have sbatch do with the rest is another matter
    assert "SBATCH_ACCOUNT" not in (slurm / "sbatch.env").read_text()


@pytest.mark.parametrize("extra", [{"no-requeue": True}, {"no_requeue": True}, {"requeue": False}])
def test_a_job_may_be_kept_from_being_requeued(slurm: Path, tmp_path: Path, extra: dict[str, bool]) -> None:
    assert "#SBATCH --requeue\n" in submitted(slurm, tmp_path / "a", experiment(minutes=20))
    assert "--requeue\n" not in submitted(slurm, tmp_path / "b", experiment(minutes=20, extra=extra))


def test_a_job_around_is_not_inherited_but_the_cluster_is_the_same(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = _own_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    monkeypatch.setenv("SLURM_CLUSTERS", "second")
    submitted(slurm, tmp_path / "a", experiment(minutes=20))
    assert (slurm / "sbatch.env").read_text() == "SLURM_CLUSTERS=second\n"
    # numbers of jobs on another cluster are others
    assert _own_folder() != alone


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos specification\n", "cluster.qos: sbatch refuses"),
        ("sbatch: lua: welcome\nsbatch: error: lua: name an account\nsbatch: error: Batch job submission failed: "
         "Unspecified error\n", "cluster.account: sbatch refuses the job: lua: name an account"),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", "Socket timed out"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_and_leaves_no_job(slurm: Path, tmp_path: Path, said: str, reason: str) -> None:
    command(slurm, "scontrol", PARTITIONS)
    command(slurm, "srun")
    command(slurm, "scancel")
    command(slurm, "sbatch", code=1, error=said)
    task = Task(Work("pretrain", {}, {}, str(tmp_path), "run", "0" * 64, 1), "one", requeues=0)
    with pytest.raises(UserError, match=reason):
        submit("slurm", experiment(minutes=20), task, "the-name", tmp_path / "job")
    # sbatch may have given up on an answer after the job was queued
    assert (slurm / "calls").read_text().splitlines()[-1] == "scancel --name=the-name"


def test_a_qos_may_lift_a_partitions_limits(slurm: Path) -> None:
    command(slurm, "scontrol", PARTITIONS)
    with pytest.raises(UserError, match=r"cluster\.minutes: 2880 are more than the 30"):
        check_request(experiment())
    check_request(experiment(qos="long", nodes=8))
    check_request(experiment(extra={"qos": "long"}))
    with pytest.raises(UserError, match=r"cluster\.nodes: 9 are more than the 8"):
        check_request(experiment(qos="long", nodes=9))


@pytest.mark.parametrize("line", ["cd /;", "cd /  # where all begins", "cd / &&\ntrue"])
def test_set_up_of_a_job_on_this_machine_is_any_shell_command(tmp_path: Path, line: str) -> None:
    asked = experiment(kind="local", setup=[line, "exit 7"])
    task = Task(Work("pretrain", {}, {}, str(tmp_path), "run", "0" * 64, 1), "one", requeues=0)
    with pytest.raises(UserError, match=r"exit code 7\)"):
        submit("local", asked, task, "name", tmp_path / "job")

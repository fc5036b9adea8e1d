"""Ranks from the environment, and sums over ranks with the right gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flsl.runtime import distributed
from flsl.runtime.errors import UserError
from flsl.runtime.place import Place, first_host, meeting_point
from flsl.runtime.place import place as current

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "12345"}
VARIABLES = (*TORCHRUN, *SLURM, "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 0, 1)),
        (TORCHRUN, (3, 1, 4)),
        ({**SLURM, "SLURM_STEP_NODELIST": "gpu[03-05]"}, (3, 1, 4)),
        # a shell inside an allocation is no step of several tasks
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 0, 1)),
    ],
)
def test_place(environment: pytest.MonkeyPatch, variables: dict[str, str], place: tuple[int, int, int]) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert current() == Place(*place)


def test_slurms_first_host_is_the_meeting_point(environment: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_STEP_NODELIST": "gpu[03-05,09],login1"}.items():
        environment.setenv(name, value)
    assert meeting_point()["MASTER_ADDR"] == "gpu03"
    # below the ports that connections get, and another for the next job
    environment.setenv("SLURM_JOB_ID", "1919999")
    assert meeting_point()["MASTER_PORT"] == "31999"
    environment.setenv("SLURM_JOB_ID", "1920000")
    assert meeting_point()["MASTER_PORT"] == "20000"
    # torchrun has its own
    for name, value in TORCHRUN.items():
        environment.setenv(name, value)
    assert not meeting_point()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("node1,node2", "node1"), ("n[1-3]", "n1"), ("a[007,009]-ib", "a007-ib"), ("a-b[2]", "a-b2")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_missing_cuda_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is '0,1'"):
        distributed.choose_device("auto")
    assert distributed.choose_device("cpu").type == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert distributed.choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="no GPU is visible"):
        distributed.choose_device("cuda")


RANKS = """
import torch
from torch import nn
from flsl.model.head import SynchronizedBatchNorm
from flsl.runtime import distributed as d
process = d.start("cpu")
torch.manual_seed(0)
whole = torch.randn(12, 5)
start = torch.tensor(float(process.rank), requires_grad=True)
(d.all_reduce_with_gradient(start) ** 2).backward()
assert float(start.grad) == 4 * sum(range(process.world_size)), start.grad  # two ranks, each d/dx (sum)²
mean = d.mean_over_ranks(torch.tensor(float(process.rank)))
assert float(mean) == 0.5
# batch norm of shares equals torch's of the whole, running statistics and gradients included
reference, ours = nn.BatchNorm1d(5), SynchronizedBatchNorm(5)
weights = torch.randn(12, 5)
x = whole.clone().requires_grad_()
(reference(x) * weights).sum().backward()
share = slice(6 * process.rank, 6 * process.rank + 6)
mine = whole[share].clone().requires_grad_()
out = ours(mine)
(out * weights[share]).sum().backward()
torch.testing.assert_close(out, reference(whole)[share].detach(), atol=1e-5, rtol=1e-4)
torch.testing.assert_close(mine.grad, x.grad[share], atol=1e-5, rtol=1e-4)
reference.reset_running_stats(); reference(whole)
torch.testing.assert_close(ours.running_mean, reference.running_mean)
torch.testing.assert_close(ours.running_var, reference.running_var)
d.finish()
"""


RESUMED = """
import sys, threading
from pathlib import Path
from flsl.runtime import checkpoint, distributed as d
from flsl.runtime.training import resume
process = d.start("cpu")
# each rank's view of one folder: the second one sees the newest checkpoint late
out = Path(sys.argv[1]) / str(process.rank)
for step in (5, 10)[: 2 - process.rank]:
    checkpoint.save_step(out / "checkpoints", step, {"recipe": "r", "step": step}, kept=2)
if process.rank == 1:
    late = (out / "checkpoints", 10, {"recipe": "r", "step": 10}, 2)
    threading.Timer(1.0, checkpoint.save_step, late).start()
d.barrier()
path, state = resume(out, ("recipe", "r"), [], process)
assert (path.name, state["step"]) == ("step-000000010.pth", 10), (process.rank, path)
assert resume(out / "nothing", ("recipe", "r"), [], process) is None
d.finish()
"""


@pytest.mark.parametrize("text", [RANKS, RESUMED], ids=["sums_means_and_batch_norm", "the_checkpoint_to_go_on_from"])
def test_two_ranks_have_the_same(tmp_path: Path, text: str) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

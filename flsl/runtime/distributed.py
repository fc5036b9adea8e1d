"""Processes that train together: started by torchrun or SLURM, or a single one."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flsl.runtime.errors import UserError
from flsl.runtime.place import Place, meeting_point, place

_SETTLE_SECONDS = 0.05
_PATIENCE = datetime.timedelta(minutes=30)
"""How long a rank waits for the others."""


@dataclass(frozen=True)
class Process(Place):
    """This process's place among those that train together.

    Attributes:
        device: where this process computes.
    """

    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


def world_size() -> int:
    """Return the number of processes of the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def start(device: str = "auto") -> Process:
    """Join the processes that torchrun's or SLURM's environment describes; without either, be the only one.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``. CUDA ranks talk through NCCL, CPU ranks through gloo.

    Raises:
        UserError: when CUDA is asked for but does not work, or the environment is incomplete.
    """
    where = place()
    chosen = choose_device(device, where.local_rank)
    if where.world_size > 1:
        for name, value in meeting_point().items():
            os.environ.setdefault(name, value)
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise UserError(
                    f"{name}: this environment variable is needed by {where.world_size} processes that train together"
                )
        # gloo beside NCCL: small agreements between the hosts must not wait for the GPUs
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=where.rank, world_size=where.world_size, timeout=_PATIENCE)
    return Process(where.rank, where.local_rank, where.world_size, chosen)


def finish() -> None:
    """Leave the process group, when all ranks are here."""
    if dist.is_available() and dist.is_initialized():
        barrier()
        # gloo's threads need the interpreter to forget the last tensors, and the group's end, which holds it, waits for
        # them: in torch 2.6 for ever, unless they come first
        time.sleep(_SETTLE_SECONDS)
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Return the device that a ``compute.device`` setting names, and make it the current one.

    Raises:
        UserError: when ``cuda`` is asked for and no CUDA device works.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        chosen = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
        return chosen
    if device == "cuda" or (visible and visible != "-1"):
        seen = f"CUDA_VISIBLE_DEVICES is '{visible}'" if visible else "no GPU is visible"
        raise UserError(
            f"compute.device: {device} finds no working CUDA ({seen}); "
            "check the driver with nvidia-smi, or set compute.device=cpu"
        )
    return torch.device("cpu")


@contextlib.contextmanager
def fitting(remedy: str) -> Iterator[None]:
    """Make it the user's error where a GPU's memory is too small for the body of ``with``, or the function decorated.

    Args:
        remedy: the settings that ask for less, with what would do.

    Raises:
        UserError: when the memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        # its advice after that is for programmers
        raise UserError(f"{remedy}: {str(error).partition(' Of the allocated')[0]}") from error


def use_threads(count: int) -> None:
    """Let PyTorch use ``count`` CPU threads, as ``compute.threads`` says; 0 leaves its choice."""
    if count:
        torch.set_num_threads(count)


def describe(device: torch.device) -> str:
    """Return a device's name for the provenance, e.g. ``cuda: NVIDIA H100``."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


class Agreement:
    """The largest of what the ranks say at each step, known one step later, so that nobody waits for it."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, dist.Work] | None = None

    def largest(self, value: int) -> int:
        """Say ``value`` and return the largest of the last step's, 0 at first; a single process has its own at once.

        Every rank calls it at every step.
        """
        if world_size() == 1:
            return value
        answer = self.settle()
        flag = torch.tensor(value, dtype=torch.int32)
        self._pending = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True))
        return answer

    def settle(self) -> int:
        """Return the largest of what was said last, and forget it; 0 where nothing was."""
        if self._pending is None:
            return 0
        flag, work = self._pending
        self._pending = None
        work.wait()
        return int(flag)


def first_says(value: int) -> int:
    """Return the first rank's ``value`` on all ranks, which wait for it."""
    if world_size() == 1:
        return value
    told = torch.tensor(value, dtype=torch.int64)
    dist.broadcast(told, 0)
    return int(told)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all ranks, float64, without a gradient."""
    total = values.detach().double()
    if world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.detach().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def all_reduce_with_gradient(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over all ranks; its gradient is the sum of the ranks' gradients."""
    if world_size() == 1:
        return tensor
    result: Tensor = _SumOverRanks.apply(tensor)
    return result


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of ``tensor`` over all ranks, the same on each to the last bit; its gradient is the local mean's.

    The backward pass is the identity: data-parallel training averages the ranks' gradients afterwards, and the two
    together make the gradient of the mean.
    """
    if world_size() == 1:
        return tensor
    result: Tensor = _MeanOverRanks.apply(tensor)
    return result

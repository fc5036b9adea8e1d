"""This process's place among those that were started together, by torchrun or SLURM; needs no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A process among those that work together.

    Attributes:
        rank: 0 … world_size - 1 over all nodes.
        local_rank: 0 … on this node.
        world_size: number of processes.
    """

    rank: int
    local_rank: int
    world_size: int


def place() -> Place:
    """Return what torchrun's or SLURM's variables say; without either, this process is the only one."""
    environment = os.environ
    if _of_torchrun():
        rank = int(environment["RANK"])
        return Place(rank, int(environment.get("LOCAL_RANK", rank)), int(environment["WORLD_SIZE"]))
    if _of_slurm():
        return Place(
            int(environment["SLURM_PROCID"]),
            int(environment.get("SLURM_LOCALID", "0")),
            int(environment["SLURM_STEP_NUM_TASKS"]),
        )
    return Place(0, 0, 1)


def is_main_process() -> bool:
    """Return whether this process has rank 0."""
    return place().rank == 0


def meeting_point() -> dict[str, str]:
    """Return ``MASTER_ADDR`` and ``MASTER_PORT`` as far as SLURM's variables tell them, the same on all ranks."""
    environment = os.environ
    if _of_torchrun() or not _of_slurm():
        return {}
    found = {"MASTER_PORT": str(port_of(environment.get("SLURM_JOB_ID", "0")))}
    if "SLURM_STEP_NODELIST" in environment:
        found["MASTER_ADDR"] = first_host(environment["SLURM_STEP_NODELIST"])
    return found


def port_of(job_id: str) -> int:
    """Return the port at which a job's ranks meet, from 20000 to 31999.

    From 32768 on Linux gives ports to connections, one of which would now and then have the job's on a busy node.
    """
    return 20000 + int(re.sub(r"\D", "", job_id)) % 12000


def first_host(nodes: str) -> str:
    """Return the first name of a SLURM node list such as ``gpu[03-05,09],login1``."""
    match = re.match(r"([^\[,]+)(?:\[([^\]]+)\])?([^,\[]*)", nodes)
    assert match is not None
    first = re.split(r"[,-]", match[2])[0] if match[2] else ""
    return match[1] + first + match[3]


def _of_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _of_slurm() -> bool:
    """Tell whether this is one of several tasks of a step; a shell inside an allocation has none worth joining."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1

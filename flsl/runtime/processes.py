"""Worker processes: how many, that they end with their parent, and what is said when one is killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from flsl.runtime.errors import UserError
from flsl.runtime.signals import obey_parent


def cores() -> int:
    """Return how many cores this process may use (a SLURM job's, not the node's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def parallel_map(jobs: int, worker: str, threads: bool = False) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a ``map`` over worker processes, whose results come in order; over this process where one is enough.

    When the body fails, what has not begun is left.

    Args:
        jobs: number of workers.
        worker: what one is, for the message that it was killed.
        threads: start threads instead of processes.

    Raises:
        UserError: when a process was killed.
    """
    if jobs <= 1:
        yield map
        return
    # spawned, not forked: a progress bar's thread may hold a lock at that moment
    pool: Executor = (
        ThreadPoolExecutor(jobs)
        if threads
        else ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=obey_parent)
    )
    try:
        yield pool.map
    except BrokenProcessPool:
        raise UserError(f"{worker} was killed (out of memory?); try a smaller --jobs") from None
    finally:
        pool.shutdown(cancel_futures=True)

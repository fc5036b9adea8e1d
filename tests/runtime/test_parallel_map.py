"""Worker processes: results in order, and nobody works on when the main process fails or is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive, wait_for

from flsl.runtime.errors import UserError
from flsl.runtime.processes import cores, parallel_map


def whose(number: int) -> tuple[int, int]:
    return number, os.getpid()


def touch(path: Path) -> None:
    path.touch()
    time.sleep(0.05)


def killed(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_and_one_job_is_done_here(jobs: int, threads: bool) -> None:
    with parallel_map(jobs, "a worker", threads) as mapping:
        numbers, owners = zip(*mapping(whose, range(20)), strict=True)
    assert numbers == tuple(range(20))
    assert (os.getpid() in owners) == (jobs == 1 or threads)


def test_a_killed_worker_is_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"^a worker was killed \(out of memory\?\); try a smaller --jobs$"),
        parallel_map(2, "a worker") as mapping,
    ):
        list(mapping(killed, range(4)))


@pytest.mark.parametrize("threads", [False, True])
def test_what_has_not_begun_is_left_when_the_body_fails(tmp_path: Path, threads: bool) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        parallel_map(2, "a worker", threads) as mapping,
    ):
        results = mapping(touch, [tmp_path / str(number) for number in range(100)])  # a name holds it: it is not closed
        next(results)
        raise ZeroDivisionError
    assert len(list(tmp_path.iterdir())) < 50


def test_workers_end_with_a_main_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import os, time\n"
        "from flsl.runtime.processes import parallel_map\n"
        "def work(number):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    with parallel_map(2, 'a worker') as mapping:\n"
        "        list(mapping(work, range(2)))\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        workers = [int(main.stdout.readline()) for _ in range(2)]
        main.kill()
        wait_for(lambda: not any(alive(worker) for worker in workers))


def test_cores_are_counted_where_systems_do_not_tell_which(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()

"""``python -m flsl.launch.detached``: start a job on this machine by submitit, and print its number.

A process of its own, so that the job belongs to another session than the terminal's, and holds no pipe of the caller's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from flsl.launch.task import Task
from flsl.launch.work import Work


def main() -> None:
    """Read the request from standard input; see :func:`flsl.launch.request.submit`."""
    import submitit

    request = json.load(sys.stdin)
    folder = Path(request["folder"])
    answer = os.dup(1)
    with (folder / "controller.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    task = Task(**{**request["task"], "work": Work(**request["task"]["work"])})
    executor = submitit.AutoExecutor(folder, cluster="local", local_max_num_timeout=request["requeues"])
    executor.update_parameters(**request["parameters"])
    job = executor.submit(task)
    os.write(answer, f"{job.job_id}\n".encode())
    os._exit(0)  # submitit would complain about the job that it leaves behind


if __name__ == "__main__":
    main()

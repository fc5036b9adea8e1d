"""Training as a job of its own, on SLURM or this machine: submit, wait, re-attach, requeue.

What waits for a job imports neither torch nor pandas: dozens of waiting processes must fit on a login node.
"""

from flsl.launch.submit import submit_work
from flsl.launch.work import detection, pretraining

__all__ = ["detection", "pretraining", "submit_work"]

"""From settings to a job: what is asked of submitit's AutoExecutor, and what could never be granted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flsl.config.cluster import ClusterSettings
from flsl.config.experiment import Experiment
from flsl.launch.queue import WHICH_CLUSTER, run
from flsl.launch.task import Task
from flsl.runtime.errors import UserError, nearest

_SETTING_OF = (
    ("account", "cluster.account"),
    ("partition", "cluster.partition"),
    ("qos", "cluster.qos"),
    ("feature", "cluster.constraint"),
    ("memory", "cluster.memory_gb"),
    ("time limit", "cluster.minutes"),
    ("node configuration", "cluster.nodes, gpus_per_node, cpus_per_task or memory_gb"),
    ("node count", "cluster.nodes"),
)
_OPTIONS = ("job_name", "cpus_per_task", "mem", "partition", "account", "qos", "constraint")
_OF_SBATCH_ALONE = frozenset({"array", "hold", "no_requeue", "requeue"})


def resolve_kind(settings: ClusterSettings) -> str:
    """Return ``slurm`` or ``local``: where a submitted job runs."""
    if settings.kind in ("slurm", "local"):
        return settings.kind
    return "slurm" if shutil.which("sbatch") else "local"


def gpus_per_node(experiment: Experiment) -> int:
    """Return the GPUs that are asked for on each node."""
    asked = experiment.cluster.gpus_per_node
    return asked if asked is not None else int(experiment.compute.device != "cpu")


def _gpus_here() -> bool:
    """Tell whether this machine has NVIDIA GPUs, without the seconds that importing torch takes."""
    return shutil.which("nvidia-smi") is not None or any(Path("/dev").glob("nvidia[0-9]*"))


def tasks_per_node(experiment: Experiment) -> int:
    """Return the processes on each node: one a GPU unless the settings say otherwise."""
    return experiment.cluster.tasks_per_node or max(1, gpus_per_node(experiment))


def processes(experiment: Experiment) -> int:
    """Return the processes on all nodes."""
    return experiment.cluster.nodes * tasks_per_node(experiment)


def asked_for(settings: ClusterSettings, name: str) -> str | None:
    """Return the partition, account, QOS or constraint that is asked for.

    Where ``cluster`` leaves it open, sbatch's own variable counts, which many users set in their shell.
    """
    value: str | None = getattr(settings, name) or os.environ.get(f"SBATCH_{name.upper()}")
    return value


@contextlib.contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Let SLURM's commands see no job around them, whose shape they would inherit; they ask the same cluster as ever.

    ``flsl`` may be called in an interactive shell on a node.
    """
    from submitit.helpers import clean_env

    cluster = {name: os.environ[name] for name in WHICH_CLUSTER if name in os.environ}
    with clean_env():
        os.environ.update(cluster)
        yield


def executor_parameters(kind: str, experiment: Experiment, job_name: str) -> dict[str, Any]:
    """Return the parameters for ``AutoExecutor.update_parameters``."""
    settings, gpus, tasks = experiment.cluster, gpus_per_node(experiment), tasks_per_node(experiment)
    shape: dict[str, int | None]
    if kind == "local":
        if settings.gpus_per_node is None and experiment.compute.device == "auto" and not _gpus_here():
            gpus = 0
        # one node only: this machine takes the processes of all
        shape = {"nodes": 1, "tasks_per_node": settings.nodes * tasks, "gpus_per_node": settings.nodes * gpus}
    else:
        shape = {"nodes": settings.nodes, "tasks_per_node": tasks, "gpus_per_node": gpus or None}
    # SLURM brings the job back by itself after a preemption and after a node that fails
    requeue = {} if {"no-requeue", "no_requeue"} & settings.extra.keys() else {"requeue": True}
    slurm = {
        "job_name": job_name,
        "cpus_per_task": settings.cpus_per_task,
        "mem": f"{round(settings.memory_gb * 1024)}MB" if settings.memory_gb is not None else None,
        **{name: asked_for(settings, name) for name in ("partition", "account", "qos", "constraint")},
        "signal_delay_s": settings.signal_seconds,
        "setup": settings.setup or None,
        # a rank that ends with an error ends the others, which would wait for it until the time limit
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={settings.cpus_per_task}"],
        "additional_parameters": {k: v for k, v in (requeue | settings.extra).items() if v is not False},
    }
    if kind == "local":
        return {**shape, "timeout_min": settings.minutes}
    return {**shape, "timeout_min": settings.minutes, **{f"slurm_{name}": value for name, value in slurm.items()}}


def arguments(experiment: Experiment, job_name: str, tiny: bool = False) -> list[str]:
    """Return what :func:`submit` asks SLURM for as arguments of sbatch.

    Args:
        experiment: its ``cluster`` says what to ask for.
        job_name: the job's name in SLURM.
        tiny: ask for one process for two minutes, on such a node; as arguments of srun.
    """
    asked = executor_parameters("slurm", experiment, job_name)
    options = {
        "nodes": asked["nodes"],
        "ntasks_per_node": asked["tasks_per_node"],
        "gpus_per_node": asked["gpus_per_node"],
        "time": asked["timeout_min"],
        **{name: asked[f"slurm_{name}"] for name in _OPTIONS},
    }
    further = {name.replace("-", "_"): value for name, value in asked["slurm_additional_parameters"].items()}
    if tiny:
        options |= {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 1, "time": 2}
        options["mem"] = options["mem"] and "2G"
        further = {name: value for name, value in further.items() if name not in _OF_SBATCH_ALONE}
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in {**options, **further}.items()
        if value is not None
    ]


def submit(kind: str, experiment: Experiment, task: Task, job_name: str, folder: Path) -> str:
    """Submit the job and return its number.

    Args:
        kind: ``slurm`` or ``local``.
        experiment: its ``cluster`` says what to ask for.
        task: what every process does.
        job_name: the job's name in SLURM.
        folder: for logs and submitit's files.

    Raises:
        UserError: when SLURM refuses the request.
    """
    parameters = executor_parameters(kind, experiment, job_name)
    if kind == "local":
        return _submit_detached(parameters, task, folder, experiment.cluster)
    check_request(experiment)
    import submitit

    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=experiment.cluster.requeues)
    executor.update_parameters(**parameters)
    with outside_of_jobs():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints sbatch's words, too
                return str(executor.submit(task).job_id)
        except submitit.core.utils.FailedJobError as error:
            # the job is in the queue where sbatch has only given up to wait for an answer; nobody would know of it
            run(["scancel", f"--name={job_name}"])
            raise UserError(_refusal(str(error))) from None


def check_request(experiment: Experiment) -> None:
    """Refuse what SLURM would queue for ever: more nodes or time than the partition has.

    Raises:
        UserError: naming the setting.
    """
    settings = experiment.cluster
    partitions = read_partitions()
    if not partitions:
        return
    partition = asked_for(settings, "partition")
    named = (
        partition.split(",")
        if partition
        else [name for name, facts in partitions.items() if facts.get("Default") == "YES"]
    )
    problems = []
    for name in named:
        if name not in partitions:
            raise UserError(
                f"cluster.partition: there is no partition '{name}'{nearest(name, partitions)}; "
                f"there are {', '.join(partitions)}"
            )
        problems.append(_too_much(settings, name, partitions[name]))
    if problems and all(problems):
        raise UserError(str(problems[0]))


def read_partitions() -> dict[str, dict[str, str]]:
    """Return what ``scontrol show partition`` says of each partition; nothing where it does not answer."""
    code, out, _ = run(["scontrol", "show", "partition", "--oneliner"])
    if code:
        return {}
    facts = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in out.splitlines() if line.strip()]
    return {entry["PartitionName"]: entry for entry in facts if "PartitionName" in entry}


def _too_much(settings: ClusterSettings, name: str, facts: dict[str, str]) -> str | None:
    """Say what of the request the partition cannot grant."""
    # a QOS may have been given flags that lift the partition's limits
    lifted = bool(asked_for(settings, "qos") or settings.extra.get("qos"))
    limits = ("TotalNodes",) if lifted else ("TotalNodes", "MaxNodes")
    most = [int(facts[key]) for key in limits if facts.get(key, "").isdigit()]
    if most and settings.nodes > min(most):
        return f"cluster.nodes: {settings.nodes} are more than the {min(most)} of partition '{name}'"
    limit = None if lifted else minutes_of(facts.get("MaxTime", ""))
    if limit is not None and settings.minutes > limit:
        return f"cluster.minutes: {settings.minutes} are more than the {limit} that partition '{name}' allows"
    if facts.get("State", "UP") in ("DOWN", "DRAIN", "INACTIVE"):
        return f"cluster.partition: '{name}' takes no jobs now (its state is {facts['State']})"
    return None


def minutes_of(text: str) -> int | None:
    """Return a time of SLURM's (``[days-]hours:minutes:seconds``) in minutes; ``None`` for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def reason_of(text: str) -> str:
    """Return why sbatch refuses a job, from all that it says."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # a site's own remarks may come before
    told = (line for line in lines if re.search("error:|failure:", line))
    first = next(told, lines[0] if lines else "no reason told")
    return re.sub(r"^sbatch: (error: )?(Batch job submission failed: )?", "", first)


def _refusal(text: str) -> str:
    reason = reason_of(text)
    setting = next((name for sign, name in _SETTING_OF if sign in reason.lower()), "cluster")
    return f"{setting}: sbatch refuses the job: {reason}"


def after_setup(settings: ClusterSettings, command: list[str], strict: bool) -> list[str]:
    """Return a command that runs those of ``cluster.setup`` first, whose output goes to standard error.

    Args:
        settings: with the commands to run first.
        command: what takes the shell's place afterwards, so that its number is the one to signal.
        strict: whether one that fails ends all; in a job's script on SLURM it does not.
    """
    if not settings.setup:
        return command
    lines = [f"eval {shlex.quote(line)}{' || exit' if strict else ''}" for line in settings.setup]
    return ["bash", "-c", "\n".join(["{", *lines, "} >&2", 'exec "$@"']), "bash", *command]


def _submit_detached(parameters: dict[str, Any], task: Task, folder: Path, settings: ClusterSettings) -> str:
    """Start a job on this machine in a session of its own, which neither Ctrl-C nor a closing terminal ends."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"parameters": parameters, "task": asdict(task), "folder": str(folder), "requeues": settings.requeues}
    command = after_setup(settings, [sys.executable, "-m", "flsl.launch.detached"], strict=True)
    started = subprocess.run(
        command,
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=False,
    )
    if started.returncode:
        hint = "; do the commands of cluster.setup work?" if settings.setup else ""
        raise UserError(f"cluster: the job could not be started on this machine (exit code {started.returncode}){hint}")
    return started.stdout.strip()

"""``flsl doctor``: whether a site can do what a config asks for, before a long run finds out; one line per check."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flsl.config.experiment import Experiment
from flsl.launch import request
from flsl.launch.queue import run
from flsl.launch.work import for_detection, in_words_of_detection
from flsl.runtime.compiler import hindrance
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import writing
from flsl.runtime.progress import counted

_COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")
_JOB = "flsl-doctor"
_JOB_SECONDS = 180.0


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        level: ``ok``; ``warn``: may be intended; ``FAIL``: the run would fail.
        check: what was looked at.
        text: what was found.
    """

    level: Literal["ok", "warn", "FAIL"]
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:4}  {self.check}: {' '.join(self.text.split())}"


def examine(experiment: Experiment, job: bool = True) -> Iterator[Finding]:
    """Yield what each check finds, as soon as it is known.

    Args:
        experiment: what is to be run.
        job: whether to look at a compute node by a tiny job.
    """
    slurm = request.resolve_kind(experiment.cluster) == "slurm"
    checks: list[tuple[str, Callable[[Experiment], Iterator[Finding]]]] = [
        ("python", _python),
        ("torch", _torch),
        ("data", _data),
        ("results", _disk),
        ("mlflow", _mlflow),
    ]
    if slurm:
        checks += [("slurm", _slurm), ("request", _request)]
        checks += [("compute node", _node)] if job else []
    else:
        yield Finding("ok", "slurm", "not used: cluster.kind is local, or there is no sbatch here")
    for name, check in checks:
        try:
            yield from check(experiment)
        except (UserError, ImportError, OSError) as error:
            yield Finding("FAIL", name, str(error))


def _python(experiment: Experiment) -> Iterator[Finding]:
    fine = sys.version_info >= (3, 11)
    yield Finding("ok" if fine else "FAIL", "python", f"{platform.python_version()} at {sys.executable}")


def _torch(experiment: Experiment) -> Iterator[Finding]:
    try:
        facts = torch_facts()
    except (ImportError, OSError) as error:  # a missing library is an OSError
        yield Finding("FAIL", "torch", f"cannot be imported ({error}); install the package again")
        return
    yield Finding("ok", "torch", f"{facts['torch']}; on this machine {_devices(facts)}")
    if request.resolve_kind(experiment.cluster) != "slurm":
        yield from judge_devices(experiment, facts, "torch")


def torch_facts() -> dict[str, Any]:
    """Return what torch finds on this machine."""
    import torch

    works = torch.cuda.is_available()
    nccl = torch.cuda.nccl.version() if works else None  # type: ignore[no-untyped-call]
    return {
        "torch": torch.__version__,
        "gpus": torch.cuda.device_count() if works else 0,
        "gpu": torch.cuda.get_device_name(0) if works else None,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "compiling": {device: hindrance(device) for device in ("cuda", "cpu")},
    }


def _devices(facts: dict[str, Any]) -> str:
    if facts["gpus"]:
        return f"{facts['gpus']} × {facts['gpu']}, NCCL {facts['nccl']}"
    seen = f", though CUDA_VISIBLE_DEVICES is '{facts['visible']}'" if facts["visible"] else ""
    return f"no working CUDA{seen}"


def judge_devices(experiment: Experiment, facts: dict[str, Any], check: str) -> Iterator[Finding]:
    """Yield what :func:`torch_facts` of a machine say against training there as the settings ask."""
    device = "cuda" if facts["gpus"] and experiment.compute.device != "cpu" else "cpu"
    if experiment.compute.compile and (why := facts["compiling"][device]):
        yield Finding("FAIL", check, f"compute.compile: {why}")
    asked = request.gpus_per_node(experiment)
    if experiment.compute.device == "cpu":
        return
    if facts["gpus"] == 0 and (experiment.compute.device == "cuda" or facts["visible"]):
        yield Finding("FAIL", check, f"{_devices(facts)}; check the driver, or set compute.device=cpu")
    elif 0 < facts["gpus"] < asked:
        text = f"{counted(facts['gpus'], 'GPU')} can be used, where cluster.gpus_per_node is {asked}"
        if request.resolve_kind(experiment.cluster) == "slurm" or experiment.cluster.kind == "local":
            yield Finding("FAIL", check, text)
        else:
            yield Finding("warn", check, f"{text}; the workflow trains in one process, `flsl submit` in {asked}")
    elif facts["gpus"] and facts["nccl"] is None:
        yield Finding("FAIL", check, "torch has no NCCL, through which GPUs talk")


def _data(experiment: Experiment) -> Iterator[Finding]:
    data = experiment.data
    if data.scenes is not None:
        yield Finding("ok", "data", f"made by the workflow in {data.scenes.root}")
    wanted: dict[str, list[str]] = {}
    if data.images is not None:
        parts = [data.images.train, data.images.val, data.images.boxes]
        wanted["images"] = [f"{data.images.root}/{part}" for part in parts if part]
    if data.coco is not None:
        coco = data.coco
        parts = [coco.train_images, coco.val_images, coco.train_annotations, coco.val_annotations]
        wanted["coco"] = [f"{coco.root}/{part}" for part in parts]
    if data.uavdt is not None:
        wanted["uavdt"] = [f"{data.uavdt.root}/{part}" for part in (data.uavdt.frames, data.uavdt.ground_truth)]
    if data.davis is not None:
        davis = data.davis
        wanted["davis"] = [f"{davis.root}/{part}" for part in (davis.frames, davis.masks, davis.lists)]
    for name, paths in wanted.items():
        if data.scenes is not None and Path(paths[0]).resolve().is_relative_to(Path(data.scenes.root).resolve()):
            continue
        wrong: dict[str, list[str]] = {}
        for path in paths:
            if why := _unreadable(Path(path)):
                wrong.setdefault(why, []).append(path)
        for why, some in wrong.items():
            yield Finding("FAIL", f"data.{name}", f"{why}: {', '.join(some)}")
        if not wrong:
            yield Finding("ok", f"data.{name}", f"{paths[0]} and {len(paths) - 1} more are there")


def _unreadable(path: Path) -> str:
    """Return why a file or folder cannot be read, nothing where it can."""
    try:
        path.stat()
    except FileNotFoundError:
        return "not there"
    except OSError as error:  # above all a folder on the way that may not be entered
        return str(error.strerror).lower()
    return "" if os.access(path, os.R_OK) else "permission denied"


def _disk(experiment: Experiment) -> Iterator[Finding]:
    folder = Path(experiment.results)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding("FAIL", "results", f"{there}: may not be written")
        return
    needed, free = checkpoints_bytes(experiment), shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free in {there}, {needed / 1e9:.2f} GB needed for the checkpoints of all pretrainings"
    yield Finding("ok" if free > needed else "FAIL", "results", text)


def checkpoints_bytes(experiment: Experiment) -> int:
    """Return the space that the checkpoints of all pretrainings take, those of ablations too, in bytes."""
    import torch

    from flsl.config.sweep import PRETRAIN, plan
    from flsl.pretrain.network import FLSLNetwork

    parameters: dict[str, int] = {}  # building a network takes a tenth of a second, and most are equal
    total = 0
    for one in plan(experiment).runs.values():
        if PRETRAIN in one.shares:
            continue
        pretrain = one.settings.pretrain
        shape = repr((pretrain.encoder, pretrain.head, pretrain.prototypes, pretrain.views.teacher_size))
        if shape not in parameters:
            with torch.device("meta"):
                network = FLSLNetwork(pretrain, drop_path=0.0)
            parameters[shape] = sum(parameter.numel() for parameter in network.parameters())
        # student, teacher and the optimiser's two moments, in float32; the kept ones, the next one and the final one
        total += 16 * parameters[shape] * (experiment.compute.checkpoints_kept + 2)
    return total


def _mlflow(experiment: Experiment) -> Iterator[Finding]:
    from flsl.track.store import default_uri, open_store, shown

    folder = Path(experiment.results) / experiment.project
    uri = experiment.tracking.uri or default_uri(folder)
    if uri == f"sqlite:///{folder.resolve() / 'mlflow.db'}":
        yield Finding("ok", "mlflow", f"SQLite in {folder}, which this machine alone writes")
        return
    with open_store(uri, experiment.tracking.timeout) as store:
        store.reach()
    yield Finding("ok", "mlflow", f"{shown(uri)} answers")


def _slurm(experiment: Experiment) -> Iterator[Finding]:
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        yield Finding("FAIL", "slurm", f"not on PATH: {', '.join(missing)}")
        return
    code, out, error = run(["scontrol", "show", "config"])
    if code:
        yield Finding("FAIL", "slurm", f"the controller does not answer: {error}")
        return
    config = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    config = {key.strip(): value.strip() for key, value in config.items()}
    yield Finding("ok", "slurm", f"{config.get('SLURM_VERSION', '?')}, cluster {config.get('ClusterName', '?')}")
    code, _, error = run(["sacct", "-X", "-n", "-S", "now"])
    if code or config.get("AccountingStorageType", "").endswith("none"):
        yield Finding("FAIL", "accounting", f"sacct does not answer ({error or 'it is switched off'}); jobs that end "
                      "without a word would not be noticed")  # fmt: skip
    else:
        yield Finding("ok", "accounting", "sacct answers")


def _request(experiment: Experiment) -> Iterator[Finding]:
    yield _judge_request(experiment, "pretraining of cluster.*")
    detection = for_detection(experiment)
    if request.processes(detection) > 1 and {"coco", "uavdt"} & set(experiment.stages):
        try:
            yield _judge_request(detection, "detection of cluster.detection.*")
        except UserError as error:
            raise in_words_of_detection(error) from None


def _judge_request(experiment: Experiment, what: str) -> Finding:
    request.check_request(experiment)
    command = ["sbatch", "--test-only", *request.arguments(experiment, _JOB), "--wrap", "true"]
    with request.outside_of_jobs():
        code, _, error = run(command)
    if code:
        return Finding("FAIL", "request", f"sbatch would refuse the {what}: {request.reason_of(error)}")
    said = error.splitlines()[-1].removeprefix("sbatch: ") if error else ""
    cluster = experiment.cluster
    shape = f"{cluster.nodes} nodes × {request.tasks_per_node(experiment)} processes, {cluster.minutes} min"
    return Finding("ok", "request", f"{shape}: {said or 'could be granted'}")


def _node(experiment: Experiment) -> Iterator[Finding]:
    folder = Path(experiment.results).absolute() / f".doctor-{secrets.token_hex(4)}"
    with writing(folder):
        folder.mkdir(parents=True)
    try:
        token = secrets.token_hex(8)
        (folder / "question").write_text(token, encoding="utf-8")
        command = ["srun", *request.arguments(experiment, _JOB, tiny=True), "--quiet"]
        look = [sys.executable, "-m", "flsl.doctor", str(folder)]
        command += request.after_setup(experiment.cluster, look, strict=False)
        with request.outside_of_jobs():
            code, out, error = run(command, _JOB_SECONDS)
        if code == 124:
            yield Finding("warn", "compute node", f"a tiny job was not done within {_JOB_SECONDS:g} s (queue full?)")
            return
        facts = _last_json(out)
        if code or facts is None:
            reason = (error or out).strip().splitlines()
            yield Finding("FAIL", "compute node", f"a tiny job failed: {reason[-1] if reason else f'exit code {code}'}")
            return
        yield Finding("ok", "compute node", f"{facts['host']}: torch {facts['torch']}, {_devices(facts)}")
        yield from judge_devices(experiment, facts, "compute node")
        yield _judge_folder(folder, token, facts, experiment.cluster.latency_seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judge_folder(folder: Path, token: str, facts: dict[str, Any], latency: float) -> Finding:
    parent = folder.parent
    if facts["question"] != token:
        return Finding("FAIL", "shared folder", f"{parent} is not the same folder on {facts['host']}")
    if facts["refused"]:
        return Finding("FAIL", "shared folder", f"{parent} may not be written on {facts['host']}: {facts['refused']}")
    started = time.monotonic()
    while not (answer := folder / "answer").exists() or answer.read_text(encoding="utf-8") != token[::-1]:
        if time.monotonic() - started > latency:
            late = f"what {facts['host']} writes is not seen here within {latency:g} s (cluster.latency_seconds)"
            return Finding("FAIL", "shared folder", f"{parent}: {late}")
        time.sleep(0.5)
    return Finding("ok", "shared folder", f"{parent} is seen and written on {facts['host']}")


def _last_json(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    return None


def answer_from_node(folder: Path) -> dict[str, Any]:
    """Look at the machine on which this runs, answer in ``folder``, and return what was found."""
    question, refused = None, None
    try:
        question = (folder / "question").read_text(encoding="utf-8")
        (folder / "answer").write_text(question[::-1], encoding="utf-8")
    except OSError as error:
        refused = str(error)
    return {"host": platform.node(), "question": question, "refused": refused, **torch_facts()}


if __name__ == "__main__":
    print(json.dumps(answer_from_node(Path(sys.argv[1]))))

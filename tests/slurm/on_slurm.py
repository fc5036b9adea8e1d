"""Very small trainings, and `flsl submit` on them, for the tests on a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flsl.launch.wait import process_started

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
FLSL = [sys.executable, "-m", "flsl"]
PATIENCE = 300.0

TINY: dict[str, Any] = {
    "project": "tiny",
    "data": {
        "scenes": {
            "root": "scenes",
            "train_images": 32,
            "val_images": 10,
            "coco_size": 64,
            "coco_train_images": 8,
            "coco_val_images": 4,
            "uavdt_sequences": 0,
            "davis_sequences": 0,
        },
        "images": {"root": "scenes/images", "boxes": "boxes.csv"},
        "coco": {"root": "scenes/coco"},
    },
    "pretrain": {
        "encoder": {
            "name": "vit_tiny_patch16_224",
            "patch_size": 8,
            "width": 32,
            "depth": 2,
            "heads": 2,
            "drop_path": 0.1,
        },
        "views": {"teacher_size": 32, "global_size": 32, "local_size": 16, "local_crops": 1},
        "head": {"hidden": 32, "bottleneck": 16, "batch_norm": True},
        "prototypes": 32,
        "epochs": 4,
        "batch_size": 8,
        "precision": "float32",
        "freeze_prototypes_epochs": 0,
        "online_knn_every": 0,
    },
    "features": {"resize": 32, "crop": 32},
    "knn": {"k": [5]},
    "linear": {"learning_rates": [0.1], "blocks": [1], "epochs": 1, "batch_size": 16},
    "stages": ["knn"],
    "detection": {
        "model": {
            "blocks": [1, 1, 2, 2],
            "channels": 16,
            "box_hidden": 16,
            "mask_convs": 1,
            "anchor_sizes": [8, 16, 32, 64, 128],
            "proposals_train": 50,
            "proposals_test": 20,
            "regions": 32,
        },
        "coco": {
            "epochs": 4,
            "batch_size": 4,
            "learning_rate": 1.0e-3,
            "warmup_steps": 0,
            "precision": "float32",
            "short_sides": [64],
            "long_side": 96,
            "crop": 0.0,
            "crop_short_sides": [64],
            "crop_range": [32, 64],
            "test_short_side": 64,
            "images_shown": 1,
        },
    },
    # the GPUs of the test cluster are none
    "compute": {"device": "cpu", "workers": 1, "threads": 1, "log_every": 1, "checkpoint_steps": 2},
    "tracking": {"live": False},
    "cluster": {
        "cpus_per_task": 1,
        "memory_gb": 2,
        "minutes": 10,
        "signal_seconds": 60,
        "poll_seconds": 1,
        "latency_seconds": 20,
    },
}
"""Sixteen steps of a very small model on made images, seconds long."""
STEPS = 16


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until ``condition`` returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.3)
    return found


def shell(*command: str, check: bool = True) -> str:
    """Run a command and return its output."""
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=120).stdout.strip()


class Stage:
    """A stage's folder, and `flsl submit` on it."""

    def __init__(self, work: Path, name: str, stage: str = "pretrain") -> None:
        self.work, self.name = work, name
        self.out = work / "runs" / name / stage
        self.command = ["pretrain", "--images", "data"]
        if stage != "pretrain":
            self.command = ["detect", "--stage", stage, "--random-init"]
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self, *overrides: str, force: bool = False, queue: str | None = None, **hooks: str
    ) -> subprocess.Popen[str]:
        """Start the command; ``hooks`` are the misfortunes of hooks/sitecustomize.py.

        With ``queue``, a folder's name, it does not share its questions to SLURM with the others that wait.
        """
        setup = [f"export PYTHONPATH={HERE / 'hooks'}"] * bool(hooks)
        setup += [f"export FLSL_TEST_{name.upper()}={value}" for name, value in hooks.items()]
        command = [*FLSL, "submit", *self.command, "--config", "tiny.yaml", "--out", str(self.out)]
        command += ["--name", self.name, *["--force"] * force, *overrides, f"cluster.setup={json.dumps(setup)}"]
        environment = dict(os.environ)
        if queue is not None:
            (self.work / queue).mkdir()
            environment["TMPDIR"] = str(self.work / queue)
        process = subprocess.Popen(
            command,
            cwd=self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Wait until a started command ends with that exit code; return what it printed."""
        try:
            out, _ = process.communicate(timeout=2 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            pytest.fail(f"still waiting:\n{out}\n{self.log()}")
        assert process.returncode == code, f"exit code {process.returncode}:\n{out}\n{self.log()}"
        return out

    def run(self, *overrides: str, code: int = 0, force: bool = False, **hooks: str) -> str:
        """Run the command to its end."""
        return self.finish(self.start(*overrides, force=force, **hooks), code)

    def end(self) -> None:
        """End what is left of it, the waiting commands and the job."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
        record = self.record()
        if record.get("cluster") == "slurm" and record.get("job_id"):
            shell("scancel", str(record["job_id"]), check=False)
        elif record.get("job_id") and process_started(int(record["job_id"])) == record["process_started"]:
            leader = psutil.Process(int(record["job_id"]))
            for member in [leader, *leader.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    member.kill()

    def job(self) -> str:
        """The number of the folder's job, once there is one."""
        return str(until(lambda: self.record().get("job_id"), "a job is submitted"))

    def record(self) -> dict[str, Any]:
        path = self.out / "job.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def history(self) -> list[dict[str, Any]]:
        path = self.out / "history.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def step(self) -> int:
        """The newest step that has been written down."""
        return max((line["step"] for line in self.history() if line["kind"] == "step"), default=0)

    def attempts(self) -> list[dict[str, Any]]:
        path = self.out / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self) -> str:
        logs = sorted((self.out / "job").glob("*_log.err"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in logs)

    def curve(self) -> list[tuple[int, float, float]]:
        """Step, loss and learning rate of each step."""
        return [
            (line["step"], line["loss"], line["learning_rate"]) for line in self.history() if line["kind"] == "step"
        ]

    def weights(self) -> dict[str, Any]:
        """All tensors of the final checkpoint's networks by name."""
        import torch

        state = torch.load(self.out / "checkpoint.pth", weights_only=True)
        return {
            f"{part}.{name}": tensor
            for part in ("student", "teacher", "objective")
            for name, tensor in state[part].items()
        }


def state_of(job: str) -> str:
    """A job's state as SLURM tells it."""
    return shell("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T", check=False)

"""What does everything around the computing cost?

- commands: how long ``flsl … --help`` takes (goal: under 0.5 s; no torch), and ``flsl submit`` before it
  submits, against the import of torch that it does without;
- the workflow: ``snakemake -n`` of the demo;
- checkpoint: how long a ViT-S/16 training's state takes to write, durably, and which share of the time training stands
  still for it at the paper's scale: at every epoch's end, and at the pace of ``flsl.runtime.pace``;
- history: a line of ``history.jsonl`` every ``compute.log_every`` steps, which is all that training does for MLflow.

    python benchmarks/overheads.py --out results/bench/overheads.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import measure, options, report

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import PretrainSettings
from flsl.pretrain.step import TrainingStep
from flsl.runtime import checkpoint
from flsl.runtime.history import History
from flsl.runtime.pace import Pace

COMMANDS = (
    "--help",
    "pretrain --help",
    "submit pretrain --help",
    "knn --help",
    "detect train --help",
    "davis propagate --help",
    "data check images --help",
    "report --help",
)
MODULES = ("flsl.cli", "flsl.config.experiment", "flsl.data.manifest", "flsl.launch", "flsl.pretrain.trainer", "torch")
# the paper's training on 8 GPUs of this class: images, batch, and images a second of all of them
_IMAGES, _BATCH, _EPOCHS, _SPEED = 1_281_167, 512, 300, 8 * 4000


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def commands(repeats: int) -> dict[str, dict[str, float]]:
    """Return the seconds of the commands' help and of the modules' imports, each in a new process."""
    helps = {f"flsl {words}": lambda words=words: run("-m", "flsl", *words.split()) for words in COMMANDS}
    imports = {f"import {name}": lambda name=name: run("-c", f"import {name}") for name in MODULES}
    nothing = {"python": lambda: run("-c", "pass")}
    found = measure({**nothing, **helps, **imports}, repeats)
    return {
        "help": {name: round(found[name], 3) for name in helps},
        "import": {name: round(found[name], 3) for name in (*nothing, *imports)},
    }


def submit(folder: Path, repeats: int) -> float:
    """Return the seconds that ``flsl submit pretrain`` takes before it submits."""
    command = ["-m", "flsl", "submit", "pretrain", "--config", "config/demo.yaml", "--images", str(folder / "none")]
    command += ["--out", str(folder / "out"), "cluster.kind=local"]

    def start() -> None:
        # the images are missing, which is the first thing that it tells: everything before is its start
        subprocess.run([sys.executable, *command], capture_output=True, check=False)

    return round(measure({"submit": start}, repeats)["submit"], 3)


def workflow(folder: Path, repeats: int) -> float:
    """Return the seconds of a dry run of the demo."""
    command = ["-m", "snakemake", "-n", "--quiet", "--configfile", "config/demo.yaml", "--config", f"results={folder}"]
    return round(measure({"dry run": lambda: run(*command)}, repeats)["dry run"], 2)


def stalls(folder: Path, repeats: int) -> dict[str, Any]:
    """Return the cost of checkpoints and history lines, and their shares of the paper's training."""
    settings = PretrainSettings()
    step = TrainingStep(settings, ComputeSettings(), torch.device("cpu"))
    for parameter in step.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step.optimiser.step()  # so that there are moments
    state = step.state(step.watched())
    written: list[Path] = []
    history = History(folder / "history.jsonl")
    figures = {f"figure {number}": 0.123456789 for number in range(16)}
    lines = 1000
    seconds = measure(
        {
            "checkpoint": lambda: written.append(checkpoint.save_step(folder, len(written), state, kept=2)),
            "lines": lambda: [history.write({"step": number, **figures}) for number in range(lines)],
        },
        repeats,
    )
    steps = _EPOCHS * (_IMAGES // _BATCH)
    step_seconds = _BATCH / _SPEED
    epoch_seconds = _IMAGES // _BATCH * step_seconds
    every = ComputeSettings().log_every
    return {
        "checkpoint_mb": round(written[-1].stat().st_size / 1e6),
        "checkpoint_seconds": round(seconds["checkpoint"], 2),
        "paper": f"{steps} steps of {1000 * step_seconds:.0f} ms, {epoch_seconds:.0f} s an epoch: {_SPEED:,} images/s",
        "stall_percent_if_every_epoch": round(100 * seconds["checkpoint"] / (seconds["checkpoint"] + epoch_seconds), 2),
        "stall_percent": round(100 * paced(seconds["checkpoint"], epoch_seconds), 2),
        "history_line_microseconds": round(1e6 * seconds["lines"] / lines, 1),
        "history_percent": round(100 * seconds["lines"] / lines / every / step_seconds, 5),
    }


def paced(cost: float, epoch_seconds: float) -> float:
    """Return the share of a training's time that checkpoints take at the trainer's own pace."""
    now = 0.0
    pace = Pace(ComputeSettings(), lambda: now)
    spent = 0.0
    for epoch in range(_EPOCHS):
        now += epoch_seconds
        if pace.due(epoch + 1, epoch_ends=True):
            with pace.saving():
                now += cost
            spent += cost
    return spent / now


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        times = commands(args.repeats)
        figures = {
            **times,
            "slowest_help": max(times["help"].values()),
            "submit": submit(folder, args.repeats),
            "snakemake_dry_run": workflow(folder, args.repeats),
            **stalls(folder, args.repeats),
        }
    report({**figures, "benchmark_seconds": round(time.perf_counter() - started)}, args.out)


if __name__ == "__main__":
    main()

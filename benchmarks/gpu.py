"""The benchmarks that want a GPU, in one call of at most ten minutes, into one JSON.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --device cpu --small --out gpu.json      # every line of it, without a GPU

Needs torch, torchvision, timm, pydantic, pyyaml and rich, an H100's memory for the sizes that are not --small, and the
project's root on PYTHONPATH or the package installed. Each benchmark is a process of its own with a share of the time;
one that fails, takes too long or is not reached any more is noted, and the exit code is 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import device_name, options, report

from flsl.runtime.outputs import write_json

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """A benchmark.

    Attributes:
        script: its name.
        full: its arguments on a GPU of 80 GB.
        small: its arguments for trying it.
        seconds: how long it may take.
    """

    script: str
    full: str
    small: str
    seconds: int


# what matters most comes first: what the time does not reach is left out
RUNS = {
    "training step, S/16": Run(
        "train_step",
        "--batches 512 --modes default-residual --repeats 5",
        "--recipe tiny --batches 2 --repeats 1 --curve-steps 3 --precision bf16 --modes residual",
        190,
    ),
    "end to end": Run(
        "end_to_end",
        "--batch 512 --steps 5 --repeats 3 --images 40",
        "--encoder vit_tiny_patch16_224 --batch 2 --steps 1 --repeats 1 --workers 1 --images 4 --no-compile",
        160,
    ),
    "training step, S/16, few images": Run(
        "train_step",
        "--batches 64 --modes default-residual reduce-overhead --repeats 5 --curve-steps 0",
        "--recipe tiny --batches 1 --repeats 1 --curve-steps 0",
        190,
    ),
    # so many images that their logits are more than a block, see flsl/pretrain/assignments.py
    "memory": Run("memory", "--recipes S/16 S/8 B/16 --batches 128 256", "--recipes tiny", 90),
    "training step, B/16": Run(
        "train_step",
        "--recipe B/16 --batches 128 --modes default-residual --repeats 5 --curve-steps 0",
        "--recipe tiny --batches 2 --repeats 1 --curve-steps 0 --precision bf16",
        150,
    ),
    "label propagation": Run(
        "propagation", "--patch-sizes 16 8 --frames 5 --encoder", "--patch-sizes 32 --frames 1", 60
    ),
    "k-NN": Run(
        "knn",
        "--bank 1281167 --queries 10000 50000 --repeats 2 --no-whole-bank",
        "--bank 2000 --queries 10 20 --repeats 1",
        45,
    ),
    "k-NN, DINO's loop": Run(
        "knn", "--bank 1281167 --queries 5000 --repeats 2", "--bank 2000 --queries 20 --repeats 1", 30
    ),
    "linear grid": Run(
        "linear_grid",
        "--model vit_small_patch16_224 --batch 256 --repeats 10",
        "--model vit_tiny_patch16_224 --size 32 --batch 2 --classes 10 --repeats 1",
        30,
    ),
}
ALL_SECONDS = 570  # a call of ten minutes, less its own start


def run(task: Run, small: bool, device: str, seconds: float) -> dict[str, Any]:
    """Run a benchmark; return its figures, or why there are none."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(FOLDER / f"{task.script}.py"), "--device", device, "--out", str(out)]
        command += (task.small if small else task.full).split()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {seconds:.0f} s"}
        if done.returncode:
            return {"failed": done.stderr.splitlines()[-8:]}
        figures: dict[str, Any] = json.loads(out.read_text())
    return {**figures, "seconds_in_all": time.perf_counter() - started, "command": " ".join(command[1:])}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes: try the scripts, measure nothing")
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS), metavar="NAME", help=", ".join(RUNS))
    args = parser.parse_args()
    started = time.perf_counter()
    patience = 10 if args.small else 1  # a busy CPU is slow
    figures: dict[str, Any] = {"device": device_name(torch.device(args.device)), "torch": torch.__version__}
    for name in args.only:
        left = patience * ALL_SECONDS - (time.perf_counter() - started)
        seconds = min(patience * RUNS[name].seconds, left)
        found = run(RUNS[name], args.small, args.device, seconds) if seconds > 5 else {"failed": "no time was left"}
        figures[name] = found
        print(
            f"{name}: {'failed' if 'failed' in found else 'done'}, {seconds:.0f} s allowed", file=sys.stderr, flush=True
        )
        if args.out:  # what is measured so far is kept if the call is cut off
            write_json(args.out, figures)
    report(figures, args.out)
    if any("failed" in found for found in figures.values() if isinstance(found, dict)):
        sys.exit(1)


if __name__ == "__main__":
    main()

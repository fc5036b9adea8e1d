"""What the benchmarks share: options, timing in turns, processes of their own, and the figures' way out."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flsl.runtime.outputs import write_json


def options(description: str | None, device: bool = True) -> argparse.ArgumentParser:
    """Return a parser with what every script takes: ``--out``, and ``--device`` where it computes with torch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    if device:
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def report(figures: Mapping[str, Any], out: Path | None) -> None:
    """Print the figures as JSON, and write them where that is asked for."""
    print(json.dumps(figures, indent=2))
    if out:
        write_json(out, dict(figures))


def timed(
    work: Callable[[], object], device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that ``work`` takes, the device's part included."""
    start = clock()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def computing_clock(device: torch.device) -> Callable[[], float]:
    """Return a clock: this process's CPU time where it computes on the CPU, which other processes disturb least."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def measure(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | None = None,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return each candidate's median seconds; they take turns, so that a slow moment of the machine hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, work in candidates.items():
            passed = timed(work, device, clock)
            if turn >= warmup:
                seconds[name].append(passed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_gib(device: torch.device | None = None) -> float:
    """Return the peak memory so far: the device's, or what was resident of this process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_own_process(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script that prints JSON in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found

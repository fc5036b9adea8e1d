"""``system.jsonl``: what a stage takes of its machine while it runs, sampled by a thread of its process."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flsl.runtime.place import is_main_process
from flsl.runtime.progress import warn

SYSTEM = "system.jsonl"
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
_GROWTH = 1.25
_MEGABYTE = 1e6


@contextlib.contextmanager
def sampling(out: Path | str) -> Iterator[None]:
    """Append samples of the machine to ``out/system.jsonl`` while the body runs.

    Often at first, so that a stage of seconds has a curve, and every 30 s in the end, so that one of days has a short
    file. A line holds ``step`` (seconds since the first line), ``time`` and, in MLflow's names where it has one,

    - ``cpu_utilization_percentage``, ``system_memory_usage_megabytes``, ``system_memory_usage_percentage`` of the
      whole machine;
    - ``process_cpu_cores`` and ``process_memory_megabytes`` of this process and those that it started;
    - ``gpu_<n>_utilization_percentage``, ``gpu_<n>_memory_usage_megabytes`` and ``gpu_<n>_power_usage_watts`` of the
      NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves.

    A body that fails leaves a file that the next attempt goes on with; one that ends well ends the file, and running
    the stage again starts anew. Only the first of several processes writes. Nothing here ever fails the stage, and
    nothing is left of one that fails before it has made its folder.
    """
    if not is_main_process():
        yield
        return
    sampler = _start(Path(out) / SYSTEM)
    try:
        yield
    except BaseException:
        if sampler is not None:
            sampler.stop(ended=False)
        raise
    if sampler is not None:
        sampler.stop(ended=True)


def _start(path: Path) -> _Sampler | None:
    try:
        return _Sampler(path)
    except Exception as error:
        warn(f"the machine's load is not recorded: {error}")
        return None


class _Sampler(threading.Thread):
    """Samples until it is stopped."""

    def __init__(self, path: Path) -> None:
        import psutil

        super().__init__(name="machine", daemon=True)
        self._path = path
        self._lines: list[str] = []  # until the stage has made its folder
        self._psutil = psutil
        self._process = psutil.Process()
        self._cpu_seconds: dict[int, float] = {}
        self._read_at = time.monotonic()
        self._gpus = _Gpus()
        self._over = threading.Event()
        self._last: dict[str, Any] = {}
        self._begun = _first_time(path)
        self._processor()
        self.start()

    def run(self) -> None:
        """Write a line now and then; the first after a moment, since a load is a mean over time."""
        # psutil tells the machine's load since the same thread's last question
        self._psutil.cpu_percent()
        wait = _FIRST_WAIT
        while not self._over.wait(wait):
            if not self._write():
                return
            wait = min(_GROWTH * wait, _LONGEST_WAIT)
        self._write(self._last)
        self._gpus.close()

    def stop(self, ended: bool) -> None:
        """Write a last line, which says whether the stage is done."""
        self._last = {"ended": True} if ended else {}
        self._over.set()
        self.join(timeout=5.0)

    def _write(self, more: dict[str, Any] | None = None) -> bool:
        try:
            now = time.time()
            self._begun = self._begun or now
            stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
            line = {"kind": "system", "step": round(now - self._begun), "time": stamp, **self._sample(), **(more or {})}
            self._lines.append(json.dumps(line) + "\n")
            if self._path.parent.is_dir():
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.writelines(self._lines)
                self._lines.clear()
        except Exception as error:
            warn(f"the machine's load is not recorded any more: {error}")
            return False
        return True

    def _sample(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": round((memory.total - memory.available) / _MEGABYTE, 1),
            "system_memory_usage_percentage": memory.percent,
            **self._processor(),
            **self._gpus.sample(),
        }

    def _processor(self) -> dict[str, float]:
        """Return the mean number of cores in use since the last call, and the memory, of this process and its own."""
        passed = time.monotonic() - self._read_at
        seconds: dict[int, float] = {}
        memory = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(self._psutil.Error), process.oneshot():
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                memory += process.memory_info().rss
        used = sum(now - self._cpu_seconds.get(pid, 0.0) for pid, now in seconds.items())
        self._cpu_seconds, self._read_at = seconds, time.monotonic()
        cores = round(used / passed, 3) if passed > 0 else 0.0
        return {"process_cpu_cores": cores, "process_memory_megabytes": round(memory / _MEGABYTE, 1)}


class _Gpus:
    """NVIDIA's GPUs by NVML; none where there is no driver."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        with contextlib.suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
            self._handles = _visible(self._handles, os.environ.get("CUDA_VISIBLE_DEVICES"))

    def sample(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for place, handle in enumerate(self._handles):
            # not every GPU tells everything (parts of one tell no utilisation)
            with contextlib.suppress(self._nvml.NVMLError):
                used = self._nvml.nvmlDeviceGetMemoryInfo(handle).used
                figures[f"gpu_{place}_memory_usage_megabytes"] = round(used / _MEGABYTE, 1)
            with contextlib.suppress(self._nvml.NVMLError):
                rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)
                figures[f"gpu_{place}_utilization_percentage"] = float(rates.gpu)
            with contextlib.suppress(self._nvml.NVMLError):
                figures[f"gpu_{place}_power_usage_watts"] = self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        return figures

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()


def _visible(handles: list[Any], named: str | None) -> list[Any]:
    """Return those of a machine's GPUs that CUDA uses; all where they are not named by number."""
    if named is None:
        return handles
    numbers = [int(name) for name in named.split(",") if name.strip().isdecimal()]
    if named.strip() and not numbers and named.strip() != "-1":
        return handles  # named by UUID
    return [handles[number] for number in numbers if number < len(handles)]


def _first_time(path: Path) -> float | None:
    """Return when the attempts that ``path`` goes on with began; a file that is not gone on with is removed."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        begun = datetime.fromisoformat(lines[0]["time"]).timestamp()
        if not any("ended" in line for line in lines):
            return begun
    except (OSError, ValueError, LookupError, TypeError):
        pass
    path.unlink(missing_ok=True)
    return None

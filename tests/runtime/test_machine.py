"""A stage's load on its machine is recorded, and never in its way."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flsl.runtime import machine
from flsl.runtime.environment import machine as facts
from flsl.runtime.machine import SYSTEM, sampling
from flsl.track.names import curve_name

WHOLE = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"}
OWN = {"process_cpu_cores", "process_memory_megabytes"}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_FIRST_WAIT", 0.05)
    monkeypatch.setattr(machine, "_LONGEST_WAIT", 0.1)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SYSTEM).read_text().splitlines()]


def test_a_stage_that_computes_uses_a_core(tmp_path: Path) -> None:
    with sampling(tmp_path):
        ballast = bytearray(200_000_000)
        computed, began = time.process_time(), time.monotonic()
        # a busy machine gives little of a core, and the sampling thread a late turn
        while not (tmp_path / SYSTEM).exists() or len(lines(tmp_path)) < 3:
            assert time.monotonic() - began < 100
            # longer than the 5 ms after which a thread asks for Python's lock: looking for the file lets go of it too
            # briefly for another one to take it, and has that one wait anew
            sum(range(2_000_000))
        cores = (time.process_time() - computed) / (time.monotonic() - began)
    found = lines(tmp_path)
    assert all({"step", "time"} | WHOLE | OWN <= line.keys() for line in found)
    assert max(line["process_cpu_cores"] for line in found) > cores / 2
    assert max(line["process_memory_megabytes"] for line in found) > len(ballast) / 1e6
    assert [line.get("ended", False) for line in found] == [False] * (len(found) - 1) + [True]


def test_nothing_is_left_of_a_stage_that_fails_before_it_makes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = threading.Event()
    sample = machine._Sampler._sample

    def and_tell(sampler: machine._Sampler) -> dict[str, float]:
        sampled.set()
        return sample(sampler)

    monkeypatch.setattr(machine._Sampler, "_sample", and_tell)
    folder = tmp_path / "stage"
    with pytest.raises(KeyError), sampling(folder):
        assert sampled.wait(100)
        raise KeyError
    assert not folder.exists()
    sampled.clear()
    with sampling(folder):
        assert sampled.wait(100)
        folder.mkdir()
    assert len(lines(folder)) >= 2  # those from before are in it


def test_names_are_mlflows() -> None:
    for name in (*WHOLE, *OWN, "gpu_0_utilization_percentage"):
        assert curve_name("system", name) == f"system/{name}"


def test_an_attempt_that_failed_is_gone_on_with_and_one_that_ended_is_not(tmp_path: Path) -> None:
    with pytest.raises(KeyError), sampling(tmp_path):
        raise KeyError
    first = lines(tmp_path)
    with sampling(tmp_path):
        pass
    second = lines(tmp_path)
    assert second[: len(first)] == first
    assert second[-1]["ended"]
    with sampling(tmp_path):
        pass
    assert len(lines(tmp_path)) < len(second)


@pytest.mark.parametrize(
    "variables", [{"RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}]
)
def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert facts()["world_size"] == 2
    with sampling(tmp_path):
        pass
    assert not (tmp_path / SYSTEM).exists()


def test_what_cannot_be_recorded_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with sampling(tmp_path / "file"):
        pass
    assert "the machine's load is not recorded" in capsys.readouterr().err


def test_gpus_are_those_that_cuda_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoFigureError(Exception):
        pass

    def power(handle: int) -> int:
        if handle == 3:
            raise NoFigureError
        return 250_000 + handle

    nvml = SimpleNamespace(
        NVMLError=NoFigureError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 4,
        nvmlDeviceGetHandleByIndex=lambda place: place,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=handle * 1_000_000_000),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=10 * handle),
        nvmlDeviceGetPowerUsage=power,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with sampling(tmp_path):
        pass
    line = lines(tmp_path)[-1]
    assert {name: value for name, value in line.items() if name.startswith("gpu_")} == {
        "gpu_0_memory_usage_megabytes": 2000.0,
        "gpu_0_utilization_percentage": 20.0,
        "gpu_0_power_usage_watts": 250.002,
        "gpu_1_memory_usage_megabytes": 3000.0,
        "gpu_1_utilization_percentage": 30.0,
    }

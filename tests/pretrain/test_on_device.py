"""The next batch is on its way to a GPU before the present one is computed on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from flsl.pretrain.loader import on_device


class Fake:
    """A batch of one tensor, which notes what is done with it."""

    def __init__(self, number: int, log: list[str]) -> None:
        self.number, self._log, self.record_stream = number, log, lambda stream: log.append(f"hold {number}")

    def pin_memory(self) -> Fake:
        return self

    def to(self, device: torch.device) -> Fake:
        self._log.append(f"send {self.number}")
        return self

    def each(self, change: Callable[[Any], Any]) -> Fake:
        found: Fake = change(self)
        return found


class Stream:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def record_event(self) -> str:
        return "sent"

    def wait_event(self, event: str) -> None:
        self._log.append("wait")


def loaded(count: int, log: list[str]) -> Iterator[Any]:
    for number in range(count):
        log.append(f"load {number}")
        yield Fake(number, log)


def test_a_gpu_gets_every_batch_once_in_order_and_one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    for batch in on_device(loaded(3, log), torch.device("cuda")):
        log.append(f"compute {batch.number}")  # type: ignore[attr-defined]
    one = ["wait", "hold 0", "compute 0", "load 2", "send 2", "wait", "hold 1", "compute 1"]
    assert log == ["load 0", "send 0", "load 1", "send 1", *one, "wait", "hold 2", "compute 2"]
    assert list(on_device(loaded(0, log), torch.device("cuda"))) == []


def test_on_a_cpu_nothing_is_loaded_ahead() -> None:
    log: list[str] = []
    batches = on_device(loaded(2, log), torch.device("cpu"))
    next(batches)
    assert log == ["load 0"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_gpu_computes_on_is_what_was_loaded() -> None:
    from test_step import CPU, SETTINGS, batch_of

    from flsl.config.compute import ComputeSettings
    from flsl.pretrain.step import TrainingStep

    step = TrainingStep(SETTINGS, ComputeSettings(), CPU)
    batches = [batch_of(step, number)[0] for number in range(20)]
    for wanted, found in zip(batches, on_device(iter(batches), torch.device("cuda")), strict=True):
        torch.cuda._sleep(10**6)
        assert torch.equal(found.crops.cpu(), wanted.crops)

"""Does training from JPEG files keep up with the same step on data that lies on the device already?

Compares, in turns on one device, images a second of
- ready: ``flsl.pretrain.step`` again and again on one batch that the device holds;
- files: the same with ``flsl.pretrain.loader``'s workers reading, decoding and cropping files meanwhile, as
  ``flsl pretrain`` does (the goal: at least 90 %);
- trainer: ``flsl pretrain`` itself, its curves, health figures and checkpoints included, run once.

Then how long the device waited for data, and the wall time of the paper's 300 epochs on 8 such devices, with its
arithmetic. On a CPU, where the workers share the cores with the step, a small encoder stands in for ViT-S/16.

    python benchmarks/end_to_end.py --out results/bench/end_to_end.json                     ViT-S/16 on a GPU
    python benchmarks/end_to_end.py --device cpu --encoder vit_tiny_patch16_224 --batch 8
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import device_name, measure, options, report
from photographs import photographs
from torch import Tensor

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import PretrainSettings
from flsl.data.images import ImageSet
from flsl.data.order import Order
from flsl.data.views import Batch
from flsl.pretrain.loader import build_loader, on_device
from flsl.pretrain.schedules import values_at
from flsl.pretrain.step import TrainingStep
from flsl.pretrain.trainer import Job, pretrain
from flsl.runtime.distributed import Process

_IMAGENET, _EPOCHS, _GPUS, _EFFICIENCY = 1_281_167, 300, 8, 0.95


class Repeated:
    """A set of images that seems larger than it is, so that an epoch holds many steps."""

    def __init__(self, images: ImageSet, count: int) -> None:
        self._images, self._count = images, count

    def __len__(self) -> int:
        return self._count

    def pixels(self, index: int) -> Tensor:
        return self._images.pixels(index % len(self._images))


class Loop:
    """Steps of training, from files or from a batch on the device."""

    def __init__(self, step: TrainingStep, settings: PretrainSettings, batches: Iterator[Batch], ready: Batch) -> None:
        self.step, self.settings, self.batches, self.ready = step, settings, batches, ready
        self.number, self.waited, self.waits = 0, 0.0, 0

    def from_files(self, steps: int) -> None:
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(self.batches)
            self.waited += time.perf_counter() - start
            self.waits += 1
            self._train(batch)

    def from_device(self, steps: int) -> None:
        for _ in range(steps):
            self._train(self.ready)

    def _train(self, batch: Batch) -> None:
        values = values_at(self.number, self.settings, 1000)
        self.step.accumulate(batch, values, self.number)
        self.step.update(values)
        self.number += 1


def trained(settings: PretrainSettings, compute: ComputeSettings, images: Repeated, steps: int) -> float:
    """Return the images a second of ``flsl pretrain``: the median over its lines of so many steps each."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            settings=settings.model_copy(update={"epochs": 1, "online_knn_every": 0}),
            compute=compute.model_copy(update={"log_every": steps}),
            seed=0,
            data="photographs",
            out=Path(folder),
            run="benchmark",
            inputs=[],
        )
        return pretrain(job, images)["pretrain/images_per_second"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--encoder", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--images", type=int, default=110, help="made photographs, where FLSL_REAL_DATA is not set")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("results/benchmarks/photographs"))
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    settings = PretrainSettings.model_validate({"encoder": {"name": args.encoder}, "batch_size": args.batch})
    compute = ComputeSettings(device=args.device, workers=args.workers, compile=on_gpu and not args.no_compile)
    if on_gpu:
        torch.set_float32_matmul_precision("high")

    found = photographs(args.folder, args.images)
    # as many steps as all turns take, and those that the workers have read ahead
    turns = (1 + args.repeats) * args.steps
    step = TrainingStep(settings, compute, device)
    process = Process(0, 0, 1, device)
    order = Order(args.batch * 2 * turns, args.batch, 1, 1, 0, process)
    loader = build_loader(Repeated(found, args.batch * 2 * turns), step.views, 0, order, args.workers, device)
    batches = on_device((step.views.batch(*loaded) for loaded in loader), device)
    ready = next(batches)
    loop = Loop(step, settings, batches, ready)
    seconds = measure(
        {"files": lambda: loop.from_files(args.steps), "ready": lambda: loop.from_device(args.steps)},
        args.repeats,
        device,
    )
    del batches, loop.batches  # its workers end
    rates = {name: args.batch * args.steps / value for name, value in seconds.items()}
    rates["trainer"] = trained(settings, compute, Repeated(found, args.batch * args.steps * 5), args.steps)
    figures: dict[str, Any] = {
        "encoder": args.encoder,
        "batch": args.batch,
        "workers": args.workers,
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "files_over_ready": round(rates["files"] / rates["ready"], 3),
        "trainer_over_ready": round(rates["trainer"] / rates["ready"], 3),
        "waited_for_data_ms_a_step": round(1000 * loop.waited / loop.waits, 2),
        "step_ms": round(1000 * seconds["files"] / args.steps, 1),
        "device": device_name(device),
    }
    if on_gpu:
        rate = rates["trainer"]
        hours = _EPOCHS * _IMAGENET / (_GPUS * _EFFICIENCY * rate) / 3600
        figures["paper"] = {
            "hours": round(hours, 1),
            "arithmetic": f"{_EPOCHS} x {_IMAGENET:,} images / ({_GPUS} GPUs x {_EFFICIENCY} x {rate:.0f}/s)",
            "authors_hours": 84,
        }
    report(figures, args.out)


if __name__ == "__main__":
    main()

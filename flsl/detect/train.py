"""Fine-tuning with torchvision's Mask R-CNN, from a backbone and COCO files to ``model.pth``: reads top to bottom."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flsl.config.compute import ComputeSettings
from flsl.config.detect import DetectionSettings, RecipeSettings
from flsl.detect.coco_eval import evaluate
from flsl.detect.coco_files import Annotations, Record
from flsl.detect.dataset import Order, TrainingImages, TrainingSet, loader
from flsl.detect.model_file import ModelFile, save_model
from flsl.detect.optimiser import learning_rate, parameter_groups, set_rate
from flsl.detect.predict import merge, predict
from flsl.detect.rcnn import LOSSES, Detector
from flsl.model.backbone import Backbone
from flsl.runtime import checkpoint, distributed
from flsl.runtime.errors import UserError
from flsl.runtime.history import History
from flsl.runtime.interrupt import Stopped, StopRequest
from flsl.runtime.outputs import sha256_json
from flsl.runtime.progress import bar, say


@dataclass(frozen=True)
class Task:
    """What one fine-tuning is given.

    Attributes:
        stage: ``coco`` or ``uavdt``.
        settings: engine and detector.
        recipe: training and prediction.
        compute: speed and intervals; changing these does not change the result.
        seed: of weights, order and augmentation.
        train: what is trained on.
        val: what is validated and predicted on.
        val_images: folder of its images.
        masks: whether masks are trained.
        out: the stage's folder.
        backbone: digest of where the encoder comes from; a checkpoint made from another one is not resumed.
    """

    stage: str
    settings: DetectionSettings
    recipe: RecipeSettings
    compute: ComputeSettings
    seed: int
    train: TrainingSet
    val: Annotations
    val_images: Path
    masks: bool
    out: Path
    backbone: str

    @property
    def identity(self) -> dict[str, Any]:
        """All that the weights depend on."""
        return {
            "engine": self.settings.engine,
            "model": self.settings.model.plain(),
            "recipe": {k: v for k, v in self.recipe.plain().items() if k not in _NOT_TRAINING},
            "seed": self.seed,
            "data": self.train.digest,
            "backbone": self.backbone,
        }


_NOT_TRAINING = ("evaluate_every", "images_shown", "test_batch_size", "test_short_side")


def train(task: Task, backbone: Backbone) -> list[Record] | None:
    """Train, or go on where a checkpoint stands; write ``history.jsonl`` and ``model.pth``; return the predictions.

    Returns:
        COCO results on ``task.val``; None on other ranks than the first, which writes the files.

    Raises:
        UserError: for settings that do not fit, a loss that is not finite, or an image that cannot be read.
        Stopped: when a signal ended the training after it was saved.
    """
    recipe, compute = task.recipe, task.compute
    process = distributed.start(compute.device)
    device = process.device
    if compute.threads:
        torch.set_num_threads(compute.threads)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")

    torch.manual_seed(task.seed)
    detector = Detector(backbone, len(task.val.categories), task.settings.model, task.masks).to(device)
    detector.bf16 = recipe.precision == "bf16"
    averaged = copy.deepcopy(detector).requires_grad_(False).eval() if recipe.ema else None
    # rates are set before every step, by schedule
    optimiser = torch.optim.AdamW(parameter_groups(detector, recipe, backbone.depth), lr=0.0, fused=True)
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    names = [name for name in LOSSES.values() if task.masks or name != "mask"]
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)

    # where to go on
    start, window_step = _resume(task, process, detector, averaged, optimiser, sums)
    history = History(task.out / "history.jsonl", start) if process.is_main else None
    order = Order(len(task.train.images), recipe, task.seed, process.rank, process.world_size, start)
    batches = iter(loader(TrainingImages(task.train, recipe, task.seed), compute.workers, batch_sampler=order))
    model: nn.Module = detector
    if process.world_size > 1:
        model = DistributedDataParallel(detector, gradient_as_bucket_view=True)

    def save(step: int) -> None:
        _finite(sums, names, step)
        if history is not None:
            history.sync()
            state = {
                "step": step,
                "identity": task.identity,
                "detector": detector.state_dict(),
                "averaged": averaged.state_dict() if averaged is not None else None,
                "optimiser": optimiser.state_dict(),
                "sums": sums,
                "sums_since": window_step,
            }
            checkpoint.save_step(task.out / "checkpoints", step, state, compute.checkpoints_kept)

    evaluated = averaged if averaged is not None else detector
    detector.train()
    with StopRequest() as stop, bar("fine-tuning (steps)", order.steps, start, enabled=process.is_main) as shown:
        window_start, timed_from, last_save = time.perf_counter(), start, time.perf_counter()
        for step in range(start, order.steps):
            rate = learning_rate(step, order.steps_per_epoch, recipe)
            set_rate(optimiser, rate)
            for micro in range(recipe.accumulate):
                samples = next(batches)
                # proposals and stochastic depth are drawn from (seed, step): a resumed run draws the same ones
                torch.manual_seed(_seed(task.seed, step, micro, process.rank))
                last = micro == recipe.accumulate - 1
                unsynchronised = isinstance(model, DistributedDataParallel) and not last
                with model.no_sync() if unsynchronised else contextlib.nullcontext():  # type: ignore[operator]
                    losses: dict[str, Tensor] = model(
                        [sample.image for sample in samples], [sample.target for sample in samples]
                    )
                    (sum(losses.values()) / recipe.accumulate).backward()  # type: ignore[union-attr]
                sums += torch.stack([losses[name].detach() for name in names]).double() / recipe.accumulate
            if recipe.clip:
                nn.utils.clip_grad_norm_(trained, recipe.clip)
            optimiser.step()
            optimiser.zero_grad()
            if averaged is not None:
                _average(averaged, detector, recipe.ema)

            done = step + 1
            note = None
            if done % compute.log_every == 0 or done == order.steps:
                means = distributed.mean_over_ranks(sums / (done - window_step))
                _finite(means, names, done)
                speed = recipe.batch_size * (done - timed_from) / (time.perf_counter() - window_start)
                window_start, timed_from, window_step = time.perf_counter(), done, done
                sums.zero_()
                line = {
                    "kind": "step",
                    "step": done,
                    "epoch": round(done / order.steps_per_epoch, 4),
                    "loss": float(means.sum()),
                    **{f"loss_{name}": value for name, value in zip(names, means.tolist(), strict=True)},
                    "learning_rate": rate,
                    "images_per_second": round(speed, 2),
                }
                _write(history, line)
                note = f"loss {line['loss']:.3f} lr {rate:.2e} {speed:.1f} images/s"
            epoch_ends = done % order.steps_per_epoch == 0
            if epoch_ends and done < order.steps and _validation_due(recipe, done // order.steps_per_epoch):
                found = _predict(task, evaluated, process)
                if history is not None:
                    epoch = done // order.steps_per_epoch
                    _write(history, {"kind": "epoch", "step": done, "epoch": epoch, **validation(task, found)})
                detector.train()
            signum = stop.agreed()
            due = time.perf_counter() - last_save >= 60 * compute.checkpoint_minutes
            due = due or bool(compute.checkpoint_steps and done % compute.checkpoint_steps == 0)
            if due or epoch_ends or signum:
                save(done)
                last_save = time.perf_counter()
            shown.advance(1, note)
            if signum and done < order.steps:
                distributed.finish()
                raise Stopped(f"stopped by signal {signum} after step {done} of {order.steps}; it was saved", signum)

    results = _predict(task, evaluated, process)
    if history is not None:
        _write(history, {"kind": "epoch", "step": order.steps, "epoch": recipe.epochs, **validation(task, results)})
        file = ModelFile(
            "torchvision", task.settings.model, recipe, task.masks, task.val.categories, tuple(backbone.mean),
            tuple(backbone.std), evaluated.state_dict(),
        )  # fmt: skip
        save_model(task.out / "model.pth", file, backbone)
    distributed.finish()
    return results if process.is_main else None


def validation(task: Task, results: list[Record]) -> dict[str, float]:
    """Return the figures of a validation for the history: AP and AP50 of boxes and masks."""
    figures: dict[str, float] = {}
    kinds: tuple[Any, ...] = ("bbox", "segm") if task.masks else ("bbox",)
    for kind in kinds:
        stats = evaluate(task.val, results, kind, task.out / "detections.json").stats
        figures |= {
            f"val/{kind}/{name}": float(100 * v) for name, v in zip(("AP", "AP50"), stats, strict=False) if v >= 0
        }
    return figures


def _predict(task: Task, detector: Detector, process: distributed.Process) -> list[Record]:
    detector.eval()
    shard = (process.rank, process.world_size)
    found = predict(detector, task.val, task.val_images, task.recipe, task.compute.workers, shard, show=process.is_main)
    if process.world_size == 1:
        return found
    parts: list[Any] = [None] * process.world_size
    dist.all_gather_object(parts, found)
    return merge(parts, task.val) if process.is_main else []


def _resume(
    task: Task,
    process: distributed.Process,
    detector: Detector,
    averaged: Detector | None,
    optimiser: torch.optim.Optimizer,
    sums: Tensor,
) -> tuple[int, int]:
    """Load the newest checkpoint of the same task; return its step and that from which losses are summed, or 0, 0."""
    found = checkpoint.load_newest(task.out / "checkpoints")
    if found is None:
        return 0, 0
    path, state = found
    distributed.barrier()
    if sha256_json(state.get("identity")) != sha256_json(task.identity):
        if process.is_main:
            names = ("checkpoints", "history.jsonl", "model.pth", "detections.json", "metrics.json")
            kept = checkpoint.set_aside(task.out, names, f"superseded-{sha256_json(state.get('identity'))[:8]}")
            say(f"settings or data differ from those of {path.name}: starting anew; the old files are in {kept}")
        return 0, 0
    detector.load_state_dict(state["detector"])
    if averaged is not None:
        averaged.load_state_dict(state["averaged"])
    optimiser.load_state_dict(state["optimiser"])
    sums.copy_(state["sums"])
    if process.is_main:
        say(f"going on after step {state['step']} from {path}")
    return int(state["step"]), int(state["sums_since"])


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, momentum: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - momentum)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _finite(values: Tensor, names: list[str], step: int) -> None:
    for name, value in zip(names, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise UserError(
                f"loss_{name}: is {value} at or before step {step}; lower the learning_rate, lengthen warmup_steps, "
                "or set precision=float32"
            )


def _validation_due(recipe: RecipeSettings, epoch: int) -> bool:
    return bool(recipe.evaluate_every) and epoch % recipe.evaluate_every == 0


def _write(history: History | None, line: dict[str, Any]) -> None:
    if history is not None:
        history.write({**line, "time": datetime.now(UTC).isoformat(timespec="milliseconds")})

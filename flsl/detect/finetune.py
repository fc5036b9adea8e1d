"""What fine-tuning a detector is, whichever engine builds it and runs its loop: data, steps, history, checkpoints."""

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
from flsl.config.detect import DetectionSettings, DetectorSettings, RecipeSettings
from flsl.data.order import Order
from flsl.detect.coco_eval import evaluate
from flsl.detect.coco_files import Annotations, Record
from flsl.detect.dataset import TrainingImages, TrainingSet, loader
from flsl.detect.model_file import ModelFile, save_model
from flsl.detect.optimiser import learning_rate, parameter_groups, set_rate
from flsl.detect.predict import merge, predict
from flsl.model.backbone import Backbone
from flsl.runtime import checkpoint, distributed
from flsl.runtime.errors import Stopped, UserError
from flsl.runtime.history import History
from flsl.runtime.outputs import StageRecord
from flsl.runtime.pace import Pace
from flsl.runtime.training import all_finite, resume


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
        content: digests of the images' content, as far as it is known.
        val: what is validated and predicted on.
        val_images: folder of its images.
        masks: whether masks are trained.
        out: the stage's folder.
        backbone: digest of where the encoder comes from; a checkpoint made from another one is not resumed.
        record: what the stage knows of itself; earlier attempts count in its times.
    """

    stage: str
    settings: DetectionSettings
    recipe: RecipeSettings
    compute: ComputeSettings
    seed: int
    train: TrainingSet
    content: list[str]
    val: Annotations
    val_images: Path
    masks: bool
    out: Path
    backbone: str
    record: StageRecord

    @property
    def identity(self) -> dict[str, Any]:
        """All that the weights depend on."""
        return {
            "engine": self.settings.engine,
            # whatever they are: checkpoints with their defaults, as most have them, keep their identity
            "model": self.settings.model.plain() | {name: _DEFAULTS[name] for name in _NOT_WEIGHTS},
            "recipe": {k: v for k, v in self.recipe.plain().items() if k not in _NOT_TRAINING},
            "seed": self.seed,
            "data": [self.train.digest, *self.content],
            "backbone": self.backbone,
        }


LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_regression", "mask")
"""Names of the losses, equal for both engines."""
CALMER = "lower the learning_rate, lengthen warmup_steps, or set precision=float32"
"""What may help where a training diverges."""
_WRITTEN = ("history.jsonl", "model.pth", "detections.json", "metrics.json")
_NOT_WEIGHTS = ("activation_checkpointing", "proposals_test", "detections", "score_threshold")
_DEFAULTS = DetectorSettings().plain()
_NOT_TRAINING = ("evaluate_every", "images_shown", "test_batch_size", "test_short_side")


class FineTuning:
    """One fine-tuning: what an engine's loop calls before, at and after each step.

    Attributes:
        start, steps: the first step that is to be made, and the number of steps in all.
        process: this rank.
        detector: maps images and targets to losses by our names, and in evaluation images to detections.
    """

    def __init__(self, task: Task, detector: nn.Module, backbone: Backbone, process: distributed.Process) -> None:
        """Put the detector on the rank's device and go on where a checkpoint stands.

        Raises:
            UserError: for settings that do not fit the data, or a checkpoint that cannot be read.
        """
        recipe = task.recipe
        self._task, self._backbone, self.process, self._recipe = task, backbone, process, recipe
        self.detector = detector.to(process.device)
        self._averaged = copy.deepcopy(detector).requires_grad_(False).eval() if recipe.ema else None
        # rates are set before every step, by schedule
        self._optimiser = torch.optim.AdamW(parameter_groups(detector, recipe, backbone.depth), lr=0.0, fused=True)
        self._trained = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        self._names = [name for name in LOSSES if task.masks or name != "mask"]
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=process.device)
        # before anything is moved: a batch that does not fit is refused here
        shape, setting = (recipe.batch_size, recipe.accumulate, recipe.epochs), f"detection.{task.stage}.batch_size"
        order = Order(len(task.train.images), *shape, task.seed, process, setting)
        self.start, self._sums_since = self._resume()
        order.go_on(self.start)
        self._history = History(task.out / "history.jsonl", self.start) if process.is_main else None
        images = TrainingImages(task.train, recipe, task.seed)
        self.steps, self._steps_per_epoch = order.steps, order.steps_per_epoch
        self._batches = iter(loader(images, task.compute.workers, process.device, batch_sampler=order))
        self._model: nn.Module = detector
        if process.world_size > 1:
            self._model = DistributedDataParallel(detector, gradient_as_bucket_view=True)
        self._timed_from, self._timer, self._pace = self.start, time.perf_counter(), Pace(task.compute)
        self._note: str | None = None
        detector.train()

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are evaluated and kept: the averaged ones, where there are any."""
        return self._averaged if self._averaged is not None else self.detector

    def step(self, step: int) -> None:
        """Make one step: every micro-batch's gradient, the optimiser, the average."""
        recipe = self._recipe
        self._rate = learning_rate(step, self._steps_per_epoch, recipe)
        set_rate(self._optimiser, self._rate)
        for micro in range(recipe.accumulate):
            samples = next(self._batches)
            # proposals and stochastic depth are drawn from (seed, step, place in the step): a resumed run draws the
            # same ones, and so do two processes where one takes two micro-batches
            torch.manual_seed(_seed(self._task.seed, step, micro * self.process.world_size + self.process.rank))
            last = micro == recipe.accumulate - 1
            unsynchronised = isinstance(self._model, DistributedDataParallel) and not last
            with self._model.no_sync() if unsynchronised else contextlib.nullcontext():  # type: ignore[operator]
                losses: dict[str, Tensor] = self._model(
                    [sample.image for sample in samples], [sample.target for sample in samples]
                )
                (sum(losses.values()) / recipe.accumulate).backward()  # type: ignore[union-attr]
            self._sums += torch.stack([losses[name].detach() for name in self._names]).double() / recipe.accumulate
        if recipe.clip:
            nn.utils.clip_grad_norm_(self._trained, recipe.clip)
        self._optimiser.step()
        self._optimiser.zero_grad()
        if self._averaged is not None:
            _average(self._averaged, self.detector, recipe.ema)

    def after(self, done: int, signum: int) -> str | None:
        """Do what is due after ``done`` steps: write the history, validate, save; return a note for people.

        Raises:
            UserError: when a loss is not finite.
            Stopped: when ``signum`` asks to stop before the end; the state was saved.
        """
        compute, epoch = self._task.compute, done // self._steps_per_epoch
        if done % compute.log_every == 0 or done == self.steps:
            self._log(done)
        epoch_ends = done % self._steps_per_epoch == 0
        every = self._recipe.evaluate_every
        if epoch_ends and done < self.steps and every and epoch % every == 0:
            self._validate(done, epoch, self.predict())
            self.detector.train()
        if self._pace.due(done, epoch_ends) or signum or done == self.steps:
            with self._pace.saving():
                self._save(done)
        if signum and done < self.steps:
            distributed.finish()
            raise Stopped(f"stopped by signal {signum} after step {done} of {self.steps}; it was saved", signum)
        return self._note

    def finish(self) -> list[Record] | None:
        """Predict on the validation images and write ``model.pth``; return the results, None but on the first rank."""
        task, results = self._task, self.predict()
        if results is not None:
            file = ModelFile(
                task.settings.engine, task.settings.model, self._recipe, task.masks, task.val.categories,
                tuple(self._backbone.mean), tuple(self._backbone.std), self.evaluated.state_dict(),
            )  # fmt: skip
            save_model(task.out / "model.pth", file, self._backbone)
            self._validate(self.steps, self._recipe.epochs, results)
        distributed.finish()
        return results

    def predict(self) -> list[Record] | None:
        """Return the results on the validation images, all ranks' together; None but on the first rank."""
        task, process, model = self._task, self.process, self.evaluated.eval()
        found = predict(model, task.val, task.val_images, self._recipe, task.compute.workers, process)
        if process.world_size == 1:
            return found
        # to the first rank alone: all the detections, with masks, take a gigabyte
        parts: list[Any] | None = [None] * process.world_size if process.is_main else None
        dist.gather_object(found, parts, dst=0)
        return None if parts is None else merge(parts, task.val)

    def _validate(self, step: int, epoch: int, results: list[Record] | None) -> None:
        """Write a validation's figures; the first rank has all ranks' results."""
        if results is not None:
            self._write({"kind": "epoch", "step": step, "epoch": epoch, **validation(self._task, results)})

    def _log(self, done: int) -> None:
        means = distributed.sum_over_ranks(self._sums) / (self.process.world_size * (done - self._sums_since))
        _finite(means, self._names, done)
        speed = self._recipe.batch_size * (done - self._timed_from) / (time.perf_counter() - self._timer)
        self._timer, self._timed_from, self._sums_since = time.perf_counter(), done, done
        self._sums.zero_()
        parts = {f"loss_{name}": value for name, value in zip(self._names, means.tolist(), strict=True)}
        loss = float(means.sum())
        line = {"kind": "step", "step": done, "epoch": round(done / self._steps_per_epoch, 4), "loss": loss, **parts}
        self._write({**line, "learning_rate": self._rate, "images_per_second": round(speed, 2)})
        self._note = f"loss {loss:.3f} lr {self._rate:.2e} {speed:.1f} images/s"

    def _write(self, line: dict[str, Any]) -> None:
        if self._history is not None:
            self._history.write({**line, "time": datetime.now(UTC).isoformat(timespec="milliseconds")})

    def _save(self, step: int) -> None:
        # all ranks see the same, and end together
        sums = distributed.sum_over_ranks(self._sums)
        _finite(sums, self._names, step)
        # a gradient may be infinite where the losses are not
        if not all_finite(self._trained):
            raise UserError(f"the weights after step {step} are not finite; {CALMER}")
        if self._history is None:
            return
        self._history.sync()
        state = {
            "step": step,
            "identity": self._task.identity,
            "detector": self.detector.state_dict(),
            "averaged": self._averaged.state_dict() if self._averaged is not None else None,
            "optimiser": self._optimiser.state_dict(),
            "sums": sums,
            "sums_since": self._sums_since,
            "made": self._task.record.made(),
        }
        checkpoint.save_step(self._task.out / "checkpoints", step, state, self._task.compute.checkpoints_kept)

    def _resume(self) -> tuple[int, int]:
        """Load the newest checkpoint of the same task; return its step and that from which losses are summed."""
        found = resume(self._task.out, ("identity", self._task.identity), _WRITTEN, self.process)
        if found is None:
            return 0, 0
        _, state = found
        if "made" in state:  # which older versions did not keep
            self._task.record.go_on(state["made"])
        self.detector.load_state_dict(state["detector"])
        if self._averaged is not None:
            self._averaged.load_state_dict(state["averaged"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self.process.is_main:
            # of all ranks
            self._sums.copy_(state["sums"])
        return int(state["step"]), int(state["sums_since"])


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


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, momentum: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - momentum)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _finite(values: Tensor, names: list[str], step: int) -> None:
    for name, value in zip(names, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise UserError(f"loss_{name}: is {value} at or before step {step}; {CALMER}")

"""FLSL pretraining, from settings and images to a backbone: reads top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import PretrainSettings
from flsl.data.order import Order
from flsl.model.backbone import save_backbone, timm_metadata
from flsl.model.vit import timm_arguments
from flsl.pretrain.loader import Images, build_loader, on_device
from flsl.pretrain.online_knn import OnlineKnn
from flsl.pretrain.recipe import recipe_of
from flsl.pretrain.schedules import values_at
from flsl.pretrain.step import LOSSES, TrainingStep
from flsl.runtime import checkpoint, distributed
from flsl.runtime.compiler import require_compiler
from flsl.runtime.environment import write_lock
from flsl.runtime.errors import Stopped
from flsl.runtime.history import History, read_history
from flsl.runtime.interrupt import StopRequest
from flsl.runtime.outputs import StageRecord, sha256_file
from flsl.runtime.pace import Pace
from flsl.runtime.progress import bar
from flsl.runtime.training import begin, resume

_WRITTEN = ("epochs", "history.jsonl", "checkpoint.pth", "backbone.safetensors", "metrics.json")


@dataclass(frozen=True)
class Job:
    """What one pretraining is given.

    Attributes:
        settings: the recipe.
        compute: speed and intervals; changing these does not change the result.
        seed: of weights, order and views.
        data: digest of the training images' content; a checkpoint made on others is not resumed.
        out: the stage's folder.
        run: the run's name.
        inputs: files to name in the provenance.
        online_knn: the labelled images of the check, where there are any.
        previous: the encoder of an earlier run, where this one is a later stage of it.
    """

    settings: PretrainSettings
    compute: ComputeSettings
    seed: int
    data: str
    out: Path
    run: str
    inputs: list[Path]
    online_knn: OnlineKnn | None = None
    previous: Path | None = None

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that the weights depend on."""
        return recipe_of(self.settings, self.seed, self.data, self.previous)


def pretrain(job: Job, images: Images) -> Mapping[str, float]:
    """Train, or go on where a checkpoint stands, and write the stage's folder.

    The folder gets ``checkpoints/`` (the newest ones, from which the stage resumes), ``history.jsonl``, and at the end
    ``checkpoint.pth``, ``backbone.safetensors`` (the teacher's encoder) and ``metrics.json``.

    Returns:
        The final figures.

    Raises:
        UserError: for settings that do not fit the data, a loss that is not finite, or a folder that is not writable.
        Stopped: when a signal ended the training after it was saved.
    """
    settings, compute = job.settings, job.compute
    process = begin(compute, job.seed)
    device = process.device
    if compute.compile:
        require_compiler(device.type)
    record = StageRecord(
        "pretrain", job.run, {"seed": job.seed, **settings.plain()}, job.inputs, distributed.describe(device)
    )

    step = TrainingStep(settings, compute, device, job.previous)

    # before anything is moved: a batch that does not fit is refused here
    shape = settings.batch_size, settings.accumulate, settings.epochs
    order = Order(len(images), *shape, job.seed, process, "pretrain.batch_size")

    # where to go on
    start, last_saved, made = 0, None, None
    if (found := resume(job.out, ("recipe", job.recipe), _WRITTEN, process)) is not None:
        last_saved, state = found
        start, made = int(state["step"]), state.get("made")  # which older versions did not keep
        step.load_state(state, first=process.is_main)
    history = History(job.out / "history.jsonl", start) if process.is_main else None
    order.go_on(start)
    loader = build_loader(images, step.views, job.seed, order, compute.workers, device)
    batches = on_device((step.views.batch(*loaded) for loaded in loader), device)
    steps = order.steps

    if start == 0 and _keeps(job, 0):
        _keep_epoch(job, 0, step, process.is_main)

    def check(done: int) -> None:
        step.guard.check(last_saved)
        step.check_weights(done, last_saved)

    def save(done: int) -> Path | None:
        """Write the state after ``done`` steps, unless it is not finite."""
        check(done)
        watched = step.watched()
        if history is None:
            return None
        history.sync()
        folder = job.out / "checkpoints"
        state = {**_state(job, done, step, watched), "made": record.made()}
        return checkpoint.save_step(folder, done, state, compute.checkpoints_kept)

    if made is not None and start == steps:
        # nothing is left to train: the weights are still made by those who trained them
        record.made_with = made
    elif process.is_main:
        record.made_with = {**write_lock(job.out), "compile": compute.compile, "data_sha256": job.data}
        if made is not None:
            record.go_on(made)

    with StopRequest() as stop, bar("pretraining (steps)", steps, start, enabled=process.is_main) as shown:
        window_start, window_step, waited, pace = time.perf_counter(), start, 0.0, Pace(compute)
        for number in range(start, steps):
            values = values_at(number, settings, order.steps_per_epoch)
            for micro in range(settings.accumulate):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                step.accumulate(batch, values, number, last=micro == settings.accumulate - 1)
            step.update(values)

            # from here on, what people look at
            done = number + 1
            epoch_ends = done % order.steps_per_epoch == 0
            note = None
            if done % compute.log_every == 0 or done == steps:
                figures = step.guard.means() | step.health.window()
                step.guard.check(last_saved)
                seconds = time.perf_counter() - window_start
                speed = settings.batch_size * (done - window_step) / seconds
                data_wait = 100 * waited / seconds
                window_start, window_step, waited = time.perf_counter(), done, 0.0
                line = {
                    "kind": "step",
                    "step": done,
                    "epoch": round(done / order.steps_per_epoch, 4),
                    **figures,
                    "learning_rate": values.learning_rate,
                    "weight_decay": values.weight_decay,
                    "momentum": values.momentum,
                    "teacher_temperature": values.teacher_temperature,
                    "images_per_second": round(speed, 2),
                    "data_wait_percent": round(data_wait, 2),
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                }
                if history is not None:
                    history.write(line)
                note = (
                    f"loss {figures['loss']:.3f} (intra {figures['intra_view']:.3f} inter {figures['inter_view']:.3f} "
                    f"volume {figures['volume']:.3f}) lr {values.learning_rate:.2e} "
                    f"perplexity {figures['perplexity']:.0f} {speed:.0f} images/s"
                ) + (f", {data_wait:.0f} % of the time waiting for data" if data_wait >= 5 else "")
            if epoch_ends:
                line = {"kind": "epoch", "step": done, "epoch": done // order.steps_per_epoch, **step.health.epoch()}
                if history is not None:
                    if job.online_knn is not None and _check_due(job, done // order.steps_per_epoch):
                        line |= job.online_knn.figures(step.teacher.encoder, device)
                    history.write({**line, "time": datetime.now(UTC).isoformat(timespec="milliseconds")})
            # before the checkpoint: a training that goes on from it would not keep this epoch any more
            if epoch_ends and _keeps(job, done // order.steps_per_epoch):
                check(done)
                _keep_epoch(job, done // order.steps_per_epoch, step, process.is_main)
            signum = stop.agreed()
            if pace.due(done, epoch_ends) or signum or done == steps:
                with pace.saving():
                    last_saved = save(done) or last_saved
            shown.advance(1, note)
            if signum and done < steps:
                distributed.finish()
                where = f"saved: {last_saved}" if process.is_main else "the first rank saves"
                raise Stopped(f"stopped by signal {signum} after step {done} of {steps}; {where}", signum)

    metrics: dict[str, float] = {}
    if process.is_main:
        metrics = _finish(job, record, steps, step)
    distributed.finish()
    return metrics


def _keeps(job: Job, epoch: int) -> bool:
    every = job.compute.keep_epochs
    return bool(every) and epoch % every == 0


def _keep_epoch(job: Job, epoch: int, step: TrainingStep, writes: bool) -> None:
    """Keep the teacher, and the centre of its assignments, as they are after an epoch."""
    if not writes:
        return
    name, arguments = timm_arguments(job.settings.encoder, job.settings.views.teacher_size)
    about = {"epoch": epoch, "recipe": job.recipe, "run": job.run, **timm_metadata(name, arguments)}
    checkpoint.save(job.out / "epochs" / f"epoch-{epoch:04d}.pth", {**about, **step.kept()})


def _check_due(job: Job, epoch: int) -> bool:
    every = job.settings.online_knn_every
    return bool(every) and (epoch % every == 0 or epoch == job.settings.epochs)


def _state(job: Job, done: int, step: TrainingStep, watched: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return everything that a resumed run needs, as tensors and plain data."""
    name, arguments = timm_arguments(job.settings.encoder, job.settings.views.teacher_size)
    return {
        "step": done,
        "recipe": job.recipe,
        "run": job.run,
        **timm_metadata(name, arguments),
        **step.state(watched),
    }


def _finish(job: Job, record: StageRecord, steps: int, step: TrainingStep) -> dict[str, float]:
    """Write what the next stages read."""
    # all that was watched stands in the history
    checkpoint.save(job.out / "checkpoint.pth", _state(job, steps, step, {}))
    name, arguments = timm_arguments(job.settings.encoder, job.settings.views.teacher_size)
    encoder = step.teacher.encoder
    save_backbone(job.out / "backbone.safetensors", encoder, name, arguments, run=job.run, step=str(steps))
    lines = read_history(job.out / "history.jsonl")
    last = {key: value for line in lines for key, value in line.items() if isinstance(value, int | float)}
    wanted = (*LOSSES, "perplexity", "prototypes_used", "teacher_entropy", "feature_variance", "position_information")
    metrics = {f"pretrain/{name}": float(last[name]) for name in (*wanted, "online_knn") if name in last}
    speeds = sorted(line["images_per_second"] for line in lines if "images_per_second" in line)
    metrics["pretrain/images_per_second"] = float(speeds[len(speeds) // 2])
    metrics["pretrain/steps"] = steps
    weights = {"backbone.safetensors": sha256_file(job.out / "backbone.safetensors")}
    record.write(job.out / "metrics.json", metrics, weights=weights)
    return metrics

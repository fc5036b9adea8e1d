"""Linear classification of frozen features: a grid of probes trained at once, the best on validation reported.

Choosing on the validation set is what DINOv2's evaluation does (arXiv 2304.07193); every probe's figure is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from flsl.config.experiment import Experiment
from flsl.data.images import ImageSet
from flsl.data.manifest import content
from flsl.model.backbone import Backbone
from flsl.model.choice import EncoderChoice
from flsl.probe.encoder import feature_function, load_frozen, mean_tokens
from flsl.probe.features import encode
from flsl.probe.grid import LinearGrid
from flsl.probe.images import ImageSource, check_labels
from flsl.probe.loading import RandomCrop, batches, shuffled
from flsl.runtime import checkpoint
from flsl.runtime.distributed import choose_device, describe, fitting
from flsl.runtime.errors import UserError
from flsl.runtime.history import History
from flsl.runtime.outputs import StageRecord, atomic, sha256_json, writing
from flsl.runtime.progress import bar, say, warn

_REFERENCE_BATCH = 256  # the batch size that learning rates are given for
_VOTES = 2**26  # logits of a chunk of the validation set
_CROPS = 2  # how training crops are made; an older version's checkpoint, of others, is not continued
TOP = (1, 5)


@fitting("linear.batch_size: too many images for the GPU's memory; lower it, and features.batch_size with it")
def train(experiment: Experiment, choice: EncoderChoice, source: ImageSource, out: Path, run: str) -> dict[str, Any]:
    """Train the grid of linear probes and judge them on the validation images.

    The encoder sees each batch of randomly cropped and flipped images once for the whole grid; what happens to image i
    in epoch e is a function of (seed, e, i). Writes ``history.jsonl`` (the best probe after each epoch), a checkpoint
    after each epoch from which a killed stage goes on, ``linear.safetensors`` (the best probe) and ``metrics.json``.

    Args:
        experiment: its ``linear``, ``features``, ``seed`` and ``compute`` settings are read.
        choice: the encoder.
        source: the images.
        out: folder to write to.
        run: the run's name for the record.

    Returns:
        what ``metrics.json`` holds: ``linear/top1`` and, with five classes or more, ``linear/top5``, in percent, of the
        probe that is best on the validation set after the last epoch; ``grid`` holds all of them.

    Raises:
        UserError: when the images, their labels or the encoder do not serve, or every probe diverged.
    """
    settings, device = experiment.linear, choose_device(experiment.compute.device)
    images, val = source.load()
    labels, val_labels = check_labels(images, val)
    val_labels = val_labels.to(device)
    backbone = load_frozen(choice, experiment, device)
    backbone.check_blocks(max(settings.blocks))
    params = {"seed": experiment.seed, **settings.plain(), "features": experiment.features.plain()}
    record = StageRecord("linear", run, params, [*source.inputs, *choice.inputs], describe(device))
    with writing(out):
        (out / "metrics.json").unlink(missing_ok=True)
    steps_per_epoch = math.ceil(len(images) / settings.batch_size)
    grid = LinearGrid(
        backbone.width,
        settings.blocks,
        [rate * settings.batch_size / _REFERENCE_BATCH for rate in settings.learning_rates],
        len(images.class_names),
        settings.epochs * steps_per_epoch,
        settings.weight_decay,
        experiment.seed,
        device,
    )
    last_n = max(settings.blocks)
    saved = out / "checkpoint.pth"
    key = _identity(experiment, backbone, images, val, content(source.inputs))
    first = _resume(saved, key, grid) // steps_per_epoch
    history = History(out / "history.jsonl", grid.done)
    # the encoder is frozen and the crops are central: validation features never change
    workers = experiment.compute.workers
    val_features = torch.cat(list(encode(backbone, val, experiment.features, last_n, workers, device))).to(device)
    tokens = feature_function(backbone, device, experiment.features.precision, last_n)
    crop = RandomCrop(
        experiment.seed, experiment.features.crop, (settings.crop_scale[0], settings.crop_scale[1]), settings.flip
    )
    keys = shuffled(len(images), settings.batch_size, experiment.seed, range(first, settings.epochs))
    losses = torch.zeros(len(grid.probes), device=device)
    with bar("linear probes", settings.epochs * steps_per_epoch, grid.done) as shown:
        for indices, crops in batches(images.pixels, crop, keys, workers, device):
            losses += grid.step(mean_tokens(tokens(crops)), labels[indices].to(device))
            note = None
            if grid.done % steps_per_epoch == 0:
                line = _epoch_line(grid, losses / steps_per_epoch, val_features, val_labels, steps_per_epoch)
                losses.zero_()
                history.write(line)
                history.sync()
                checkpoint.save(saved, {"identity": key, **grid.state_dict()})
                note = f"validation, best of {len(grid.probes)}: {line['top1']:.2f} %"
            shown.advance(1, note)
    written = _report(record, grid, val_features, val_labels, settings.learning_rates, images.class_names, out)
    saved.unlink(missing_ok=True)
    return written


def judge(grid: LinearGrid, features: Tensor, labels: Tensor) -> Tensor:
    """Return the percentages (2, probes), float64, of images whose class is first, or among the first five."""
    rows = max(1, _VOTES // (len(grid.probes) * grid.classes))
    right = sum(
        grid.right(part, named, TOP)
        for part, named in zip(torch.split(features, rows), torch.split(labels, rows), strict=True)
    )
    return 100 * torch.as_tensor(right).double().cpu() / len(labels)


def _epoch_line(
    grid: LinearGrid, losses: Tensor, features: Tensor, labels: Tensor, steps_per_epoch: int
) -> dict[str, Any]:
    """Return the history's line: the best probe's validation accuracy, and its mean loss in the epoch if finite."""
    accuracy = judge(grid, features, labels)[0]
    best = int(accuracy.argmax())
    line = {
        "kind": "epoch",
        "step": grid.done,
        "epoch": grid.done // steps_per_epoch,
        "top1": float(accuracy[best]),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    loss = float(losses[best])
    return {**line, "loss": loss} if math.isfinite(loss) else line


def _report(
    record: StageRecord,
    grid: LinearGrid,
    features: Tensor,
    labels: Tensor,
    rates: list[float],
    classes: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    figures = judge(grid, features, labels)
    with_top5 = len(classes) >= TOP[1]
    table = []
    for index, probe in enumerate(grid.probes):
        healthy = all(bool(part.isfinite().all()) for part in grid.weights(index))
        row: dict[str, Any] = {"blocks": probe.blocks, "learning_rate": rates[index % len(rates)]}
        row["top1"] = float(figures[0, index]) if healthy else None
        if with_top5:
            row["top5"] = float(figures[1, index]) if healthy else None
        table.append(row)
    good = [index for index, row in enumerate(table) if row["top1"] is not None]
    if not good:
        raise UserError(
            f"linear.learning_rates: all {len(table)} probes diverged (least rate {min(rates):g}); add smaller ones"
        )
    # among equals the first: fewer blocks, then the learning rate given first
    best = max(good, key=lambda index: table[index]["top1"])
    weight, bias = grid.weights(best)
    # one entry: safetensors writes several in any order, and equal probes should be equal files
    about = {"probe": json.dumps({**table[best], "classes": list(classes)})}
    with atomic(out / "linear.safetensors") as temporary:
        # not save_file: that makes the file private, and results are shared
        temporary.write_bytes(safetensors.torch.save({"weight": weight.cpu(), "bias": bias.cpu()}, about))
    metrics = {f"linear/{name}": table[best][name] for name in ("top1", "top5") if name in table[best]}
    chosen = {"blocks": table[best]["blocks"], "learning_rate": table[best]["learning_rate"]}
    return record.write(out / "metrics.json", metrics, best=chosen, chosen_on="validation", grid=table)


def _identity(experiment: Experiment, backbone: Backbone, images: ImageSet, val: ImageSet, known: list[str]) -> str:
    """Return a digest of all that the probes' weights depend on: another one, and a checkpoint is not continued."""
    features = experiment.features.model_dump(include={"crop", "precision"})
    sets = [[list(part.paths), np.asarray(part.labels).tolist(), list(part.class_names)] for part in (images, val)]
    return sha256_json([_CROPS, experiment.seed, experiment.linear.plain(), features, backbone.digest(), sets, known])


def _resume(path: Path, identity: str, grid: LinearGrid) -> int:
    """Load the checkpoint where it fits; return the number of steps that it has done."""
    if not path.exists():
        return 0
    try:
        state = checkpoint.load(path)
    except UserError as error:
        warn(f"{error}; training starts anew")
        return 0
    if state.pop("identity", None) != identity:
        warn(f"{path}: is of other settings, images or weights; training starts anew")
        return 0
    grid.load_state_dict(state)
    say(f"{path}: going on after step {grid.done}")
    return grid.done

"""Frozen features of all images, extracted once a run and shared by the probes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flsl.config.experiment import Experiment
from flsl.config.probe import FeatureSettings
from flsl.data.images import ImageSet
from flsl.model.backbone import Backbone
from flsl.model.choice import EncoderChoice
from flsl.probe.encoder import feature_function, load_frozen, mean_tokens
from flsl.probe.images import ImageSource, check_labels
from flsl.probe.loading import CentreCrop, batches, in_order
from flsl.probe.store import check_finite, feature_file
from flsl.runtime.distributed import choose_device, describe, fitting
from flsl.runtime.outputs import StageRecord, writing
from flsl.runtime.progress import bar

SPLITS = ("train", "val")


@fitting("features.batch_size: too many images for the GPU's memory; lower it")
def extract(experiment: Experiment, choice: EncoderChoice, source: ImageSource, out: Path, run: str) -> dict[str, Any]:
    """Write ``train.safetensors``, ``val.safetensors`` and ``metrics.json`` to ``out``.

    Args:
        experiment: its ``features`` and ``compute`` settings are read.
        choice: the encoder.
        source: the images.
        out: folder to write to.
        run: the run's name for the record.

    Returns:
        what ``metrics.json`` holds: counts, and images a second.

    Raises:
        UserError: when the images, their labels or the encoder do not serve, naming what.
    """
    settings, device = experiment.features, choose_device(experiment.compute.device)
    train, val = source.load()
    labels = check_labels(train, val)
    backbone = load_frozen(choice, experiment, device)
    backbone.check_blocks(settings.blocks)
    record = StageRecord("features", run, settings.plain(), [*source.inputs, *choice.inputs], describe(device))
    # gone while its parts are made anew
    with writing(out):
        (out / "metrics.json").unlink(missing_ok=True)
    about = {
        "encoder": backbone.name,
        "resize": str(settings.resize),
        "crop": str(settings.crop),
        "blocks": f"mean patch tokens of the last {settings.blocks} blocks after the final LayerNorm",
    }
    seconds = 0.0
    for split, images, named in zip(SPLITS, (train, val), labels, strict=True):
        shape = (len(images), settings.blocks, backbone.width)
        path = out / f"{split}.safetensors"
        with feature_file(path, shape, named, train.class_names, images.paths, about) as append:
            started = time.perf_counter()
            for features in encode(backbone, images, settings, settings.blocks, experiment.compute.workers, device):
                append(features)
            seconds += time.perf_counter() - started
    count = len(train) + len(val)
    metrics = {
        "features/train_images": len(train),
        "features/val_images": len(val),
        "features/images_per_second": round(count / seconds, 2),
    }
    encoder = {
        "name": backbone.name,
        "width": backbone.width,
        "depth": backbone.depth,
        "patch_size": backbone.patch_size,
    }
    return record.write(out / "metrics.json", metrics, encoder=encoder)


def encode(
    backbone: Backbone, images: ImageSet, settings: FeatureSettings, last_n: int, workers: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the mean patch tokens (batch, last_n, C), float32, on the CPU, of the images' centre crops, in order.

    Raises:
        UserError: naming an image that cannot be read, or whose features are not finite.
    """
    tokens = feature_function(backbone, device, settings.precision, last_n)
    crop = CentreCrop(settings.resize, settings.crop)
    keys = in_order(range(len(images)), settings.batch_size)
    with bar("features", len(images)) as shown:
        for indices, crops in batches(images.load, crop, keys, workers, device):
            features = mean_tokens(tokens(crops)).cpu()
            check_finite(features, [images.paths[index] for index in indices.tolist()])
            yield features
            shown.advance(len(indices))

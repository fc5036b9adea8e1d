"""The pretraining stage: from an experiment's settings and a checked data set to the stage's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flsl.config.experiment import Experiment
from flsl.data.images import ImageSet
from flsl.data.manifest import MANIFEST, load_manifest, trained_on
from flsl.pretrain.online_knn import build_online_knn
from flsl.pretrain.recipe import check_previous
from flsl.pretrain.trainer import Job, pretrain
from flsl.runtime.distributed import fitting
from flsl.runtime.machine import sampling
from flsl.runtime.place import is_main_process


def pretrain_folder(
    settings: Experiment, images: Path, out: Path, run: str, previous: Path | None = None
) -> Mapping[str, float]:
    """Pretrain on the images of the folder ``images``, which ``flsl data check`` wrote, and fill the folder ``out``.

    To be called by every process that trains, in the environment that torchrun or SLURM makes.

    Args:
        settings: the resolved settings.
        images: the checked images.
        out: the stage's folder.
        run: the run's name.
        previous: the encoder of an earlier run, which becomes a prior of this one's cross-attention.

    Returns:
        The final figures; none on ranks other than the first.

    Raises:
        UserError: as :func:`flsl.pretrain.trainer.pretrain`, or when a GPU's memory is full.
        Stopped: when a signal ended the training after it was saved.
    """
    check_previous(settings.pretrain, previous)
    check = build_online_knn(images, settings.pretrain, settings.compute.workers) if is_main_process() else None
    job = Job(
        settings=settings.pretrain,
        compute=settings.compute,
        seed=settings.seed,
        data=trained_on(load_manifest(images)),
        out=out,
        run=run,
        inputs=[images / MANIFEST, *([previous] if previous is not None else [])],
        online_knn=check,
        previous=previous,
    )
    less = (
        "pretrain.batch_size: too many images for the GPUs' memory; set compute.activation_checkpointing=true, take "
        "more GPUs, or raise pretrain.accumulate, which makes another run"
    )
    with sampling(out), fitting(less):
        return pretrain(job, ImageSet.from_manifest(images, "train"))

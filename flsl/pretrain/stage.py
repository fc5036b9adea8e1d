"""The pretraining stage: from an experiment's settings and a checked data set to the stage's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flsl.config.experiment import Experiment
from flsl.data.images import ImageSet
from flsl.data.manifest import MANIFEST, load_manifest
from flsl.pretrain.online_knn import build_online_knn
from flsl.pretrain.trainer import Job, pretrain
from flsl.runtime.distributed import is_main_process


def pretrain_folder(settings: Experiment, images: Path, out: Path, run: str) -> Mapping[str, float]:
    """Pretrain on the images of the folder ``images``, which ``flsl data check`` wrote, and fill the folder ``out``.

    To be called by every process that trains, in the environment that torchrun or SLURM makes.

    Returns:
        The final figures; none on ranks other than the first.

    Raises:
        UserError: as :func:`flsl.pretrain.trainer.pretrain`.
        Stopped: when a signal ended the training after it was saved.
    """
    manifest = load_manifest(images)
    check = build_online_knn(images, settings.pretrain, settings.compute.workers) if is_main_process() else None
    job = Job(
        settings=settings.pretrain,
        compute=settings.compute,
        seed=settings.seed,
        data=manifest["content_sha256"],
        out=out,
        run=run,
        inputs=[images / MANIFEST],
        online_knn=check,
    )
    return pretrain(job, ImageSet.from_manifest(images, "train"))

"""What is to be true of an experiment as a whole before anything of it runs: its parts must fit one another."""

from __future__ import annotations

from collections.abc import Iterable

from flsl.config.chain import check_chains
from flsl.config.detect import PATCHES
from flsl.config.experiment import Experiment
from flsl.config.loading import require_data
from flsl.config.sweep import Plan, PlannedRun, plan
from flsl.runtime.errors import UserError


def check_whole(experiment: Experiment) -> Plan:
    """Return the experiment's plan, where all of its stages find what they need.

    Raises:
        UserError: for what would otherwise fail after the pretraining: naming the setting, and what would be right.
    """
    require_data(experiment)
    planned = plan(experiment)
    check_chains({name: run.settings for name, run in planned.runs.items()}, experiment.baselines)
    for run in planned.runs.values():
        _check_blocks(run)
        _check_sizes(run)
        _check_detector(run)
    return planned


def _check_blocks(run: PlannedRun) -> None:
    """Refuse evaluations of more blocks than the encoder has, where the settings say how many these are."""
    settings = run.settings
    depth = settings.pretrain.encoder.depth
    for stage, name, blocks in (
        ("knn", "features.blocks", settings.features.blocks),
        ("linear", "linear.blocks", max(settings.linear.blocks)),
    ):
        if depth is not None and stage in run.stages and blocks > depth:
            raise UserError(
                f"{name}: the run {run.name} is asked for its last {blocks} blocks, but it has {depth} "
                f"(pretrain.encoder.depth); ask for {depth} at most, or leave {stage} out of its stages"
            )


def _check_sizes(run: PlannedRun) -> None:
    """Refuse evaluations of images that are cut into no whole number of patches."""
    settings, patch = run.settings, run.settings.pretrain.encoder.patch_size
    for stages, name, size in (
        (("knn", "linear", "aligned_knn"), "features.crop", settings.features.crop),
        (("visualize",), "visualize.size", settings.visualize.size),
    ):
        if size is not None and size % patch and (asked := _asked(run, stages)):
            near = max(1, round(size / patch)) * patch
            raise UserError(
                f"{name}: {size} is not a multiple of the {patch} pixels of a patch of the run {run.name} "
                f"(pretrain.encoder.patch_size); {near} is, or leave {asked} out of its stages"
            )


def _check_detector(run: PlannedRun) -> None:
    """Refuse a detector that cannot be built on the encoder."""
    model, encoder = run.settings.detection.model, run.settings.pretrain.encoder
    asked = _asked(run, ("coco", "uavdt"))
    if not asked:
        return
    if encoder.patch_size not in PATCHES:
        raise UserError(
            f"pretrain.encoder.patch_size: a detector is built on patches of 4, 8 or 16 pixels, and the run {run.name} "
            f"has {encoder.patch_size}; leave {asked} out of its stages"
        )
    last = model.blocks[-1] if model.pyramid == "fpn" and model.blocks is not None else 1
    for name, block in (("blocks", last), ("frozen_blocks", model.frozen_blocks)):
        if encoder.depth is not None and block > encoder.depth:
            raise UserError(
                f"detection.model.{name}: block {block} is asked for, but the run {run.name} has {encoder.depth} "
                f"(pretrain.encoder.depth); ask for {encoder.depth} at most, or leave {asked} out of its stages"
            )


def _asked(run: PlannedRun, stages: Iterable[str]) -> str:
    """Return which of some stages the run has, as words."""
    return " and ".join(stage for stage in stages if stage in run.stages)

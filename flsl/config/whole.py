"""What is to be true of an experiment as a whole before anything of it runs: its parts must fit one another."""

from __future__ import annotations

from flsl.config.chain import check_chains
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

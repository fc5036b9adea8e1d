"""Multi-stage pretraining: the order in which runs go on from one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flsl.config.experiment import Experiment
from flsl.runtime.errors import UserError, nearest


def check_chains(runs: Mapping[str, Experiment], baselines: Iterable[str]) -> None:
    """Refuse a ``pretrain.previous`` that cannot be followed.

    Args:
        runs: the resolved settings of all runs, by name.
        baselines: names that may be gone on from, too.

    Raises:
        UserError: when it names no run or baseline, one with patches of another size, one with fewer blocks than it
            is to be cut after, or leads back to its start.
    """
    baselines = list(baselines)
    for run in runs:
        chain = [run]
        while chain[-1] in runs and (previous := runs[chain[-1]].pretrain.previous) is not None:
            _check_step(chain, previous, runs, baselines)
            chain.append(previous)


def _check_step(chain: list[str], previous: str, runs: Mapping[str, Experiment], baselines: list[str]) -> None:
    where = f"runs.{chain[-1]}: pretrain.previous"
    if previous in chain:
        raise UserError(
            f"{where}: leads back to where it started, {' -> '.join([*chain, previous])}; "
            f"one of them must start from nothing (runs.{previous}: {{pretrain.previous: null}})"
        )
    known = [*runs, *baselines]
    if previous not in known:
        raise UserError(
            f"{where}: no run or baseline '{previous}'{nearest(previous, known)}; there are {', '.join(known)}"
        )
    if previous in runs:
        theirs, ours = (runs[name].pretrain.encoder.patch_size for name in (previous, chain[-1]))
        if theirs != ours:
            raise UserError(
                f"{where}: '{previous}' has patches of {theirs} pixels, this run of {ours}; "
                "they must be equal (pretrain.encoder.patch_size)"
            )
        block, depth = runs[chain[-1]].pretrain.prior.block, runs[previous].pretrain.encoder.depth
        if block is not None and depth is not None and block > depth:
            raise UserError(
                f"runs.{chain[-1]}: pretrain.prior.block: {block}, but '{previous}' has {depth} blocks "
                "(pretrain.encoder.depth)"
            )

"""What every training needs, whatever it trains: its process, going on where it stood, and weights worth keeping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flsl.config.compute import ComputeSettings
from flsl.runtime import checkpoint, distributed
from flsl.runtime.outputs import sha256_json
from flsl.runtime.progress import say


def begin(compute: ComputeSettings, seed: int) -> distributed.Process:
    """Join the other ranks, choose the device, and seed what weights are drawn from, equal on all ranks."""
    process = distributed.start(compute.device)
    distributed.use_threads(compute.threads)
    if process.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    return process


def resume(
    out: Path, identity: tuple[str, Mapping[str, Any]], names: Sequence[str], process: distributed.Process
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint below ``out/checkpoints`` and its state, or None to start anew.

    What a training of other settings or data left is set aside first.

    Args:
        out: the stage's folder.
        identity: the state's key for all that its weights depend on, and what stands there in this training.
        names: what a training writes into the folder beside ``checkpoints``.
        process: this rank; every rank asks.

    Raises:
        UserError: when there are checkpoints but none can be read.
    """
    folder = out / "checkpoints"
    found = checkpoint.load_newest(folder) if process.is_main else None
    # all go on from the same one, whatever a network file system shows the others by now
    step = distributed.first_says(int(found[1]["step"]) if found is not None else -1)
    if step < 0:
        return None
    path, state = found or checkpoint.load_step(folder, step)
    # nobody moves the files while another rank still reads them
    distributed.barrier()
    key, wanted = identity
    if (digest := sha256_json(state.get(key))) != sha256_json(wanted):
        if process.is_main:
            kept = checkpoint.set_aside(out, ["checkpoints", *names], f"superseded-{digest[:8]}")
            say(f"settings or data differ from those of {path.name}: starting anew; the old files are in {kept}")
        return None
    if process.is_main:
        say(f"going on after step {state['step']} from {path}")
    return path, state


@torch.no_grad()
def all_finite(weights: Sequence[Tensor]) -> bool:
    """Tell whether all weights are finite (this waits for the device)."""
    return bool(torch.stack(torch._foreach_norm(list(weights))).isfinite().all())

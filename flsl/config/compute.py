"""Settings of the machine that a stage runs on: they change speed, not results."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flsl.config.base import Count, Settings


class ComputeSettings(Settings):
    """Where and how a stage computes; no stage is rerun because one of these changed."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of every stage; `auto` takes CUDA where it works, else the CPU."
    )
    workers: int = Field(
        4,
        ge=0,
        description="Data loading processes per rank, each of which prepares 250 to 400 photographs a second; "
        "0 loads in the main process.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of PyTorch per rank; 0 leaves PyTorch's choice.")
    compile: bool = Field(
        False,
        description="Compile the hot parts of pretraining with `torch.compile`; on H100s and H200s, with a precision "
        "of bfloat16, the encoder is computed by fused kernels.",
    )
    compile_mode: Literal["default", "reduce-overhead"] = Field(
        "default",
        description="How: `reduce-overhead` replays the encoder as CUDA graphs, for small batches on a GPU, without "
        "the fused kernels; not together with `activation_checkpointing`, which goes before.",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute the student's activations again in the backward pass: less memory, more time."
    )
    log_every: Count = Field(
        50, description="Steps between two lines of `history.jsonl` (one fetch of the losses each)."
    )
    checkpoint_minutes: float = Field(
        15.0,
        gt=0,
        description="Minutes between two checkpoints; the ends of epochs make others, as long as writing them takes "
        "less than 1 % of the time.",
    )
    checkpoint_steps: int = Field(0, ge=0, description="Steps between two checkpoints; 0 leaves it to the minutes.")
    keep_epochs: int = Field(
        0,
        ge=0,
        description="Epochs between two teachers that stay in `pretrain/epochs`, the untrained one first, for pictures "
        "and comparisons; 0: none.",
    )
    checkpoints_kept: int = Field(2, ge=1, description="Newest checkpoints kept; two survive a damaged newest one.")

"""What memory does a training step take, which batch fits a GPU of 80 GB, and how many matrices of logits are alive?

Counts the bytes of all tensors alive during a training step of ``flsl.pretrain.step.TrainingStep`` (``live_bytes.py``;
on a GPU also the allocator's own peak) at two batch sizes. Between them memory grows linearly, which gives bytes an
image and a constant, and by them the largest batch in 80 GB, of which 5 % are left to the allocator's gaps and 1 GiB to
CUDA itself. With and without ``compute.activation_checkpointing``; logits are counted in float32 matrices of
tokens × K, beside those of the literal step (``literal_step.py``).

    python benchmarks/memory.py --recipes S/16 S/8 B/16 --batches 1 2 --out results/bench-memory.json
"""

from __future__ import annotations

from typing import Any

import torch
from common import device_name, options, report
from literal_step import LiteralStep, single_views
from live_bytes import LiveBytes
from torch.utils._pytree import tree_leaves
from train_step import RECIPES, STEPS, made_batch

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import PretrainSettings
from flsl.pretrain.schedules import values_at
from flsl.pretrain.step import TrainingStep

GPU_BYTES, USABLE, CUDA_BYTES = 80e9, 0.95, 2**30


def tokens(settings: PretrainSettings) -> int:
    """Return the sampled tokens of an image."""
    views, step = settings.views, settings.encoder.patch_size * settings.query_window
    return int((views.global_size // step) ** 2 + views.local_crops * (views.local_size // step) ** 2)


def peak(settings: PretrainSettings, count: int, device: torch.device, recompute: bool) -> dict[str, float]:
    """Return the peak bytes of a step, those of weights, states and gradients, and the matrices of logits alive."""
    step = TrainingStep(settings, ComputeSettings(activation_checkpointing=recompute), device)
    # as on a GPU, where attention is never multiplied out
    for block in step.student.encoder.blocks:
        block.attn.fused_attn = True
    batch, values = made_batch(step, settings, 0, count), values_at(STEPS // 2, settings, STEPS)
    # the optimiser's state is made by a step without gradients
    trained = [parameter for parameter in step.student.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    step.update(values)
    # gradients there from the start: at a small batch they would outweigh the activations, whose growth is asked for
    gradients = [torch.zeros_like(parameter) for parameter in trained]
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    logits = count * tokens(settings) * settings.prototypes
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with LiveBytes(watched=logits) as live:
        for tensor in (*tree_leaves(step.state({})), *step.health.buffers(), *gradients):
            if isinstance(tensor, torch.Tensor):
                live.count(tensor)
        fixed = live.current
        step.accumulate(batch, values, 1)
    allocated = {"allocator_peak": torch.cuda.max_memory_allocated()} if device.type == "cuda" else {}
    return {"peak": live.peak, "fixed": fixed, "logits": live.watched_peak / (4 * logits), **allocated}


def literal_logits(settings: PretrainSettings, count: int, device: torch.device) -> float:
    """Return the matrices of logits alive at most in the literal step."""
    step = TrainingStep(settings, ComputeSettings(), device)
    literal = LiteralStep(settings, device)
    batch = made_batch(step, settings, 0, count).to(device)
    teacher_view, groups = step.views(batch)
    logits = count * tokens(settings) * settings.prototypes
    with LiveBytes(watched=logits) as live:
        literal.step(teacher_view, single_views(groups, batch.students, count), values_at(STEPS // 2, settings, STEPS))
    return live.watched_peak / (4 * logits)


def largest_batch(
    settings: PretrainSettings, counts: list[int], device: torch.device, recompute: bool
) -> dict[str, Any]:
    small, large = (peak(settings, count, device, recompute) for count in counts)
    measured = "allocator_peak" if device.type == "cuda" else "peak"
    slope = (large[measured] - small[measured]) / (counts[1] - counts[0])
    constant = small[measured] - slope * counts[0]
    return {
        "mib_an_image": slope / 2**20,
        "constant_mib": constant / 2**20,
        "weights_states_gradients_mib": small["fixed"] / 2**20,
        "largest_batch_in_80_gb": int((USABLE * GPU_BYTES - CUDA_BYTES - constant) / slope),
        "logits_in_float32_matrices": large["logits"],
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--recipes", choices=RECIPES, nargs="+", default=["S/16", "S/8", "B/16"])
    parser.add_argument("--batches", type=int, nargs=2, default=[1, 2])
    parser.add_argument("--precision", choices=["bf16", "bf16-residual", "float32"], default="bf16")
    args = parser.parse_args()
    device = torch.device(args.device)
    figures: dict[str, Any] = {"device": device_name(device), "batches": args.batches, "precision": args.precision}
    for name in args.recipes:
        settings = RECIPES[name].model_copy(update={"precision": args.precision})
        kept, recomputed = (largest_batch(settings, args.batches, device, recompute) for recompute in (False, True))
        figures[name] = {
            "kept": kept,
            "recomputed": recomputed,
            "memory_ratio": kept["mib_an_image"] / recomputed["mib_an_image"],
        }
    figures["literal_logits_in_float32_matrices"] = literal_logits(RECIPES[args.recipes[0]], args.batches[0], device)
    report(figures, args.out)


if __name__ == "__main__":
    main()

"""How much faster is our training step than the literal one, how near to the device's matrix rate, and is it the same?

Compares, in one run, at equal weights and views:
- literal: ``literal_step.py``, float32, on a GPU also float16 with a scaled loss, and with fused encoder attention;
- ours: ``flsl.pretrain.step.TrainingStep`` as the trainer runs it, in bfloat16, or float32 on a CPU that multiplies
  faster in it; making the views is part of it, but for "views given" (the literal step is given them, too); on a GPU,
  or with --modes, compiled too, without and with CUDA graphs, and with a residual stream of bfloat16.
The losses of one step must agree; a training of --curve-steps steps of both at a small size shows that they go on so.

Floating point operations are counted for products only, two each multiply-add: with n tokens of width C in an image,
q sampled ones, patches of p pixels, a head of widths h, b and K prototypes, a forward pass through the encoder takes
2·n·3p²·C + depth·(24·n·C² + 4·n²·C), mean shift 4·q·n·C, the head 2·q·(C·h + h² + h·b + b·K). The student's views
count three times (forward, and twice as much backward), the teacher's once. Nothing recomputed counts.

    python benchmarks/train_step.py --batches 4 --out results/bench-train-step.json
    python benchmarks/train_step.py --device cuda --batches 64 256
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import computing_clock, device_name, measure, options, report, timed
from literal_step import LiteralStep, single_views

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import EncoderSettings, HeadSettings, PretrainSettings, ViewSettings
from flsl.data.views import Batch
from flsl.pretrain.loader import on_device
from flsl.pretrain.schedules import values_at
from flsl.pretrain.step import TrainingStep

RECIPES = {
    "S/16": PretrainSettings(),
    "S/8": PretrainSettings(encoder=EncoderSettings(name="vit_small_patch8_224", patch_size=8), query_window=4),
    "B/16": PretrainSettings(encoder=EncoderSettings(name="vit_base_patch16_224")),
    # a training that two CPU cores can take 200 steps of (heads as wide as those of real encoders: kernels ask for it)
    "tiny": PretrainSettings(
        encoder=EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=64, depth=3, heads=1),
        views=ViewSettings(teacher_size=32, global_size=32, local_size=16),
        head=HeadSettings(hidden=64, bottleneck=32),
        prototypes=64,
        batch_size=16,
        epochs=1,
        learning_rate=8e-3,
        momentum=0.98,
        freeze_prototypes_epochs=0.0,
    ),
}
STEPS = 200  # of the schedules
# of ours: its name, what is other in the recipe, and how it is computed
MODES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "default": ("compiled", {}, {"compile": True}),
    "reduce-overhead": ("CUDA graphs", {}, {"compile": True, "compile_mode": "reduce-overhead"}),
    "residual": ("bfloat16 residuals", {"precision": "bf16-residual"}, {}),
    "default-residual": ("compiled, bfloat16 residuals", {"precision": "bf16-residual"}, {"compile": True}),
}


def flops_an_image(settings: PretrainSettings, width: int, depth: int) -> float:
    """Return the floating point operations of a training step, an image; see the module's text for the formula."""
    views, patch, head = settings.views, settings.encoder.patch_size, settings.head

    def encoder(side: int) -> float:
        n = (side // patch) ** 2
        return 2 * n * 3 * patch**2 * width + depth * (24 * n * width**2 + 4 * n**2 * width)

    def sampled(side: int) -> int:
        return (side // patch // settings.query_window) ** 2

    hidden = (width + (head.layers - 2) * head.hidden + head.bottleneck) * head.hidden
    projection = 2 * (hidden + head.bottleneck * settings.prototypes)
    keys = (views.teacher_size // patch) ** 2
    total = encoder(views.teacher_size)
    for count, side in ((1, views.global_size), (views.local_crops, views.local_size)):
        q, n = sampled(side), (side // patch) ** 2
        student = encoder(side) + q * projection + 4 * q * n * width
        teacher = q * projection + 4 * q * keys * width
        total += count * (3 * student + teacher)
    return total


class Products:
    """Matrix products, about as long as a training step."""

    def __init__(self, device: torch.device, precision: str) -> None:
        size, self.repeats = (8192, 60) if device.type == "cuda" else (1024, 1)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._one, self._other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        self.operations = 2 * size**3 * self.repeats

    def __call__(self) -> None:
        for _ in range(self.repeats):
            self._one @ self._other


def matmul_rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of a matrix product when nothing was computed before."""
    products = Products(device, precision)
    timed(products, device)
    return products.operations / statistics.median(timed(products, device, computing_clock(device)) for _ in range(5))


def made_batch(step: TrainingStep, settings: PretrainSettings, number: int, count: int) -> Batch:
    """Return a batch of made crops with parameters as the loader draws them, smooth enough to be learnt from."""
    generator = torch.Generator().manual_seed(number)
    size = settings.views.teacher_size
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    crops = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    numbers = np.stack([step.views.draw(0, number, index) for index in range(count)])
    return step.views.batch((255 * crops).to(torch.uint8), numbers)


class Steps:
    """The literal step and ours, with equal weights, on the same batch."""

    def __init__(self, settings: PretrainSettings, count: int, device: torch.device, modes: list[str]) -> None:
        torch.manual_seed(0)
        names = ("ours", "ours, views given")
        self.ours = {name: TrainingStep(settings, ComputeSettings(), device) for name in names}
        for name, changes, how in (MODES[mode] for mode in modes):
            compute = ComputeSettings.model_validate(how)
            self.ours[f"ours, {name}"] = TrainingStep(settings.model_copy(update=changes), compute, device)
        self.literal = {"literal": LiteralStep(settings, device)}
        if device.type == "cuda":
            self.literal["literal, fp16"] = LiteralStep(settings, device, half=True)
            self.literal["literal, fp16, fused"] = LiteralStep(settings, device, half=True, fused_attention=True)
        start = self.ours["ours"].student.state_dict()
        for step in (*self.ours.values(), *self.literal.values()):
            step.student.load_state_dict(start)
            step.teacher.load_state_dict(start)
        first = self.ours["ours"]
        self.batch = made_batch(first, settings, 0, count)
        if device.type == "cuda":
            self.batch = self.batch.pin_memory()  # as from the loader
        # as the trainer: a GPU gets the next batch while it computes on this one
        self.batches = {name: on_device(itertools.repeat(self.batch), device) for name in self.ours}
        self.values = values_at(STEPS // 2, settings.model_copy(update={"epochs": 1}), STEPS)
        there = self.batch.to(device)
        teacher_view, groups = first.views(there)
        self._given = teacher_view, single_views(groups, there.students, count)
        self.ours["ours, views given"].views = lambda *_: (teacher_view, groups)

    def run(self, name: str) -> float | torch.Tensor:
        if name in self.literal:
            return self.literal[name].step(*self._given, self.values)
        loss = self.ours[name].accumulate(next(self.batches[name]), self.values, 0)
        self.ours[name].update(self.values)
        return loss


def compare(
    settings: PretrainSettings, count: int, device: torch.device, modes: list[str], repeats: int
) -> dict[str, Any]:
    """Return seconds a step and ratios at one batch size; what does not fit the device's memory is left out."""
    torch._dynamo.reset()
    steps = Steps(settings, count, device, modes)
    losses = {}
    for name in (*steps.literal, *steps.ours):
        try:
            losses[name] = float(steps.run(name))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    names = list(losses)
    differences = {name: abs(losses[name] / losses["ours"] - 1) for name in names}
    # bfloat16 has eight bits; the views and weights are equal
    assert max(differences.values()) < 0.02, differences
    candidates: dict[str, Callable[[], object]] = {name: (lambda name=name: steps.run(name)) for name in names}
    # in turns with the steps: a GPU that is kept busy lowers its clock
    candidates["products"] = products = Products(device, settings.precision)
    warmup = 3 if device.type == "cuda" else 1
    seconds = measure(candidates, repeats, device, warmup, computing_clock(device))
    rate = products.operations / seconds.pop("products")
    fastest = min((name for name in steps.ours if name in seconds), key=seconds.__getitem__)
    best = seconds[fastest]
    encoder = steps.ours["ours"].student.encoder
    operations = count * flops_an_image(settings, encoder.embed_dim, len(encoder.blocks))
    return {
        "seconds": seconds,
        "losses": losses,
        "relative_differences_of_loss": differences,
        **{f"speed_ratio_to_{name}": seconds[name] / best for name in steps.literal if name in seconds},
        "speed_ratio_with_our_views_made": seconds["literal"] / seconds["ours"],
        "images_a_second": {name: count / passed for name, passed in seconds.items()},
        "fastest": fastest,
        "tflops": operations / best / 1e12,
        "matmul_tflops_in_turns": rate / 1e12,
        "share_of_matmul_rate": operations / best / rate,
    }


def curve(steps: int, precision: str, device: torch.device) -> dict[str, Any]:
    """Train both from equal weights on equal views; return how far apart the losses are."""
    settings = RECIPES["tiny"].model_copy(update={"precision": precision})
    torch.manual_seed(0)
    # on a GPU by the fused kernels, launched one by one: nothing is compiled for so small a size
    compute = ComputeSettings(compile=device.type == "cuda")
    ours, literal = TrainingStep(settings, compute, device), LiteralStep(settings, device)
    literal.student.load_state_dict(ours.student.state_dict())
    literal.teacher.load_state_dict(ours.teacher.state_dict())
    losses = []
    with torch.compiler.set_stance("force_eager"):
        for number in range(steps):
            values = values_at(number, settings, steps)
            batch = made_batch(ours, settings, number, settings.batch_size).to(device)
            teacher_view, groups = ours.views(batch)
            views = single_views(groups, batch.students, settings.batch_size)
            loss = ours.accumulate(batch, values, number)
            ours.update(values)
            losses.append((float(loss), literal.step(teacher_view, views, values)))
    pairs = np.array(losses)
    apart = np.abs(pairs[:, 0] / pairs[:, 1] - 1)
    return {
        "steps": steps,
        "first": pairs[0].tolist(),
        "last_twenty_mean": pairs[-20:].mean(0).tolist(),
        "largest_relative_difference": float(apart.max()),
        "mean_relative_difference": float(apart.mean()),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--recipe", choices=RECIPES, default="S/16")
    parser.add_argument("--batches", type=int, nargs="+", default=[4], help="images a step; the best one counts")
    parser.add_argument("--repeats", type=int, default=3)
    modes = list(MODES) if torch.cuda.is_available() else []
    parser.add_argument(
        "--modes", choices=MODES, nargs="*", default=modes, help="other ways (compiling: minutes on a CPU)"
    )
    parser.add_argument("--curve-steps", type=int, default=STEPS, help="0: no curve")
    parser.add_argument("--precision", choices=["bf16", "float32"], help="of ours (default: what multiplies faster)")
    args = parser.parse_args()
    report(figures(args), args.out)


def figures(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is measured, at all batch sizes."""
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    # a CPU without instructions for bfloat16 multiplies several times as slowly in it
    rates = {precision: matmul_rate(device, precision) for precision in ("bf16", "float32")}
    precision = args.precision or max(rates, key=rates.__getitem__)
    rate = rates[precision]
    settings = RECIPES[args.recipe].model_copy(update={"precision": precision})
    # a block is compiled five times, for teacher and student and for sizes of views
    torch._dynamo.config.cache_size_limit = 64
    batches = {}
    for count in args.batches:
        # graphs save launches, which matter where there is least to compute
        modes = [mode for mode in args.modes if mode != "reduce-overhead" or count == min(args.batches)]
        batches[count] = compare(settings, count, device, modes, args.repeats)
    best = max(batches.values(), key=lambda figures: figures["tflops"])
    speeds: dict[str, float] = {}
    for found in batches.values():
        for name, speed in found["images_a_second"].items():
            speeds[name] = max(speed, speeds.get(name, 0.0))
    ours = max(speed for name, speed in speeds.items() if name.startswith("ours"))
    rounded = args.curve_steps and any("residual" in mode for mode in args.modes)
    return {
        "device": device_name(device),
        "recipe": args.recipe,
        "precision": precision,
        **{f"speed_ratio_to_{name}": ours / speed for name, speed in speeds.items() if name.startswith("literal")},
        "matmul_tflops": {precision: rate / 1e12 for precision, rate in rates.items()},
        "share_of_matmul_rate": best["share_of_matmul_rate"],
        "share_of_rate_before": 1e12 * best["tflops"] / rate,
        "images_a_second": ours,
        "batches": batches,
        **({"curve": curve(args.curve_steps, precision, device)} if args.curve_steps else {}),
        **({"curve_of_bf16_residuals": curve(args.curve_steps, "bf16-residual", device)} if rounded else {}),
    }


if __name__ == "__main__":
    main()

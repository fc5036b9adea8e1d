"""How much faster and smaller is windowed label propagation than the common dense form?

Compares, in one run on random unit features of a 480p frame and its context (the first and seven previous frames):
- ours: ``flsl.video.affinity.propagate_labels``, tiles of queries that meet only the keys of their window;
- dense: as it is commonly written: the whole (h·w) × (h·w) affinity of each context frame, times a mask of the
  neighbourhood that four nested loops make once a video.

Each runs in a process of its own, so that its peak memory is its own. Encoding the frames costs both the same; with
``--encoder`` it is measured beside them (ViT-S, untrained).

    python benchmarks/propagation.py --patch-sizes 16 8 --out results/bench-propagation.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from common import device_name, in_own_process, options, peak_gib, report, timed
from torch import Tensor

from flsl.config.video import DavisSettings
from flsl.video.affinity import propagate_labels

HEIGHT, WIDTH, CHANNELS, LABELS = 480, 854, 384, 3
SETTINGS = DavisSettings()


def nested_loop_mask(rows: int, columns: int, radius: int) -> Tensor:
    mask = np.zeros((rows, columns, rows, columns), np.float32)  # a tensor's elements would be set far more slowly
    for i in range(rows):
        for j in range(columns):
            for u in range(i - radius, i + radius + 1):
                for v in range(j - radius, j + radius + 1):
                    if 0 <= u < rows and 0 <= v < columns:
                        mask[i, j, u, v] = 1
    return torch.from_numpy(mask).view(rows * columns, rows * columns)


def dense(queries: Tensor, keys: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    frames, rows, columns, channels = keys.shape
    tokens = rows * columns
    affinity = torch.bmm(
        queries.view(1, tokens, channels).expand(frames, -1, -1), keys.view(frames, tokens, channels).mT
    )
    affinity = torch.exp(affinity / SETTINGS.temperature) * mask
    affinity = affinity.transpose(2, 1).reshape(frames * tokens, tokens)
    affinity[affinity < affinity.topk(SETTINGS.top_k, dim=0).values[-1]] = 0
    affinity = affinity / affinity.sum(0)
    return (labels.reshape(frames * tokens, -1).T @ affinity).T.view(rows, columns, -1)


def measure(form: str, patch_size: int, frames: int, device: torch.device) -> dict[str, float]:
    """Return seconds a frame and peak memory of one form, in this process."""
    rows, columns = HEIGHT // patch_size, WIDTH // patch_size
    context = 1 + SETTINGS.context_frames
    generator = torch.Generator().manual_seed(0)

    def features(*leading: int) -> Tensor:
        return F.normalize(torch.randn(*leading, rows, columns, CHANNELS, generator=generator), dim=-1).to(device)

    keys, labels = features(context), torch.rand(context, rows, columns, LABELS, generator=generator).to(device)
    queries = [features() for _ in range(frames + 1)]
    figures: dict[str, float] = {}
    step: Callable[[Tensor], Tensor]
    if form == "dense":
        start = time.perf_counter()
        mask = nested_loop_mask(rows, columns, SETTINGS.radius).to(device)
        figures["mask_seconds"] = time.perf_counter() - start

        def step(query: Tensor) -> Tensor:
            return dense(query, keys, labels, mask)

    else:

        def step(query: Tensor) -> Tensor:
            return propagate_labels(query, keys, labels, SETTINGS.radius, SETTINGS.top_k, SETTINGS.temperature)

    seconds = []
    for query in queries:  # the first one warms up
        start = time.perf_counter()
        result = step(query)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    figures["seconds_a_frame"] = statistics.median(seconds[1:])
    figures["frames_a_second"] = 1 / figures["seconds_a_frame"]
    figures["peak_gib"] = peak_gib(device)
    figures["checksum"] = float(result.double().square().sum())
    return figures


def measure_encoder(patch_size: int, device: torch.device) -> dict[str, float]:
    from flsl.model.backbone import load_backbone

    backbone = load_backbone(None, f"vit_small_patch{patch_size}_224", pretrained=False).to(device)
    images = torch.rand(1, 3, HEIGHT // patch_size * patch_size, WIDTH // patch_size * patch_size, device=device)
    with torch.inference_mode():
        timed(lambda: backbone.tokens(images), device)  # warms up
        seconds = statistics.median(timed(lambda: backbone.tokens(images), device) for _ in range(3))
    return {"seconds_a_frame": seconds, "peak_gib": peak_gib(device)}


def alone(form: str, patch_size: int, args: argparse.Namespace) -> dict[str, float]:
    common = ("--device", args.device, "--frames", args.frames, "--threads", args.threads)
    return in_own_process(__file__, "--form", form, "--patch-sizes", patch_size, *common)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[16, 8])
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--encoder", action="store_true", help="measure the encoder as well")
    parser.add_argument("--form", choices=["ours", "dense", "encoder"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.form == "encoder":
        print(json.dumps(measure_encoder(args.patch_sizes[0], device)))
        return
    if args.form:
        print(json.dumps(measure(args.form, args.patch_sizes[0], args.frames, device)))
        return
    figures: dict[str, object] = {"device": device_name(device)}
    for patch_size in args.patch_sizes:
        ours, common = (alone(form, patch_size, args) for form in ("ours", "dense"))
        # both must have computed the same labels
        assert abs(ours.pop("checksum") / common.pop("checksum") - 1) < 1e-4
        figures[f"patch {patch_size}"] = {
            "tokens": (HEIGHT // patch_size) * (WIDTH // patch_size),
            "ours": ours,
            "dense": common,
            "speed_ratio": common["seconds_a_frame"] / ours["seconds_a_frame"],
            "memory_ratio": common["peak_gib"] / ours["peak_gib"],
            **({"encoder": alone("encoder", patch_size, args)} if args.encoder else {}),
        }
    report(figures, args.out)


if __name__ == "__main__":
    main()

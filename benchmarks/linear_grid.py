"""What does a grid of linear probes cost beside a single one?

Compares, in one run, a training step of
- grid: all probes of the default grid (learning rates × feature choices) in ``flsl.probe.grid.LinearGrid``;
- one: a single ``nn.Linear`` with ``torch.optim.SGD`` on the largest feature choice;
- each: every probe of the grid as an ``nn.Linear`` of its own, one after the other on the same features,
with and without the encoder's forward pass that all of them need first (the goal: grid at most 2 × one, with it).

    python benchmarks/linear_grid.py --model vit_small_patch16_224 --size 224 --batch 64 --out results/bench-linear.json
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import device_name, measure, options, report
from torch import Tensor, nn

from flsl.config.probe import LinearSettings
from flsl.model.backbone import load_backbone
from flsl.probe.encoder import feature_function, mean_tokens
from flsl.probe.grid import LinearGrid


def plain(width: int, blocks: int, rate: float, classes: int, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """Return a step of one probe as it is usually written."""
    layer = nn.Linear(blocks * width, classes).to(device)
    optimiser = torch.optim.SGD(layer.parameters(), rate, momentum=0.9)

    def step(features: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(layer(features[:, features.shape[1] - blocks :].flatten(1)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device, settings = torch.device(args.device), LinearSettings()
    torch.manual_seed(0)
    backbone = load_backbone(None, args.model, args.size, pretrained=False).eval().to(device)
    last_n = max(settings.blocks)
    tokens = feature_function(backbone, device, "auto", last_n)
    crops = torch.randint(256, (args.batch, 3, args.size, args.size), dtype=torch.uint8, device=device)
    labels = torch.randint(args.classes, (args.batch,), device=device)
    # a copy: what the encoder gives is marked as made without gradients
    features = mean_tokens(tokens(crops)).clone()
    rates = settings.learning_rates
    grid = LinearGrid(backbone.width, settings.blocks, rates, args.classes, 10**6, device=device)
    one = plain(backbone.width, last_n, 0.01, args.classes, device)
    each = [plain(backbone.width, count, rate, args.classes, device) for count in settings.blocks for rate in rates]

    def encoded() -> Tensor:
        return mean_tokens(tokens(crops)).clone()

    def train_each(features: Tensor) -> None:
        for step in each:
            step(features, labels)

    def encode_and(step: Callable[[Tensor], object]) -> Callable[[], object]:
        return lambda: step(encoded())

    steps: dict[str, Callable[[Tensor], object]] = {
        "grid": lambda features: grid.step(features, labels),
        "one": lambda features: one(features, labels),
        "each": train_each,
    }
    with_encoder = measure({name: encode_and(step) for name, step in steps.items()}, args.repeats, device)
    alone = measure(
        {name: (lambda step=step: step(features)) for name, step in steps.items()}, max(20, args.repeats), device
    )
    figures = {
        "seconds_with_encoder": with_encoder,
        "seconds_alone": alone,
        "grid_over_one_with_encoder": with_encoder["grid"] / with_encoder["one"],
        "grid_over_one_alone": alone["grid"] / alone["one"],
        "grid_over_each_alone": alone["grid"] / alone["each"],
        "probes": len(grid.probes),
        "model": args.model,
        "size": args.size,
        "batch": args.batch,
        "classes": args.classes,
        "device": device_name(device),
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

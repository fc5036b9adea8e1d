"""How fast do a detector's masks become COCO's run-length codes?

Compares, for 100 detections an image as the detector gives them (28 × 28 probabilities and a box), in one process:
- baseline: torchvision's ``paste_masks_in_image`` into whole images, a threshold, and the encoder;
- ours: ``flsl.detect.predict.mask_codes``, which resizes within the boxes.
The codes must be equal.

    python benchmarks/mask_codes.py --out results/bench/mask_codes.json
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import computing_clock, measure, options, report
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from flsl.detect.predict import mask_codes

SIZES = ((480, 640), (1080, 1920))


def usual(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[Any]:
    pasted = paste_masks_in_image(masks, boxes, (height, width))[:, 0] >= 0.5
    codes = coco_mask.encode(np.asfortranarray(pasted.permute(1, 2, 0).numpy().astype(np.uint8)))
    return [{"size": code["size"], "counts": code["counts"].decode()} for code in codes]


def made(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return smooth masks (count, 1, 28, 28) and boxes (count, 4) whose sides spread as COCO's do."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (28, 28), mode="bicubic").clamp(0, 1)
    sides = torch.tensor([width, height]) * torch.rand(count, 2, generator=generator) ** 3
    corners = (torch.tensor([width, height]) - sides) * torch.rand(count, 2, generator=generator)
    return masks, torch.cat([corners, corners + sides], 1)


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for height, width in SIZES:
        given = (*made(args.detections, height, width), height, width)
        assert mask_codes(*given) == usual(*given)
        work = {"ours": lambda given=given: mask_codes(*given), "usual": lambda given=given: usual(*given)}
        device = torch.device("cpu")
        seconds = measure(work, args.repeats, device, clock=computing_clock(device))
        milliseconds = {name: round(1000 * value, 2) for name, value in seconds.items()}
        figures[f"{height} x {width}"] = {**milliseconds, "ratio": round(seconds["usual"] / seconds["ours"], 2)}
    report(figures, args.out)


if __name__ == "__main__":
    main()

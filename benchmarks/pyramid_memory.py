"""How much memory does one 800×1333 image with patches of 8 take in training, with and without the two savings?

    python benchmarks/pyramid_memory.py [--height 800 --width 1333 --depth 4]

Each case is a process of its own: ViT-S/8 blocks with the pyramid, forward and backward. Printed are the peak resident
memory above the start's, and its ratio to that of the plain case (attention multiplied out, activations kept).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import timm
import torch

from flsl.config.detect import DetectorSettings
from flsl.model.pyramid import ViTPyramid


def measure(height: int, width: int, depth: int, fused: bool, checkpointing: bool) -> None:
    vit = timm.create_model(
        "vit_small_patch8_224", depth=depth, class_token=False, global_pool="avg", fc_norm=False, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    for block in vit.blocks:
        block.attn.fused_attn = fused
    settings = DetectorSettings(pyramid="simple", activation_checkpointing=checkpointing, drop_path=0.0)
    model = ViTPyramid(vit, settings).train()
    image = torch.randn(1, 3, height, width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    sum(level.square().mean() for level in model(image).values()).backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(peak / 2**20, time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("height", 800), ("width", 1333), ("depth", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--case", type=int, nargs=2, metavar=("FUSED", "CHECKPOINTING"), help="one case, in this process"
    )
    args = parser.parse_args()
    sizes = args.height, args.width, args.depth
    if args.case:
        measure(*sizes, *map(bool, args.case))
        return
    plain = None
    for fused, checkpointing in ((False, False), (True, False), (True, True)):
        case = [f"--{name}={size}" for name, size in zip(("height", "width", "depth"), sizes, strict=True)]
        case += ["--case", str(int(fused)), str(int(checkpointing))]
        done = subprocess.run([sys.executable, __file__, *case], capture_output=True, text=True)
        attention, activations = "fused" if fused else "multiplied out", "recomputed" if checkpointing else "kept"
        name = f"attention {attention}, activations {activations}"
        if done.returncode:
            print(f"{name}: failed ({(done.stderr.splitlines() or ['killed'])[-1]})")
            continue
        gib, seconds = map(float, done.stdout.split())
        plain = plain or gib
        print(f"{name}: {gib:.2f} GiB ({gib / plain:.3f} of the first), {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""How many images a second does a CPU core prepare for training, against the usual way?

Compares, in one process on one core:
- baseline: the usual way, written plainly: Pillow decodes, torchvision's transforms make every view of every image by
  itself, as float32;
- ours: ``flsl.pretrain.loader``: decode, the teacher's crop as 8-bit pixels, and everybody's parameters; all other work
  is done in batches by the training device (and is not counted here).

Then: our parts one by one; a linear probe's crops; reading from files and from a pack; what reduced decoding of large
photographs would save; throughput and memory over some hundred batches with worker processes; how many images 16 cores
prepare, against what a GPU trains.

    python benchmarks/input_pipeline.py --out results/bench/input_pipeline.json
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import measure, options, report, timed
from photographs import draw, photographs
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as tv

from flsl.config.data import ImageFolderSettings
from flsl.config.pretrain import PretrainSettings
from flsl.data.check import check_data
from flsl.data.decode import read_bytes
from flsl.data.images import ImageSet
from flsl.data.order import Order
from flsl.data.packing import pack_images
from flsl.data.pixels import decode_pixels
from flsl.data.views import FLSLViews
from flsl.pretrain.loader import TeacherCrops, build_loader
from flsl.probe.loading import RandomCrop
from flsl.runtime.distributed import Process

GPU_CORES = 16
# multiply-adds of ViT-S/16 a 224-pixel image, of its 36-token local views, and of the head a token
_ENCODER, _LOCAL, _HEAD = 4.6e9, 0.8e9, 6.6e6
_GPU_FLOPS = 0.4 * 700e12  # 40 % of what an H100 reaches in large bf16 products


class Blur:
    """DINO's blur: Pillow's Gaussian of a random radius."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Baseline(Dataset[list[Tensor]]):
    """All of an image's views, made one by one."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        colours = [
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            tv.RandomGrayscale(0.2),
            tv.RandomChoice([Blur(0.5), tv.Compose([Blur(0.1), tv.RandomSolarize(128, 0.2)])]),
            tv.PILToTensor(),
            tv.ToDtype(torch.float32, scale=True),
            tv.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
        self.colours = tv.Compose(colours)
        self.teacher = tv.RandomResizedCrop(224, (0.8, 1.0), interpolation=InterpolationMode.BICUBIC)
        self.whole = tv.RandomResizedCrop(224, (0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
        self.local = tv.RandomResizedCrop(96, (0.05, 0.4), interpolation=InterpolationMode.BICUBIC)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        with self.images.path(index).open("rb") as stream:
            crop = self.teacher(Image.open(stream).convert("RGB"))
        students = [self.whole(crop), self.local(crop), self.local(crop)]
        return [self.colours(view) for view in (crop, *students)]


def prepare(images: ImageSet, views: FLSLViews, indices: list[int]) -> None:
    """What our workers and the main process do for a batch."""
    crops = TeacherCrops(images, views, seed=0)
    samples = [crops[0, index] for index in indices]
    views.batch(torch.stack([crop for crop, _ in samples]), np.stack([numbers for _, numbers in samples]))


def cpu_seconds(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return each candidate's median CPU seconds, taking turns: what a core gives, whoever shares the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(1 + repeats):
        for name, work in candidates.items():
            start = time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def parts(images: ImageSet, views: FLSLViews, indices: list[int], repeats: int) -> dict[str, float]:
    """Return the milliseconds an image of each of our parts, and of Pillow in the place of two of them."""
    paths = [images.path(index) for index in indices]
    data = [read_bytes(path) for path in paths]
    photos = [images.load(index) for index in indices]
    pixels = [decode_pixels(*item) for item in zip(data, paths, strict=True)]
    numbers = [views.draw(0, 0, index) for index in indices]
    crops = [views.crop(*item) for item in zip(pixels, numbers, strict=True)]
    work: dict[str, Callable[[], object]] = {
        "read": lambda: [read_bytes(path) for path in paths],
        "decode": lambda: [decode_pixels(*item) for item in zip(data, paths, strict=True)],
        "decode_by_pillow": lambda: [np.asarray(images.load(index)) for index in indices],
        "random_numbers": lambda: [views.draw(0, 0, index) for index in indices],
        "crop": lambda: [views.crop(*item) for item in zip(pixels, numbers, strict=True)],
        "resize_by_pillow": lambda: [photo.resize((224, 224), Image.Resampling.BICUBIC) for photo in photos],
        "batch": lambda: views.batch(torch.stack(crops), np.stack(numbers)),
    }
    return {name: round(1000 * s / len(indices), 4) for name, s in cpu_seconds(work, repeats).items()}


def probe_crops(images: ImageSet, indices: list[int], repeats: int) -> dict[str, float]:
    """Return the milliseconds an image of the linear probe's training crop, ours and by Pillow, decoding included."""
    ours = RandomCrop(0, 224, (0.08, 1.0), flip=True)
    usual = tv.Compose(
        [
            tv.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC),
            tv.RandomHorizontalFlip(),
            tv.PILToTensor(),
        ]
    )
    work: dict[str, Callable[[], object]] = {
        "ours": lambda: [ours(images.pixels(index), (0, index)) for index in indices],
        "usual": lambda: [usual(images.load(index)) for index in indices],
    }
    seconds = cpu_seconds(work, repeats)
    figures = {name: round(1000 * s / len(indices), 4) for name, s in seconds.items()}
    return {**figures, "ratio": round(seconds["usual"] / seconds["ours"], 2)}


def packed(images: ImageSet, indices: list[int], folder: Path, repeats: int) -> dict[str, float]:
    """Return the milliseconds an image of reading files and of reading a pack, from memory and from the disk."""
    manifest = folder / "manifest"
    check_data(ImageFolderSettings(root=str(images.root), val=None), manifest)
    pack_images(manifest, folder / "pack")
    pack = ImageSet.from_manifest(manifest, "train").pack
    assert pack is not None

    def forget(paths: Iterable[Path]) -> None:
        for path in paths:
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    paths = [images.path(index) for index in indices]
    work: dict[str, Callable[[], object]] = {
        "files": lambda: [read_bytes(path) for path in paths],
        "pack": lambda: [pack.read(index) for index in indices],
    }
    found = {f"{name}_in_memory": seconds for name, seconds in measure(work, repeats).items()}
    for name, forgotten in (("files", paths), ("pack", list((folder / "pack").glob("*.tar")))):
        seconds = []
        for _ in range(repeats):
            forget(forgotten)
            seconds.append(timed(work[name]))
        found[f"{name}_on_disk"] = statistics.median(seconds)
    return {name: round(1000 * value / len(indices), 4) for name, value in found.items()}


def reduced_decoding(repeats: int) -> dict[str, float]:
    """Return what decoding a large photograph at half its size would save (it is left out), and how it would change it.

    Changes are mean gray levels (of 255) of the 224-pixel picture, beside those of another resampling filter.
    """
    stored = BytesIO()
    draw(0, 2400, 1600).save(stored, "JPEG", quality=90)
    data = stored.getvalue()

    def half() -> Image.Image:
        photo = Image.open(BytesIO(data))
        photo.draft("RGB", (1200, 800))
        return photo.convert("RGB")

    whole = Image.fromarray(decode_pixels(data, "large").permute(1, 2, 0).numpy())
    found = cpu_seconds({"whole_ms": lambda: decode_pixels(data, "large"), "half_ms": half}, repeats)
    small, reduced, other = (
        np.asarray(photo.resize((224, 224), method), dtype=np.float32)
        for photo, method in (
            (whole, Image.Resampling.BICUBIC),
            (half(), Image.Resampling.BICUBIC),
            (whole, Image.Resampling.BILINEAR),
        )
    )
    return {
        **{name: round(1000 * value, 2) for name, value in found.items()},
        "half_levels": round(float(np.abs(reduced - small).mean()), 2),
        "bilinear_levels": round(float(np.abs(other - small).mean()), 2),
    }


def resident_mb() -> float:
    """Return the memory of this process and its children that is theirs alone, in MB."""
    own = Path("/proc/self")
    children = (own / f"task/{own.resolve().name}/children").read_text().split()
    total = 0
    for process in (own.resolve().name, *children):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1])
    return total / 1024


def stream(batches: DataLoader[Any], steps: int, marks: int) -> tuple[float, list[float]]:
    """Return images a second after the first ``marks`` steps, and the memory at every further ``marks`` steps."""
    memory: list[float] = []
    seen = 0
    started = 0.0
    for step, batch in enumerate(batches, 1):
        if step > marks:
            seen += len(batch[0])
        if step % marks == 0:
            started = started or time.perf_counter()
            memory.append(round(resident_mb(), 1))
        if step == steps:
            break
    return seen / (time.perf_counter() - started), memory


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--images", type=int, default=110, help="made photographs, where FLSL_REAL_DATA is not set")
    parser.add_argument("--chunk", type=int, default=64, help="images a timed piece")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="batches read with workers")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("results/benchmarks/photographs"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    images = photographs(args.folder, args.images)
    settings = PretrainSettings()
    views = FLSLViews(settings, depth=12)
    # evenly over the set, so that large photographs have their share
    indices = np.linspace(0, len(images) - 1, args.chunk).astype(int).tolist()
    baseline = Baseline(images)
    collate = torch.utils.data.default_collate
    seconds = cpu_seconds(
        {
            "baseline": lambda: collate([baseline[index] for index in indices]),
            "ours": lambda: prepare(images, views, indices),
        },
        args.repeats,
    )
    per_core = {name: args.chunk / value for name, value in seconds.items()}

    process = Process(0, 0, 1, torch.device("cpu"))
    order = Order(len(images), args.batch, 1, 10**6, 0, process)
    loader = build_loader(images, views, 0, order, args.workers, process.device)
    rate, memory = stream(loader, args.steps, args.steps // 10)
    steps = max(10, args.steps // 10)
    drawn = RandomSampler(baseline, replacement=True, num_samples=steps * args.batch)
    usual = DataLoader(baseline, args.batch, sampler=drawn, num_workers=args.workers)
    usual_rate, _ = stream(usual, steps, steps // 5)

    macs = _ENCODER + settings.views.local_crops * _LOCAL + (49 + 2 * 9) * _HEAD
    flops = 2 * (3 * macs + _ENCODER + (49 + 2 * 9) * _HEAD)
    gpu = _GPU_FLOPS / flops
    figures = {
        "photographs": len(images),
        "median_kb": round(
            statistics.median(path.stat().st_size for path in map(images.path, range(len(images)))) / 1e3
        ),
        "images_per_second_per_core": {name: round(value, 1) for name, value in per_core.items()},
        "ours_over_baseline": round(per_core["ours"] / per_core["baseline"], 2),
        "milliseconds_an_image": parts(images, views, indices, args.repeats),
        "milliseconds_a_linear_probes_crop": probe_crops(images, indices, args.repeats),
        "milliseconds_to_read_an_image": packed(images, indices, args.folder, args.repeats),
        "photograph_of_2400_x_1600": reduced_decoding(args.repeats),
        f"images_per_second_with_{args.workers}_workers": {"baseline": round(usual_rate, 1), "ours": round(rate, 1)},
        f"private_mb_every_{args.steps // 10}_batches": memory,
        "growth_kb_a_batch": round(1024 * (memory[-1] - memory[4]) / (args.steps / 2), 2),
        "gpu_estimate": {
            "arithmetic": f"0.4 x 700 TFLOP/s / {flops / 1e9:.0f} GFLOP an image (ViT-S/16; student 3 x, teacher 1 x)",
            "images_per_second": round(gpu),
            f"ours_on_{GPU_CORES}_cores": round(GPU_CORES * per_core["ours"]),
            f"baseline_on_{GPU_CORES}_cores": round(GPU_CORES * per_core["baseline"]),
            "cores_needed": round(gpu / per_core["ours"], 1),
        },
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

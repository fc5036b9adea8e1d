"""What do ranks that train together send, how often, and how much of it is hidden behind the backward pass?

Starts gloo ranks on this machine (NCCL ones where there is a GPU for each) that train with
``flsl.pretrain.step.TrainingStep``, and counts every all-reduce of a step: calls and bytes of the gradients' buckets,
and those of the losses and of batch norm. Compares in one run, in turns:
- shared: a step that averages the gradients while the backward pass runs;
- alone: the same step without that (``no_sync``);
- sent: the same buckets one after the other, with nothing to hide behind;
for several sizes of buckets, and with ``static_graph``. hidden is 1 - (shared - alone) / sent.

    python benchmarks/scaling.py --recipe S/16 --batch 1 --out results/bench-scaling.json
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from common import options, report, timed
from torch.nn.parallel import DistributedDataParallel
from train_step import RECIPES, STEPS, made_batch

from flsl.config.compute import ComputeSettings
from flsl.pretrain import step as step_module
from flsl.pretrain.schedules import values_at
from flsl.pretrain.step import TrainingStep
from flsl.runtime import distributed

VARIANTS: dict[str, dict[str, Any]] = {
    "25 MB (the default)": {},
    "5 MB": {"bucket_cap_mb": 5},
    "100 MB": {"bucket_cap_mb": 100},
    "25 MB, static graph": {"static_graph": True},
}


class Counted:
    """Counts calls and bytes of ``torch.distributed.all_reduce`` in the package, while it is entered."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __enter__(self) -> Counted:
        self._plain = dist.all_reduce

        def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.calls["calls"] += 1
            self.calls["bytes"] += tensor.nbytes
            return self._plain(tensor, *args, **kwargs)

        dist.all_reduce = counting
        return self

    def __exit__(self, *error: object) -> None:
        dist.all_reduce = self._plain


def rank_main(rank: int, port: int, args: dict[str, Any], out: Path) -> None:
    """Measure on one rank; the first one writes the figures."""
    world = args["ranks"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    device = distributed.start(args["device"]).device
    figures = {name: variant(name, args, device) for name in VARIANTS}
    figures["assignments"] = mean_assignment(RECIPES[args["recipe"]].prototypes, device)
    if rank == 0:
        out.write_text(json.dumps(figures))
    distributed.finish()


def variant(name: str, args: dict[str, Any], device: torch.device) -> dict[str, Any]:
    settings = RECIPES[args["recipe"]].model_copy(update={"precision": args["precision"]})
    if args["batch_norm"]:
        settings = settings.model_copy(update={"head": settings.head.model_copy(update={"batch_norm": True})})

    class Wrapped(DistributedDataParallel):
        def __init__(self, module: torch.nn.Module, **others: Any) -> None:
            super().__init__(module, **others, **VARIANTS[name])

    step_module.DistributedDataParallel = Wrapped
    torch.manual_seed(0)
    step = TrainingStep(settings, ComputeSettings(), device)
    buckets: list[int] = []

    def hook(state, bucket):  # torch refuses annotations that are strings
        buckets.append(bucket.buffer().nbytes)
        mean = bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(mean, async_op=True).get_future().then(lambda done: done.value()[0])

    step._model.register_comm_hook(None, hook)
    batch = made_batch(step, settings, dist.get_rank(), args["batch"])
    values = values_at(STEPS // 2, settings, STEPS)

    def train(shared: bool) -> None:
        step.accumulate(batch, values, 0, last=shared)
        step.optimiser.zero_grad()

    # buckets are ordered anew after the first step
    train(True)
    train(True)
    buckets.clear()
    with Counted() as counted:
        train(True)
    sizes = list(buckets)
    flat = [torch.zeros(size // 4, device=device) for size in sizes]

    def send() -> None:
        for bucket in flat:
            dist.all_reduce(bucket)

    seconds: dict[str, list[float]] = {"shared": [], "alone": [], "sent": []}
    for _ in range(args["repeats"]):
        for kind, work in (("shared", lambda: train(True)), ("alone", lambda: train(False)), ("sent", send)):
            if kind == "alone" and "static_graph" in VARIANTS[name]:
                continue  # such a graph must be the same in every step
            dist.barrier()
            seconds[kind].append(timed(work, device))
    medians = {kind: statistics.median(times) for kind, times in seconds.items() if times}
    hidden = {}
    if "alone" in medians:
        hidden["hidden"] = 1 - (medians["shared"] - medians["alone"]) / medians["sent"]
    return {
        "seconds": medians,
        **hidden,
        "gradients": {"calls": len(sizes), "bytes": sum(sizes)},
        "losses_and_batch_norm": {
            "calls": counted.calls["calls"] - len(sizes),
            "bytes": counted.calls["bytes"] - sum(sizes),
        },
    }


def mean_assignment(prototypes: int, device: torch.device) -> dict[str, float]:
    """Return the seconds of the one all-reduce that volume maximisation adds."""
    mean = torch.zeros(prototypes, device=device)
    seconds = []
    for _ in range(50):
        dist.barrier()
        seconds.append(timed(lambda: distributed.mean_over_ranks(mean), device))
    return {"bytes": mean.nbytes, "seconds": statistics.median(seconds)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--recipe", choices=RECIPES, default="S/16")
    parser.add_argument("--batch", type=int, default=1, help="images a rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-norm", action="store_true", help="in the head")
    args = parser.parse_args()
    if args.device == "cuda" and torch.cuda.device_count() < args.ranks:
        sys.exit(f"--ranks {args.ranks}: there are {torch.cuda.device_count()} GPUs; use --device cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {**vars(args), "precision": "bf16" if args.device == "cuda" else "float32"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        torch.multiprocessing.spawn(rank_main, (port, asked, out), nprocs=args.ranks)
        figures = json.loads(out.read_text())
    report({"ranks": args.ranks, "recipe": args.recipe, "batch_a_rank": args.batch, **figures}, args.out)


if __name__ == "__main__":
    main()

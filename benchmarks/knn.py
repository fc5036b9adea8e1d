"""How much does exact, tied-settled, memory-bounded k-NN cost beyond the bare matrix product and top-k?

Compares, in one run on random unit features:
- ours: ``flsl.model.neighbours.knn_accuracy`` (search, ties, merging, votes, ranking);
- bare: the same chunks, but only ``queries @ bank.T`` and ``topk`` of each, no more (the goal: at most 1.3 × this);
- whole-bank: the loop of DINO's protocol as it is commonly written: a chunk of queries against the whole bank, one-hot
  votes, and a sort of all classes; its memory grows with the bank.

    python benchmarks/knn.py --queries 2000 --bank 200000 --k 200 --out results/bench-knn.json
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import device_name, measure, options, report
from torch import Tensor

from flsl.model.neighbours import _chunk_sizes, knn_accuracy


def bare(queries: Tensor, bank: Tensor, k: int, memory_mb: int) -> None:
    rows, columns = _chunk_sizes(len(queries), len(bank), bank.shape[1], memory_mb)
    for keys in bank.split(columns):
        for asked in queries.split(rows):
            (asked @ keys.T).topk(min(k, len(keys)), dim=1)


def whole_bank(
    queries: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, classes: int, k: int, chunks: int = 100
) -> float:
    size = max(1, len(queries) // chunks)
    right = 0
    for asked, named in zip(queries.split(size), labels.split(size), strict=True):
        similarities, indices = torch.mm(asked, bank.T).topk(k, dim=1)
        ballots = F.one_hot(bank_labels[indices], classes).to(similarities.dtype)
        votes = (ballots * (similarities / 0.07).exp()[..., None]).sum(1)
        ranked = votes.sort(1, descending=True).indices
        right += int((ranked[:, 0] == named).sum())
    return 100 * right / len(queries)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-whole-bank", action="store_true", help="leave the slow loop out")
    args = parser.parse_args()
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(0)

    def unit_rows(count: int) -> Tensor:
        return F.normalize(torch.randn(count, args.width, generator=generator), dim=1).to(device)

    bank, queries = unit_rows(args.bank), unit_rows(args.queries)
    bank_labels = torch.randint(args.classes, (args.bank,), generator=generator).to(device)
    labels = torch.randint(args.classes, (args.queries,), generator=generator).to(device)
    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: knn_accuracy(
            queries, labels, bank, bank_labels, args.classes, [args.k], memory_mb=args.memory_mb
        ),
        "bare": lambda: bare(queries, bank, args.k, args.memory_mb),
    }
    if not args.no_whole_bank:
        candidates["whole_bank"] = lambda: whole_bank(queries, labels, bank, bank_labels, args.classes, args.k)
    seconds = measure(candidates, args.repeats, device)
    figures = {
        "seconds": seconds,
        **{f"ours_over_{name}": seconds["ours"] / seconds[name] for name in list(seconds)[1:]},
        "queries": args.queries,
        "bank": args.bank,
        "width": args.width,
        "classes": args.classes,
        "k": args.k,
        "memory_mb": args.memory_mb,
        "device": device_name(device),
    }
    report(figures, args.out)


if __name__ == "__main__":
    main()

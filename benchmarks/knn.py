"""How much does exact, tied-settled, memory-bounded k-NN cost beyond the bare matrix product and top-k?

Compares, in one run on random unit features:
- ours: ``flsl.model.neighbours.knn_accuracy`` (search, ties, merging, votes, ranking);
- bare: the same chunks, but only ``queries @ bank.T`` and ``topk`` of each, no more (the goal: at most 1.3 × this);
- whole-bank: the loop of DINO's protocol as it is commonly written: a chunk of queries against the whole bank, one-hot
  votes, and a sort of all classes; its memory grows with the bank.

At ImageNet's size all 50,000 queries take long on a CPU. With two counts of queries the time of all is extrapolated
along the line through both: what is paid once a bank (normalising it) and what is paid a query. The memory is that of
ours beyond the features themselves, to be compared with --memory-mb.

    python benchmarks/knn.py --queries 2000 --bank 200000 --k 200 --out results/bench-knn.json
    python benchmarks/knn.py --bank 1281167 --queries 256 768 --all-queries 50000 --repeats 2
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import computing_clock, device_name, measure, options, peak_gib, report
from torch import Tensor

from flsl.model.neighbours import _chunk_sizes, knn_accuracy


def bare(queries: Tensor, bank: Tensor, k: int, memory_mb: int) -> None:
    rows, columns = _chunk_sizes(len(queries), len(bank), bank.shape[1], memory_mb)
    for keys in bank.split(columns):
        for asked in queries.split(rows):
            (asked @ keys.T).topk(min(k, len(keys)), dim=1)


def whole_bank(
    queries: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, classes: int, k: int, size: int = 500
) -> float:
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
    parser.add_argument("--queries", type=int, nargs="+", default=[1000])
    parser.add_argument("--all-queries", type=int, default=50_000, help="to extrapolate to, from two counts")
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
        rows = torch.randn(count, args.width, generator=generator)
        return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True)).to(device)

    bank, all_queries = unit_rows(args.bank), unit_rows(max(args.queries))
    bank_labels = torch.randint(args.classes, (args.bank,), generator=generator).to(device)
    all_labels = torch.randint(args.classes, (max(args.queries),), generator=generator).to(device)

    def candidates(count: int) -> dict[str, Callable[[], object]]:
        queries, labels = all_queries[:count], all_labels[:count]
        of_all = (bank, bank_labels, args.classes)
        found: dict[str, Callable[[], object]] = {
            "ours": lambda: knn_accuracy(queries, labels, *of_all, [args.k], memory_mb=args.memory_mb),
            "bare": lambda: bare(queries, bank, args.k, args.memory_mb),
        }
        if not args.no_whole_bank:
            found["whole_bank"] = lambda: whole_bank(queries, labels, *of_all, args.k)
        return found

    # first of all, while the peak is still that of the features
    before = peak_gib(device)
    knn_accuracy(all_queries, all_labels, bank, bank_labels, args.classes, [args.k], memory_mb=args.memory_mb)
    memory = peak_gib(device) - before
    clock = computing_clock(device)
    measured = {count: measure(candidates(count), args.repeats, device, clock=clock) for count in sorted(args.queries)}
    seconds = measured[max(measured)]
    ratios = {f"ours_over_{name}": seconds["ours"] / seconds[name] for name in list(seconds)[1:]}
    whole = {}
    if len(measured) == 2:
        (few, fewer), (many, more) = measured.items()
        slopes = {name: (more[name] - fewer[name]) / (many - few) for name in more}
        whole = {name: more[name] + (args.all_queries - many) * slope for name, slope in slopes.items()}
        ratios |= {f"ours_over_{name}_at_all": whole["ours"] / whole[name] for name in list(whole)[1:]}
    figures = {
        "seconds": measured,
        **({"extrapolated_seconds": whole, "all_queries": args.all_queries} if whole else {}),
        **ratios,
        "memory_mib_beyond_features": 1024 * memory,
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

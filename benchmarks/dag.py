"""How long does `snakemake -n` take on a sweep of many runs?

Compares, in one run and by the seconds that the process computed (others' work on the machine does not count):
- one: an experiment of one run;
- fresh: an ablation of many runs of which nothing is made yet;
- finished: the same with every file there, so that there is nothing to do.

    python benchmarks/dag.py --runs 200 --out results/bench-dag.json
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import options, report

ROOT = Path(__file__).resolve().parents[1]


def experiment(project: str, runs: int) -> dict[str, Any]:
    """Return an experiment of probes and videos, with ``runs`` runs."""
    settings: dict[str, Any] = {
        "project": project,
        "data": {
            "scenes": {"root": "scenes"},
            "images": {"root": "scenes/images", "boxes": "boxes.csv"},
            "davis": {"root": "scenes/davis"},
        },
        "stages": ["knn", "linear", "aligned_knn", "davis"],
    }
    if runs > 1:
        grid = {"pretrain.prototypes": [2**n for n in range(4, 14)]}
        settings["ablations"] = {"sweep": {"grid": grid, "seeds": list(range(1, 1 + (runs - 1) // 10))}}
    return settings


def snakemake(folder: Path, settings: dict[str, Any], *arguments: str) -> tuple[float, float, str]:
    """Return the seconds that snakemake took and computed, and what it said."""
    config = folder / f"{settings['project']}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(config), *arguments]
    wall, before = time.perf_counter(), os.times()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(done.stdout[-3000:])
    computed = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, computed, done.stdout


def pretend(folder: Path, settings: dict[str, Any]) -> None:
    """Make every file that there should be, and let snakemake take them for made."""
    rows = snakemake(folder, settings, "--summary")[2].splitlines()
    for row in rows:
        name, *others = row.split("\t")
        path = folder / name
        if len(others) < 4 or name == "output_file":
            continue
        if path.name in ("sheets", "pages"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n", encoding="utf-8")
    snakemake(folder, settings, "--touch", "--cores", "1")


def main() -> None:
    parser = options(__doc__, device=False)
    parser.add_argument("--runs", type=int, default=201)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, many = experiment("one", 1), experiment("many", args.runs)
        snakemake(folder, one, "-n")  # warms the disk's cache
        seconds = {"one": snakemake(folder, one, "-n")[:2]}
        *fresh, said = snakemake(folder, many, "-n")
        seconds["fresh"] = (fresh[0], fresh[1])
        jobs = re.search(r"^total\s+(\d+)$", said, flags=re.MULTILINE)
        pretend(folder, many)
        *finished, said = snakemake(folder, many, "-n")
        seconds["finished"] = (finished[0], finished[1])
    report(
        {
            "runs": args.runs,
            "jobs": int(jobs[1]) if jobs else 0,
            "nothing_to_do_when_finished": "Nothing to be done" in said,
            "seconds": {name: passed for name, (passed, _) in seconds.items()},
            "computing_seconds": {name: computed for name, (_, computed) in seconds.items()},
            "fresh_over_one": seconds["fresh"][1] / seconds["one"][1],
            "finished_over_one": seconds["finished"][1] / seconds["one"][1],
        },
        args.out,
    )


if __name__ == "__main__":
    main()

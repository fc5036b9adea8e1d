"""A tiny experiment, and snakemake on it, for the tests of the workflow."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from tiny import PRETRAIN

ROOT = Path(__file__).parents[2]
CONFIG = {
    "project": "tiny",
    "data": {
        "scenes": {
            "root": "scenes",
            "image_size": 32,
            "classes": 2,
            "train_images": 24,
            "val_images": 8,
            "coco_train_images": 0,
            "uavdt_sequences": 0,
            "davis_sequences": 0,
        },
        "images": {"root": "scenes/images", "boxes": "boxes.csv"},
    },
    "stages": ["knn", "linear", "aligned_knn"],
    "pretrain": PRETRAIN | {"epochs": 1, "batch_size": 8},
    "features": {"resize": 32, "crop": 32},
    "knn": {"k": [3]},
    "linear": {"learning_rates": [0.1], "blocks": [1], "epochs": 1, "batch_size": 8},
    "aligned_knn": {"k": [3]},
    "compute": {"workers": 0, "threads": 1},
    "tracking": {"live": False},
}


def snakemake(place: Path, *arguments: str, config: dict[str, object] = CONFIG) -> subprocess.CompletedProcess[str]:
    (place / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--directory", str(place), "--configfile", str(place / "config.yaml"), "--cores", "2", *arguments]
    return subprocess.run(command, cwd=place, text=True, capture_output=True)


def planned(place: Path, config: dict[str, object] = CONFIG) -> dict[str, int]:
    """The rules that a dry run would run, and how often."""
    return planned_of(snakemake(place, "--dry-run", config=config))


def planned_of(result: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The rules that a dry run has said it would run, and how often."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    if "Nothing to be done" in output:
        return {}
    table = output[output.index("Job stats:") :].split("\n\n")[0]
    rows = re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE)
    counts = {rule: int(count) for rule, count in rows}
    assert counts.pop("total") == sum(counts.values())
    return counts


def changed(**sections: object) -> dict[str, object]:
    """The config with some settings changed, section by section."""
    merged: dict[str, object] = dict(CONFIG)
    for name, value in sections.items():
        old = merged.get(name)
        merged[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return merged

"""`flsl submit` on one machine without a cluster: a later stage of a pretraining, as `flsl pretrain` makes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import flsl
from tiny import COMPUTE, PRETRAIN, write_images

CONFIG = {
    "project": "tiny",
    "data": {"images": {"root": "images"}},
    "pretrain": PRETRAIN,
    "runs": {"first": {}, "later": {"pretrain.previous": "first"}},
    "cluster": {"kind": "local", "poll_seconds": 1},
    "compute": COMPUTE,
    "tracking": {"live": False},
}
WEIGHTS = "backbone.safetensors"


@pytest.mark.slow
def test_a_later_stage_is_submitted_found_again_and_the_same(tmp_path: Path) -> None:
    write_images(tmp_path / "images", val=4)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    flsl(tmp_path, "data", "check", "images", "--config", "config.yaml", "--out", "data")
    common = ["--config", "config.yaml", "--images", "data"]
    flsl(tmp_path, "pretrain", *common, "--run", "first", "--out", "first")
    later = [*common, "--run", "later", "--previous", f"first/{WEIGHTS}"]
    flsl(tmp_path, "pretrain", *later, "--out", "later")

    missing = flsl(tmp_path, "submit", "pretrain", *common, "--run", "later", "--out", "job", check=False)
    assert missing.returncode == 2
    assert "pretrain.previous" in missing.stderr
    assert not (tmp_path / "job").exists()
    done = flsl(tmp_path, "submit", "pretrain", *later, "--out", "job")
    assert "1 process on this machine" in done.stdout + done.stderr
    again = flsl(tmp_path, "submit", "pretrain", *later, "--out", "job")
    assert "submitted job" not in again.stdout + again.stderr
    assert (tmp_path / "job" / WEIGHTS).read_bytes() == (tmp_path / "later" / WEIGHTS).read_bytes()
    inputs = json.loads((tmp_path / "job/metrics.json").read_text())["provenance"]["inputs"]
    assert any(name.endswith(f"first/{WEIGHTS}") for name in inputs)

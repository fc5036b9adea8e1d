"""Detection in the DAG: each data set's training reruns for its own settings alone, and a killed one goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RUN = "results/dag/runs/untrained"
TARGETS = [f"{RUN}/coco/metrics.json", f"{RUN}/uavdt/metrics.json"]
SIZES = {
    "epochs": 1, "milestones": [], "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1, "precision": "float32",
    "short_sides": [64], "long_side": 128, "crop": 0.0, "crop_short_sides": [64], "crop_range": [32, 64],
    "test_short_side": 64, "images_shown": 1,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "project": "dag",
    "stages": ["coco", "uavdt"],
    "data": {
        "scenes": {
            "root": "scenes", "image_size": 32, "classes": 2, "train_images": 4, "val_images": 4, "davis_sequences": 0,
            "coco_size": 64, "coco_train_images": 4, "coco_val_images": 2,
            "uavdt_size": 128, "uavdt_sequences": 2, "uavdt_frames": 2,
        },
        "images": {"root": "scenes/images"},
        "coco": {"root": "scenes/coco"},
        "uavdt": {"root": "scenes/uavdt"},
    },
    "pretrain": {
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "width": 16, "depth": 2, "heads": 2},
        "views": {"teacher_size": 32, "global_size": 32, "local_size": 16},
    },
    "detection": {
        "model": {
            "channels": 8, "anchor_sizes": [8, 16, 24, 32, 48], "box_hidden": 16, "mask_convs": 1, "regions": 8,
            "anchors": 16, "proposals_train": 20, "proposals_test": 20, "score_threshold": 0.01,
        },
        "coco": SIZES,
        "uavdt": SIZES,
    },
    "compute": {"workers": 0, "threads": 1, "device": "cpu"},
    "tracking": {"live": False},
}  # fmt: skip


def command(place: Path, *arguments: str, **detection: Any) -> list[str]:
    settings = {**CONFIG, "detection": {**CONFIG["detection"], **detection}}
    settings |= {name: detection[name] for name in ("compute", "pretrain", "seed") if name in detection}
    settings["detection"] = {
        k: v for k, v in settings["detection"].items() if k in ("engine", "model", "coco", "uavdt")
    }
    (place / "config.yaml").write_text(yaml.safe_dump(settings))
    start = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), "--cores", "2"]
    return [*start, "--directory", str(place), *arguments, "--configfile", str(place / "config.yaml")]


def planned(place: Path, **changes: Any) -> dict[str, int]:
    """The rules that a dry run would run, and how often."""
    done = subprocess.run(
        command(place, "--dry-run", *TARGETS, **changes), cwd=place, capture_output=True, text=True, timeout=300
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    if "Nothing to be done" in output:
        return {}
    table = output[output.index("Job stats:") :].split("\n\n")[0]
    return {
        rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE) if rule != "total"
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny experiment; tests must leave it as it is."""
    place = tmp_path_factory.mktemp("detect")
    assert planned(place) == {"scenes": 1, "data_check": 2, "baseline": 1, "coco": 1, "uavdt": 1}
    done = subprocess.run(command(place, *TARGETS), cwd=place, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.slow
def test_the_rules_make_what_they_promise(finished: Path) -> None:
    for stage, more in (("coco", []), ("uavdt", ["test.json"])):
        folder = finished / RUN / stage
        for name in ("model.pth", "detections.json", "history.jsonl", *more):
            assert (folder / name).stat().st_size
        assert list(folder.glob("prediction-*.png"))
    record = json.loads((finished / RUN / "coco/metrics.json").read_text())
    assert {"coco/bbox/AP", "coco/segm/AP"} <= record["metrics"].keys()
    assert {"bbox", "segm"} == record["classes"].keys()
    assert planned(finished) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "rerun"),
    [
        ({"coco": {**SIZES, "learning_rate": 2e-3}}, {"coco": 1}),
        ({"uavdt": {**SIZES, "stride": 2}}, {"uavdt": 1}),
        ({"model": {**CONFIG["detection"]["model"], "channels": 16}}, {"coco": 1, "uavdt": 1}),
        ({"compute": {**CONFIG["compute"], "workers": 1, "checkpoint_minutes": 3}}, {}),
        ({"pretrain": {**CONFIG["pretrain"], "epochs": 7}}, {}),
    ],
)
def test_settings_rerun_the_stages_that_they_concern(finished: Path, changes: Any, rerun: dict[str, int]) -> None:
    assert planned(finished, **changes) == rerun


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(finished: Path) -> None:
    """SIGKILL takes snakemake and the stage at once, as a lost node does."""
    changes = {"coco": {**SIZES, "epochs": 60}, "compute": {**CONFIG["compute"], "checkpoint_steps": 1}}
    folder, target = finished / RUN / "coco", TARGETS[0]
    workflow = subprocess.Popen(
        command(finished, target, **changes), cwd=finished, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    # the finished training made two steps
    while not any(int(path.stem[5:]) > 4 for path in (folder / "checkpoints").glob("step-*.pth")):
        assert workflow.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(workflow.pid, signal.SIGKILL)
    workflow.wait()
    assert not (folder / "metrics.json").exists()
    for arguments in (["--unlock"], ["--rerun-incomplete", target]):
        done = subprocess.run(
            command(finished, *arguments, **changes), cwd=finished, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "going on after step" in (finished / "results/dag/logs/untrained/coco.log").read_text()
    steps = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 120

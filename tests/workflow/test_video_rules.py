"""DAVIS in the DAG: a job for a few sequences, one that fails is made again alone, none is lost silently."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
METRICS = "results/dag/runs/untrained/davis/metrics.json"


def write_davis(root, names, frames=4):
    rng = np.random.default_rng(0)
    for name in names:
        for index in range(frames):
            labels = np.zeros((48, 64), np.uint8)
            labels[10 + index : 30 + index, 10:40] = 1
            for kind, suffix, pixels in (
                ("Annotations", "png", labels),
                ("JPEGImages", "jpg", rng.integers(0, 255, (48, 64, 3), np.uint8)),
            ):
                path = root / kind / "480p" / name / f"{index:05d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(names))


@pytest.fixture
def project(tmp_path):
    write_davis(tmp_path / "davis", ["a", "b", "c"])
    settings = {
        "project": "dag",
        "stages": ["davis"],
        "data": {"images": {"root": "images"}, "davis": {"root": "davis"}},
        "pretrain": {
            "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "width": 32, "depth": 1, "heads": 2},
            "views": {"teacher_size": 48, "global_size": 48, "local_size": 24},
        },
        "davis": {"size": 48, "multiple": 8, "sequences_per_job": 2},
        "compute": {"device": "cpu", "workers": 0},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def change(project, **davis):
    settings = yaml.safe_load((project / "config.yaml").read_text())
    settings["davis"].update(davis)
    (project / "config.yaml").write_text(yaml.safe_dump(settings))


def snakemake(project, *arguments):
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--directory", str(project), "--cores", "2", *arguments, "--configfile", str(project / "config.yaml")]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=500)


def jobs(output):
    """How often each rule is in the table of jobs."""
    table = output.split("Job stats:")[1].split("\n\n")[0]
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


@pytest.mark.parametrize(("size", "expected"), [(1, 3), (2, 2), (10, 1)])
def test_a_job_takes_as_many_sequences_as_the_setting_says(project, size, expected):
    change(project, sequences_per_job=size)
    found = snakemake(project, "--dry-run", METRICS)
    assert found.returncode == 0, found.stderr
    planned = jobs(found.stdout + found.stderr)
    assert (planned["davis_propagate"], planned["davis_evaluate"]) == (expected, 1)


@pytest.mark.slow
def test_a_sequence_that_failed_is_made_again_alone_and_is_never_lost(project):
    (project / "davis/ImageSets/2017/all.txt").write_text("a\nb\nc\n")
    frame = project / "davis/JPEGImages/480p/b/00002.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(whole[:40])
    found = snakemake(project, METRICS)
    assert found.returncode != 0
    masks = project / "results/dag/runs/untrained/davis/masks"
    assert not (project / METRICS).exists()
    # the job of a and b failed at b, after a; the job of c was not kept back
    assert sorted(path.name for path in masks.iterdir()) == ["a", "c"]
    assert "00002.jpg" in (project / "results/dag/logs/untrained/davis/a+1.log").read_text()
    made = {name: (masks / name / "00001.png").stat().st_mtime_ns for name in ("a", "c")}

    frame.write_bytes(whole)
    found = snakemake(project, METRICS)
    assert found.returncode == 0, found.stderr
    assert made == {name: (masks / name / "00001.png").stat().st_mtime_ns for name in ("a", "c")}
    record = json.loads((project / METRICS).read_text())
    assert [row["sequence"] for row in record["sequences"]] == ["a", "b", "c"]
    sheets = (project / METRICS).with_name("sheets")
    assert sorted(path.name for path in sheets.glob("*.jpg")) == ["a.jpg", "b.jpg", "c.jpg"]

    # batches change speed, not results; the radius changes them
    change(project, batch_size=2)
    assert jobs_left(project) == 0
    # nor does the split that a sequence belongs to; the figures are of another one
    change(project, split="all")
    assert jobs_left(project) == 0
    assert jobs_left(project, "davis_evaluate") == 1
    change(project, radius=3)
    assert jobs_left(project) == 2


def jobs_left(project, rule="davis_propagate"):
    found = snakemake(project, "--dry-run", METRICS)
    assert found.returncode == 0, found.stderr
    output = found.stdout + found.stderr
    return jobs(output).get(rule, 0) if "Job stats:" in output else 0

"""Pretraining as people run it: interrupted, resumed, on several ranks, on bad data; all through the command line."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from flsl.runtime.checkpoint import steps as checkpoints
from flsl.runtime.history import read_history

IMAGES, BATCH, EPOCHS = 20, 4, 3
STEPS = IMAGES // BATCH * EPOCHS
TIMES = ("time", "images_per_second", "data_wait_percent")
CONFIG = {
    "project": "test",
    "seed": 7,
    "pretrain": {
        "encoder": {
            "name": "vit_tiny_patch16_224",
            "patch_size": 8,
            "width": 32,
            "depth": 2,
            "heads": 2,
            "drop_path": 0.2,
        },
        "views": {"teacher_size": 32, "global_size": 32, "local_size": 16},
        "head": {"hidden": 16, "bottleneck": 8, "batch_norm": True},
        "prototypes": 12,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "freeze_prototypes_epochs": 0.5,
        "precision": "float32",
        "centering": True,
        "online_knn_every": 2,
    },
    "compute": {"workers": 0, "threads": 1, "device": "cpu", "log_every": 2, "checkpoint_steps": 1},
    "tracking": {"live": False},
}


def run_flsl(
    *arguments: object, ranks: int = 1, check: bool = True, **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, ranks=ranks), text=True, capture_output=True, check=check, **options)  # type: ignore[call-overload, no-any-return]


def command(*arguments: object, ranks: int = 1) -> list[str]:
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *launcher, "-m", "flsl", *map(str, arguments)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("pretrain"))


def make_place(root: Path) -> Path:
    """Make a checked set of small images of two classes, and a config."""
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 4)):
        for index in range(count):
            path = root / "images" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 36 + index, 3), dtype=np.uint8)).save(path)
    (root / "config.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
    run_flsl("data", "check", "images", "--root", root / "images", "--out", root / "manifest")
    return root


def pretrain(place: Path, out: Path, *overrides: str) -> list[object]:
    return ["pretrain", "--config", place / "config.yaml", "--images", place / "manifest", "--out", out, *overrides]


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> Path:
    out = place / "uninterrupted"
    run_flsl(*pretrain(place, out))
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "backbone.safetensors")


def flat(value: object, prefix: str = "") -> dict[str, object]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {name: leaf for key, inner in items for name, leaf in flat(inner, f"{prefix}.{key}").items()}


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: all of the state, and the history but for its times."""
    states = [flat(torch.load(out / "checkpoint.pth", weights_only=True)) for out in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        equal = torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
        assert equal, name
    histories = [
        [
            {key: value for key, value in line.items() if key not in TIMES}
            for line in read_history(out / "history.jsonl")
        ]
        for out in (one, other)
    ]
    assert histories[0] == histories[1]


def kill_at(
    arguments: Sequence[str], out: Path, step: int, signum: int, reminders: bool = False
) -> subprocess.Popen[str]:
    """Start a run and signal all of its processes as soon as the checkpoint of ``step`` is there.

    Reminders are SIGUSR2, again and again until it has ended.
    """
    process = subprocess.Popen(
        arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        found = checkpoints(out / "checkpoints")
        if found and found[-1].name >= f"step-{step:09d}.pth":
            os.killpg(process.pid, signum)
            while reminders and process.poll() is None:
                time.sleep(0.1)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGUSR2)
            break
        time.sleep(0.002)
    process.wait(timeout=300)
    return process


def test_writes_what_the_next_stages_read(uninterrupted: Path, place: Path) -> None:
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert metrics["stage"] == "pretrain"
    assert metrics["metrics"]["pretrain/steps"] == STEPS
    assert metrics["params"]["prototypes"] == 12
    assert metrics["provenance"]["inputs"].keys() == {str(place / "manifest" / "manifest.json")}
    lines = read_history(uninterrupted / "history.jsonl")
    by_kind = {kind: [line["step"] for line in lines if line["kind"] == kind] for kind in ("step", "epoch")}
    assert by_kind == {"step": [2, 4, 6, 8, 10, 12, 14, 15], "epoch": [5, 10, 15]}
    for name in ("loss", "intra_view", "inter_view", "volume", "perplexity", "teacher_entropy", "feature_variance"):
        assert all(np.isfinite(line[name]) for line in lines if line["kind"] == "step")
    assert all(0 <= line["data_wait_percent"] <= 100 for line in lines if line["kind"] == "step")
    assert [("online_knn" in line) for line in lines if line["kind"] == "epoch"] == [False, True, True]
    assert len(checkpoints(uninterrupted / "checkpoints")) == 2


def test_killed_twice_and_resumed_ends_bit_for_bit_as_if_never_interrupted(place: Path, uninterrupted: Path) -> None:
    out = place / "killed"
    # other numbers of workers, at each attempt, must not matter either
    for step, workers in ((2, 0), (8, 2)):
        arguments = command(*pretrain(place, out, f"compute.workers={workers}"))
        assert kill_at(arguments, out, step, signal.SIGKILL).returncode == -signal.SIGKILL
        assert not (out / "metrics.json").exists()
    made = torch.load(checkpoints(out / "checkpoints")[-1], weights_only=True)["made"]
    message = run_flsl(*pretrain(place, out, "compute.workers=1")).stderr
    assert "going on after step" in message
    assert_same_run(out, uninterrupted)
    facts = json.loads((out / "metrics.json").read_text())["provenance"]
    assert facts["started"] == made["started"]
    assert facts["seconds"] > made["seconds"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_signal_saves_at_once_and_tells(place: Path, uninterrupted: Path, signum: signal.Signals) -> None:
    out = place / f"stopped-{signum.name}"
    # the loading process, too, gets the signal, as from Ctrl-C
    stopped = kill_at(command(*pretrain(place, out, "compute.workers=1")), out, 3, signum, reminders=True)
    assert stopped.returncode == 128 + signum
    assert stopped.stderr is not None
    last = stopped.stderr.read().splitlines()[-1]
    assert last.startswith(f"flsl: stopped by signal {int(signum)} after step ")
    assert last.endswith(str(checkpoints(out / "checkpoints")[-1]))
    run_flsl(*pretrain(place, out))
    assert_same_run(out, uninterrupted)


def test_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(place: Path, uninterrupted: Path) -> None:
    out = place / "damaged"
    kill_at(command(*pretrain(place, out)), out, 4, signal.SIGTERM)
    newest = checkpoints(out / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    message = run_flsl(*pretrain(place, out)).stderr
    assert f"warning: {newest}: cannot be read as a checkpoint" in message
    assert_same_run(out, uninterrupted)


def test_from_a_pack_it_is_the_same_run(place: Path, uninterrupted: Path) -> None:
    manifest, pack = place / "packed", place / "pack"
    shutil.copytree(place / "manifest", manifest)
    run_flsl("data", "pack", "--images", manifest, "--out", pack)
    out = place / "from-pack"
    arguments = pretrain(place, out, "compute.workers=2")
    arguments[arguments.index(place / "manifest")] = manifest
    (place / "images").rename(place / "not there")
    try:
        run_flsl(*arguments)
    finally:
        (place / "not there").rename(place / "images")
    assert_same_run(out, uninterrupted)


def test_two_ranks_with_half_the_batch_each_make_the_same_run(place: Path, uninterrupted: Path) -> None:
    out = place / "ranks"
    run_flsl(*pretrain(place, out), ranks=2)
    ours, theirs = weights(out), weights(uninterrupted)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-4, rtol=2e-3)
    losses = [
        [line["loss"] for line in read_history(folder / "history.jsonl") if line["kind"] == "step"]
        for folder in (out, uninterrupted)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_other_settings_start_anew_and_lose_nothing(place: Path) -> None:
    out = place / "changed"
    kill_at(command(*pretrain(place, out)), out, 3, signal.SIGTERM)
    message = run_flsl(*pretrain(place, out, "pretrain.learning_rate=0.01")).stderr
    assert "settings or data differ" in message
    kept = list(out.glob("superseded-*/checkpoints/step-*.pth"))
    assert kept
    assert json.loads((out / "metrics.json").read_text())["params"]["learning_rate"] == 0.01


def test_a_batch_that_does_not_fit_moves_nothing(place: Path, uninterrupted: Path) -> None:
    before = sorted(uninterrupted.rglob("*"))
    result = run_flsl(*pretrain(place, uninterrupted, "pretrain.batch_size=1000"), check=False)
    assert result.returncode == 2
    assert "pretrain.batch_size: 1000 is more than the 20 training images" in result.stderr.splitlines()[-1]
    assert sorted(uninterrupted.rglob("*")) == before


def test_finished_run_is_exported_again_without_training(place: Path, uninterrupted: Path) -> None:
    before = weights(uninterrupted)
    (uninterrupted / "backbone.safetensors").unlink()
    made = json.loads((uninterrupted / "metrics.json").read_text())["provenance"]
    lock = (uninterrupted / "requirements.lock").stat()
    # on another machine, for instance
    message = run_flsl(*pretrain(place, uninterrupted, "compute.threads=2")).stderr
    assert f"going on after step {STEPS}" in message
    assert all(torch.equal(value, before[name]) for name, value in weights(uninterrupted).items())
    # what is told of the training stays
    again = json.loads((uninterrupted / "metrics.json").read_text())["provenance"]
    assert again["threads"] == made["threads"] == 1
    assert again["started"] == made["started"]
    assert again["seconds"] <= made["seconds"]
    assert (uninterrupted / "requirements.lock").stat() == lock


def test_what_the_weights_do_not_depend_on_trains_nothing_again(place: Path, uninterrupted: Path) -> None:
    before = weights(uninterrupted)
    root, manifest = place / "more/images", place / "more/manifest"
    shutil.copytree(place / "images", root)
    (root / "boxes.csv").write_text("path,x0,y0,x1,y1\ntrain/a/0.png,1,1,9,9\n")
    next((root / "val/a").iterdir()).unlink()
    run_flsl("data", "check", "images", "--root", root, "--out", manifest, "data.images.boxes=boxes.csv")
    arguments = pretrain(place, uninterrupted, "pretrain.online_knn_every=1", "pretrain.online_knn_images=9")
    arguments[arguments.index(place / "manifest")] = manifest
    assert f"going on after step {STEPS}" in run_flsl(*arguments).stderr
    assert all(torch.equal(value, before[name]) for name, value in weights(uninterrupted).items())
    # but on the training images
    next((root / "train/a").iterdir()).unlink()
    run_flsl("data", "check", "images", "--root", root, "--out", manifest, "data.images.boxes=boxes.csv")
    shutil.copytree(uninterrupted, place / "more/out")
    arguments[arguments.index(uninterrupted)] = place / "more/out"
    assert "settings or data differ" in run_flsl(*arguments).stderr


def test_accumulated_micro_batches_train(place: Path) -> None:
    out = place / "accumulated"
    run_flsl(*pretrain(place, out, "pretrain.accumulate=2", "pretrain.epochs=1", "pretrain.head.batch_norm=false"))
    assert json.loads((out / "metrics.json").read_text())["metrics"]["pretrain/steps"] == STEPS // EPOCHS


def test_later_stage_is_resumed_bit_for_bit_shared_by_ranks_and_begun_anew_for_another_encoder(
    place: Path, uninterrupted: Path
) -> None:
    previous = ("--previous", uninterrupted / "backbone.safetensors")
    whole, killed, ranks = (place / name for name in ("later", "later-killed", "later-ranks"))
    run_flsl(*pretrain(place, whole, "pretrain.accumulate=2"), *previous)
    # the prior tells: without it the same settings end elsewhere
    run_flsl(*pretrain(place, place / "first-stage", "pretrain.accumulate=2"))
    assert not torch.equal(weights(whole)["norm.weight"], weights(place / "first-stage")["norm.weight"])
    inputs = json.loads((whole / "metrics.json").read_text())["provenance"]["inputs"]
    assert str(previous[1]) in inputs

    arguments = [*pretrain(place, killed, "pretrain.accumulate=2"), *previous]
    assert kill_at(command(*arguments), killed, 6, signal.SIGKILL).returncode == -signal.SIGKILL
    assert "going on after step" in run_flsl(*arguments).stderr
    assert_same_run(killed, whole)

    one = place / "later-one-rank"
    run_flsl(*pretrain(place, one), *previous)
    run_flsl(*pretrain(place, ranks), *previous, ranks=2)
    ours, theirs = weights(ranks), weights(one)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-4, rtol=2e-3)

    message = run_flsl(*pretrain(place, ranks), "--previous", whole / "backbone.safetensors").stderr
    assert "settings or data differ" in message


def test_later_stage_without_the_earlier_encoder_is_refused(place: Path) -> None:
    for arguments, words in (
        (("pretrain.previous=first",), "pretrain.previous: is 'first'; name that run's encoder with --previous FILE"),
        (("--previous", place / "nowhere.safetensors"), "nowhere.safetensors: no such file"),
        (("--previous", place / "config.yaml"), "cannot be read as a checkpoint"),
    ):
        result = run_flsl(*pretrain(place, place / "refused"), *arguments, check=False)
        assert result.returncode == 2
        assert words in result.stderr.splitlines()[-1]
        assert not (place / "refused").exists()


def test_loss_that_is_not_finite_stops_and_overwrites_nothing(place: Path) -> None:
    out = place / "diverged"
    kill_at(command(*pretrain(place, out)), out, 3, signal.SIGTERM)
    good = checkpoints(out / "checkpoints")[-1]
    state = torch.load(good, weights_only=True)
    state["student"]["encoder.norm.weight"].fill_(float("nan"))
    torch.save(state, good)
    before = good.read_bytes()
    result = run_flsl(*pretrain(place, out), check=False)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert f"the loss of step {state['step']} is not finite (loss nan, intra_view nan" in line
    assert f"the last good checkpoint is {good}" in line
    assert good.read_bytes() == before
    assert checkpoints(out / "checkpoints")[-1] == good


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a full disk needs root")
def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(place: Path) -> None:
    out = place / "small-disk"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this sandbox does not mount file systems")
    try:
        result = run_flsl(*pretrain(place, out), check=False)
        assert result.returncode == 2
        assert "the disk is full; free some space" in result.stderr.splitlines()[-1]
        assert all(torch.load(path, weights_only=True) for path in checkpoints(out / "checkpoints"))
        assert not list(out.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.mark.real
def test_trains_on_real_photographs(real_data: Path, tmp_path: Path) -> None:
    run_flsl(
        "data", "check", "images", "--root", real_data / "imagenet", "--out", tmp_path / "m", "data.images.val=null"
    )
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
    run_flsl(
        *("pretrain", "--config", tmp_path / "config.yaml", "--images", tmp_path / "m", "--out", tmp_path / "out"),
        *(
            "pretrain.epochs=2",
            "pretrain.batch_size=16",
            "pretrain.views.teacher_size=64",
            "compute.checkpoint_steps=0",
        ),
        *("pretrain.views.global_size=64", "pretrain.views.local_size=32"),
    )
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert figures["pretrain/steps"] == 2 * (110 // 16)
    assert np.isfinite(figures["pretrain/loss"])

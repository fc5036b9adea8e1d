"""What checkpoints hold and when they are written: on several ranks, with weights or images that go bad."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from test_trainer import EPOCHS, STEPS, assert_same_run, command, kill_at, make_place, pretrain, run_flsl

from flsl.cli import main
from flsl.pretrain import trainer
from flsl.pretrain.step import TrainingStep
from flsl.runtime.checkpoint import steps as checkpoints
from flsl.runtime.history import read_history


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("saving"))


def test_two_ranks_are_resumed_bit_for_bit_in_the_middle_of_a_line_and_an_epoch(place: Path) -> None:
    whole, killed = place / "ranks-whole", place / "ranks-killed"
    run_flsl(*pretrain(place, whole), ranks=2)
    # torchrun hands a signal on to each rank's loading processes, too
    arguments = pretrain(place, killed, f"compute.checkpoints_kept={STEPS}", "compute.workers=1")
    stopped = kill_at(command(*arguments, ranks=2), killed, 7, signal.SIGTERM)
    assert stopped.stderr is not None
    assert "flsl: stopped by signal 15 after step " in stopped.stderr.read()
    assert "step-000000007" <= checkpoints(killed / "checkpoints")[-1].stem < f"step-{STEPS:09d}"
    # lines are written after even steps and epochs end after each fifth: what was counted since must not be lost
    for path in checkpoints(killed / "checkpoints"):
        if path.stem > "step-000000007":
            path.unlink()
    assert "going on after step 7" in run_flsl(*arguments, ranks=2).stderr
    assert_same_run(killed, whole)


def test_weights_that_are_not_finite_are_not_saved(place: Path) -> None:
    out = place / "exploded"
    settings = ("pretrain.learning_rate=1e30", "pretrain.warmup=0", "pretrain.head.batch_norm=false")
    result = run_flsl(*pretrain(place, out, *settings), check=False)
    assert result.returncode == 2
    assert "the weights after step 1 are not finite; there was no checkpoint yet" in result.stderr.splitlines()[-1]
    assert not checkpoints(out / "checkpoints")


def test_a_gpu_that_is_full_is_one_line_that_names_the_settings(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 1.17 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB "
            "is free. Of the allocated memory 76.80 GiB is allocated by PyTorch. If reserved memory is large try \n…"
        )

    monkeypatch.setattr(TrainingStep, "accumulate", full)
    assert main([str(each) for each in pretrain(place, place / "full")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("flsl: error: pretrain.batch_size: too many images for the GPUs' memory; ")
    assert told.endswith("GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free.")


def test_an_epoch_is_kept_before_a_checkpoint_goes_on_from_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = place / "kept"
    keep = trainer._keep_epoch

    def keep_or_die(job: trainer.Job, epoch: int, *others: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        keep(job, epoch, *others)  # type: ignore[arg-type]

    arguments = [str(each) for each in pretrain(place, out, "compute.keep_epochs=1", "compute.checkpoint_steps=0")]
    with monkeypatch.context() as context:
        context.setattr(trainer, "_keep_epoch", keep_or_die)
        main(arguments)
    assert main(arguments) == 0
    assert [path.stem for path in sorted((out / "epochs").iterdir())] == [f"epoch-{n:04d}" for n in range(EPOCHS + 1)]


def test_an_image_of_the_check_that_is_gone_ends_no_training(place: Path) -> None:
    root, manifest, out = (place / "gone" / name for name in ("images", "manifest", "out"))
    shutil.copytree(place / "images", root)
    run_flsl("data", "check", "images", "--root", root, "--out", manifest)
    (root / "val/a/0.png").unlink()
    arguments = pretrain(place, out)
    arguments[arguments.index(place / "manifest")] = manifest
    assert "the k-NN check of this epoch is left out" in run_flsl(*arguments).stderr
    assert not any("online_knn" in line for line in read_history(out / "history.jsonl"))

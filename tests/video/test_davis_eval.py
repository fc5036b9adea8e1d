from __future__ import annotations

import os
import shutil
import signal

import davis_reference as reference
import numpy as np
import pytest
from davis_files import data_of, moving_discs, write_davis, write_mask, write_predictions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flsl.runtime.errors import UserError
from flsl.video import davis_eval
from flsl.video.davis_eval import evaluate
from flsl.video.sequences import is_annotated, sequence_names


def assert_equal(evaluation, sequences):
    expected = reference.evaluate(sequences)
    names = ["J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    figures = [evaluation.metrics[f"davis/{name}"] for name in names]
    assert figures == pytest.approx(100 * expected["means"], abs=1e-6)
    assert evaluation.metrics["davis/J&F-Mean"] == pytest.approx(100 * expected["J&F"], abs=1e-6)
    assert [(row["sequence"], row["object"]) for row in evaluation.objects] == list(expected["rows"])
    for row in evaluation.objects:
        values = [row[name] for name in names]
        assert values == pytest.approx(100 * np.array(expected["rows"][row["sequence"], row["object"]]), abs=1e-6)


def damaged(masks, seed):
    """Predictions with the ways in which real ones go wrong: moved, an id missing, an id too many, empty."""
    rng = np.random.default_rng(seed)
    predictions = []
    for labels in masks:
        labels = np.roll(labels, rng.integers(-2, 3, 2), (0, 1))
        kind = rng.integers(0, 6)
        if kind == 0:
            labels = np.where(labels == rng.integers(1, 4), 0, labels)
        elif kind == 1:
            labels = np.where(rng.random(labels.shape) < 0.1, rng.integers(1, 9), labels)
        elif kind == 2:
            labels = np.zeros_like(labels)
        predictions.append(labels.astype(np.uint8))
    return predictions


@given(st.integers(0, 2**20), st.integers(3, 9), st.integers(1, 4))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_figures_equal_the_literal_reference_on_any_masks(tmp_path, seed, frames, objects):
    shutil.rmtree(tmp_path)
    truth = {
        "one": moving_discs(frames, objects, (22, 34), seed, 5),
        "two": moving_discs(frames + 2, 2, (16, 70), seed + 1, 5),
    }
    truth["two"][1][:4, :9] = 255  # void
    predictions = {name: damaged(masks, seed) for name, masks in truth.items()}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", predictions)
    assert_equal(
        evaluate(data_of(root), "val", masks, processes=1),
        {name: (truth[name], predictions[name]) for name in truth},
    )


def ellipses(frames, shift):
    """Label maps of two ellipses: one crosses the other and leaves, the other shrinks; ``shift`` misplaces them."""
    y, x = np.mgrid[:120, :213]
    masks = []
    for time in range(frames):
        labels = np.zeros((120, 213), np.uint8)
        wobble = shift * (time % 4)
        labels[((y - 60 - wobble) / (40 - 2 * time)) ** 2 + ((x - 110) / 30) ** 2 <= 1] = 2
        labels[((y - 50) / 18) ** 2 + ((x - 40 - 14 * time + wobble) / 25) ** 2 <= 1] = 1
        if shift and time % 5 == 3:
            labels[labels == 2] = 0
        masks.append(labels)
    return masks


def test_figures_are_those_that_davis2017_evaluation_gave(tmp_path):
    """What the official tool (its commit ac7c43f) printed for these masks, object by object."""
    official = {
        "J-Mean": [0.8972125963327262, 0.7199455053208179, 0.8175331352743977, 0.6836850926354819],
        "J-Recall": [0.9375, 0.8125, 1.0, 0.8],
        "J-Decay": [0.0935101253510785, 0.053421312789730724, -0.1309450277949351, -0.024994658160997107],
        "F-Mean": [0.9433365843720755, 0.7017973314046075, 0.6113636363636363, 0.5131241865544768],
        "F-Recall": [1.0, 0.6875, 0.6, 0.6],
        "F-Decay": [-0.030731225296442788, 0.1295480810169698, -0.31818181818181823, -0.3162550307857076],
    }
    truth = {"long": ellipses(18, 0), "short": ellipses(7, 0)}
    predictions = {"long": ellipses(18, 1), "short": ellipses(7, 3)}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", predictions)
    evaluation = evaluate(data_of(root), "val", masks, processes=1)
    for name, values in official.items():
        assert [row[name] for row in evaluation.objects] == pytest.approx(100 * np.array(values), abs=1e-9)
        assert evaluation.metrics[f"davis/{name}"] == pytest.approx(100 * np.mean(values), abs=1e-9)
    both = (np.mean(official["J-Mean"]) + np.mean(official["F-Mean"])) / 2
    assert evaluation.metrics["davis/J&F-Mean"] == pytest.approx(100 * both, abs=1e-9)


def test_a_long_sequence_is_the_same_in_pieces_over_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(davis_eval, "_FRAMES_A_PROCESS", 10)
    truth = {"long": moving_discs(41, 2, (20, 30), radius=5), "short": moving_discs(3, 1, (20, 30), radius=5)}
    predictions = {name: damaged(masks, 5) for name, masks in truth.items()}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", predictions)
    several = evaluate(data_of(root), "val", masks, processes=2)
    assert_equal(several, {name: (truth[name], predictions[name]) for name in truth})
    assert several == evaluate(data_of(root), "val", masks, processes=1)
    assert [(row["sequence"], row["frames"]) for row in several.sequences] == [("long", 39), ("short", 1)]


def test_perfect_masks_score_100_and_sequences_can_be_chosen(tmp_path):
    truth = {"a": moving_discs(5, 2), "the b": moving_discs(5, 1)}
    root = write_davis(tmp_path / "davis", truth)
    masks = write_predictions(tmp_path / "masks", {"the b": truth["the b"][:-1]})
    (masks / "the b" / "00000.png").unlink()  # the first and the last frame are not evaluated, so need not be there
    evaluation = evaluate(data_of(root), "val", masks, only=["the b"], processes=1)
    assert evaluation.metrics["davis/J&F-Mean"] == 100
    assert [row["sequence"] for row in evaluation.sequences] == ["the b"]
    assert sequence_names(data_of(root), "val") == ["a", "the b"]


def test_superfluous_ids_count_as_background_with_a_warning(tmp_path, capsys):
    truth = {"a": moving_discs(5, 1)}
    with_more = [np.where(labels == 0, 9, labels) for labels in truth["a"]]
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", {"a": with_more})
    assert evaluate(data_of(root), "val", masks, processes=1).metrics["davis/J&F-Mean"] == 100
    assert "no objects 9" in capsys.readouterr().err


def test_a_gap_in_the_first_masks_ids_counts_as_in_the_official_tool_with_a_warning(tmp_path, capsys):
    truth = {"a": [labels * 2 for labels in moving_discs(5, 1)]}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", truth)
    assert len(evaluate(data_of(root), "val", masks, processes=1).objects) == 2
    assert "without a gap" in capsys.readouterr().err


def test_hidden_files_are_no_frames_and_no_masks(tmp_path):
    truth = {"a": moving_discs(4, 1)}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", truth)
    for kind, name in (("JPEGImages", "._00000.jpg"), ("Annotations", "._00000.png")):
        (root / kind / "480p/a" / name).write_bytes(b"of macOS")
    assert evaluate(data_of(root), "val", masks, processes=1).metrics["davis/J&F-Mean"] == 100
    for path in sorted((root / "Annotations/480p/a").iterdir())[2:]:
        path.unlink()
    assert not is_annotated(data_of(root), "a")


def test_year_split_and_resolution_name_the_folders(tmp_path):
    truth = {"a": moving_discs(4, 1)}
    root = write_davis(tmp_path / "davis", truth, split="train", year=2016)
    (root / "Annotations" / "480p").rename(root / "Annotations" / "Full-Resolution")
    masks = write_predictions(tmp_path / "masks", truth)
    chosen = data_of(root, year=2016, resolution="Full-Resolution")
    assert evaluate(chosen, "train", masks, processes=1).metrics["davis/J&F-Mean"] == 100


def spoil_first(labels):
    return lambda root, masks: write_mask(root / "Annotations/480p/a/00000.png", labels)


def make_rgb(root, masks):
    Image.open(masks / "a" / "00002.png").convert("RGB").save(masks / "a" / "00002.png")


def make_binary(root, masks):
    for path in (masks / "a").iterdir():
        write_mask(path, np.asarray(Image.open(path)) * 255)


def resize(root, masks):
    write_mask(masks / "a" / "00003.png", np.zeros((10, 10)))


def annotate_the_first_frame_only(root, masks):
    for path in sorted((root / "Annotations/480p/a").iterdir())[1:]:
        path.unlink()


def keep_two_frames(root, masks):
    for folder in ("Annotations", "JPEGImages"):
        for path in sorted((root / folder / "480p" / "a").iterdir())[2:]:
            path.unlink()


def make_postscript(root, masks):
    Image.new("L", (70, 48), 1).save(masks / "a" / "00001.png", format="EPS")


BAD = {
    "missing prediction": (lambda root, masks: (masks / "a" / "00002.png").unlink(), "a: the predicted mask 00002.png"),
    "no predictions": (lambda root, masks: shutil.rmtree(masks / "a"), "predicted masks of a"),
    "missing mask": (lambda root, _: (root / "Annotations/480p/a/00003.png").unlink(), "00003.png"),
    "test split": (annotate_the_first_frame_only, "only the first frame is annotated"),
    "too short": (keep_two_frames, "2 frames"),
    "RGB": (make_rgb, "00002.png: an image of mode RGB"),
    "0/255 prediction": (make_binary, "0/255"),
    "0/255 truth": (spoil_first(moving_discs(1, 1)[0] * 255), "00000.png: a 0/255 mask"),
    "empty first mask": (spoil_first(np.zeros((48, 70))), "the first mask is empty"),
    "another size": (resize, "00003.png: 10×10 pixels, but its ground truth"),
    "not an image": (lambda root, masks: (masks / "a" / "00001.png").write_text("x"), "cannot be read as an image"),
    "truncated": (
        lambda root, masks: (masks / "a" / "00001.png").write_bytes((masks / "a" / "00001.png").read_bytes()[:80]),
        "cannot be read as an image",
    ),
    "broken chunk": (
        lambda root, masks: (masks / "a" / "00001.png").write_bytes(
            (masks / "a" / "00001.png").read_bytes().replace(b"IDAT", b"JAJ)")
        ),
        "cannot be read as an image",
    ),
    "PostScript, which Pillow hands to Ghostscript": (make_postscript, "(not an image of a known kind)"),
    "unknown split": (lambda root, _: (root / "ImageSets/2017/val.txt").rename(root / "ImageSets/2017/dev.txt"), "dev"),
    "empty split": (lambda root, _: (root / "ImageSets/2017/val.txt").write_text("\n"), "lists no sequence"),
    "listed but absent": (lambda root, _: (root / "ImageSets/2017/val.txt").write_text("b\n"), "masks of b"),
    "climbing list": (lambda root, _: (root / "ImageSets/2017/val.txt").write_text("../x\n"), "no plain name"),
    "list of the folder itself": (
        lambda root, _: (root / "ImageSets/2017/val.txt").write_text(".\n"),
        "'.' is no plain name",
    ),
    "no data set": (lambda root, _: shutil.rmtree(root), "no such folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, name):
    spoil, message = BAD[name]
    truth = {"a": moving_discs(6, 1)}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", truth)
    spoil(root, masks)
    with pytest.raises(UserError) as error:
        evaluate(data_of(root), "val", masks, processes=1)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_sequence_is_refused_with_the_nearest_name(tmp_path):
    truth = {"blackswan": moving_discs(4, 1)}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", truth)
    with pytest.raises(UserError, match="did you mean 'blackswan'"):
        evaluate(data_of(root), "val", masks, only=["blackswam"])


def test_a_fault_in_another_process_reaches_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(davis_eval, "_FRAMES_A_PROCESS", 10)
    truth = {"a": moving_discs(40, 1, (20, 30))}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", truth)
    write_mask(masks / "a" / "00030.png", np.zeros((5, 5)))
    with pytest.raises(UserError, match=r"00030\.png: 5×5"):
        evaluate(data_of(root), "val", masks, processes=2)


def killed(piece):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(davis_eval, "_FRAMES_A_PROCESS", 10)
    monkeypatch.setattr(davis_eval, "_measure", killed)
    truth = {"a": moving_discs(40, 1, (20, 30))}
    root, masks = write_davis(tmp_path / "davis", truth), write_predictions(tmp_path / "masks", truth)
    with pytest.raises(UserError, match=r"a measuring process was killed .*try a smaller --jobs"):
        evaluate(data_of(root), "val", masks, processes=2)


@pytest.mark.real
def test_figures_equal_the_literal_reference_on_a_real_sequence(tmp_path, real_data):
    """Four frames of a real sequence at a third of its size (the literal reference is slow), shifted masks."""
    folder = real_data / "davis" / "Annotations" / "480p" / "blackswan"
    truth = [np.asarray(Image.open(path).resize((284, 160), 0)) for path in sorted(folder.iterdir())[:4]]
    predictions = [np.roll(labels, (3, -4), (0, 1)) for labels in truth]
    root = write_davis(tmp_path / "davis", {"a": truth})
    masks = write_predictions(tmp_path / "masks", {"a": predictions})
    assert_equal(evaluate(data_of(root), "val", masks, processes=1), {"a": (truth, predictions)})

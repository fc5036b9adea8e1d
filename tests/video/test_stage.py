"""Segmenting sequences: masks, previews and records, and what is kept of an earlier call."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from davis_files import data_of, moving_discs, write_mask
from PIL import Image

from flsl.config.video import DavisSettings
from flsl.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from flsl.model.backbone import Backbone
from flsl.runtime.errors import UserError
from flsl.video.previews import Previews, overlay
from flsl.video.propagate import copy_first_mask
from flsl.video.records import made_how
from flsl.video.stage import Method, Outputs, by_copying, by_encoder, propagate_sequences
from flsl.video.stage import write_mask as save


@pytest.fixture
def outputs(tmp_path):
    return Outputs(tmp_path / "masks", tmp_path / "previews")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_masks_are_indexed_pngs_of_256_colours_that_keep_every_id(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    save(tmp_path / "mask.png", labels)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == labels).all()
        palette = np.array(image.getpalette()).reshape(256, 3)
    # DAVIS' first colours are PASCAL VOC's
    assert palette[[0, 1, 2, 3, 8, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [64, 0, 0], [224, 224, 192]
    ]  # fmt: skip


def test_each_sequence_gets_masks_animation_contact_sheet_and_record(davis, outputs):
    propagate_sequences(data_of(davis), ["one", "two", "single"], by_copying("copy"), outputs)
    assert listing(outputs.masks / "one") == [f"{index:05d}.png" for index in range(5)]
    assert sorted(path.name for path in outputs.masks.iterdir()) == ["one", "single", "two"]
    with Image.open(outputs.masks / "one" / "00003.png") as mask:
        assert mask.size == (90, 52)
        assert (np.asarray(mask) == moving_discs(1, 2, (52, 90))[0]).all()
    for name, frames in (("one", 5), ("two", 9), ("single", 1)):
        with Image.open(outputs.previews / f"{name}.gif") as animation:
            assert animation.n_frames == frames
            assert max(animation.size) == 320
        with Image.open(outputs.previews / f"{name}.jpg") as sheet:
            assert sheet.width == 320 * min(4, frames)
        assert json.loads((outputs.previews / f"{name}.json").read_text())["metrics"] == {"frames": frames}


def test_previews_of_long_sequences_show_evenly_spaced_frames(tmp_path):
    previews = Previews(101)
    for index in range(101):
        labels = np.full((24, 32), index % 2, np.uint8)
        previews.add(index, Image.new("RGB", (32, 24), (2 * index, 0, 0)), labels)
    previews.write(tmp_path, "long")
    with Image.open(tmp_path / "long.gif") as animation:
        assert animation.n_frames == 40
        assert np.asarray(animation.convert("RGB")).max() == 0  # the first frame
        animation.seek(39)
        assert np.asarray(animation.convert("RGB"))[..., 0].max() == 200  # and the last one
    with Image.open(tmp_path / "long.jpg") as sheet:
        assert sheet.size == (4 * 32, 2 * 24)


def test_an_overlay_tints_objects_and_leaves_the_background():
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 15:] = 1
    shown = np.asarray(overlay(Image.new("RGB", (60, 40), (100, 100, 100)), labels))
    assert (shown[:, :29] == 100).all()
    assert (shown[:, 29] == 255).all()
    assert shown[5, 40].tolist() == [177, 50, 50]


def counting(run, params):
    made = []

    def method(video):
        made.append(video.name)
        return copy_first_mask(video)

    return Method(method, run, params), made


def test_what_was_made_with_equal_settings_and_inputs_is_kept(davis, outputs):
    def make(run="a", size=1, **kwargs):
        method, made = counting(run, {"size": size})
        propagate_sequences(data_of(davis), ["one"], method, outputs, **kwargs)
        return made

    assert make() == ["one"]
    assert make() == []
    assert make(fresh=True) == ["one"]
    assert make(size=2) == ["one"]
    assert make(size=2, run="b") == ["one"]
    (outputs.masks / "one" / "00002.png").unlink()
    assert make(size=2, run="b") == ["one"]
    for picture in ("one.gif", "one.jpg"):
        (outputs.previews / picture).unlink()
        assert make(size=2, run="b") == ["one"]
    write_mask(outputs.masks / "one" / "00002.png", np.zeros((52, 90)))  # by another tool
    assert make(size=2, run="b") == ["one"]
    Image.new("RGB", (90, 52)).save(davis / "JPEGImages/480p/one/00001.jpg")
    assert make(size=2, run="b") == ["one"]
    record = outputs.previews / "one.json"
    text = record.read_text()
    record.write_text(text.replace('"flsl.video.sequences": "', '"flsl.video.sequences": "f'))
    assert make(size=2, run="b") == ["one"]  # by other code
    record.write_text("{")
    assert make(size=2, run="b") == ["one"]
    assert make(size=2, run="b") == []


def test_a_sequence_that_fails_leaves_nothing_behind_and_the_others_whole(davis, outputs):
    (davis / "JPEGImages/480p/two/00005.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 sequence\(s\) failed: two: .*00005\.jpg"):
        propagate_sequences(data_of(davis), ["two", "one"], by_copying("copy"), outputs)
    assert listing(outputs.masks) == ["one", *(f"one/{index:05d}.png" for index in range(5))]
    assert listing(outputs.previews) == ["one.gif", "one.jpg", "one.json"]


def test_what_a_killed_process_left_is_cleared_away_and_no_other_sequences(davis, outputs):
    others = [f".{name}.{'0f' * 16}.tmp" for name in ("one.b", "one")]
    for name in others:
        (outputs.masks / name).mkdir(parents=True)
    propagate_sequences(data_of(davis), ["one"], by_copying("copy"), outputs)
    assert sorted(path.name for path in outputs.masks.iterdir()) == [others[0], "one"]


def test_a_frame_that_is_gone_fails_its_sequence_only(davis, outputs, capsys):
    names = ["one", "n" * 300, "two"]
    with pytest.raises(UserError, match="File name too long"):
        propagate_sequences(data_of(davis), names, by_copying("copy"), outputs)
    frame = davis / "JPEGImages/480p/one/00003.jpg"
    frame.unlink()
    frame.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"^1 sequence\(s\) failed: one: .*00003\.jpg: not a readable image"):
        propagate_sequences(data_of(davis), ["one", "two"], by_copying("copy"), outputs)
    assert "two: made before" in capsys.readouterr().err


def test_a_link_in_the_masks_place_is_replaced_and_what_it_names_stays(davis, outputs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    outputs.masks.mkdir()
    (outputs.masks / "one").symlink_to(tmp_path / "elsewhere")
    propagate_sequences(data_of(davis), ["one"], by_copying("copy"), outputs)
    assert len(listing(outputs.masks / "one")) == 5
    assert listing(tmp_path / "elsewhere") == []


def test_previews_that_cannot_be_written_are_named(davis, outputs):
    outputs.previews.write_text("no folder")
    with pytest.raises(UserError, match=r"previews/one\.json: cannot be written: a file stands"):
        propagate_sequences(data_of(davis), ["one"], by_copying("copy"), outputs)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("params", None), ("params", [1]), ("provenance", []), ("encoder", 1), ("masks_sha256", None),
        ("provenance.seconds", None), ("provenance.code", []), ("provenance.inputs", ["x"]),
    ],
)  # fmt: skip
def test_a_record_of_another_form_is_none(davis, outputs, part, value):
    method, made = counting("a", {})
    propagate_sequences(data_of(davis), ["one"], method, outputs)
    record = outputs.previews / "one.json"
    data = json.loads(record.read_text())
    owner, _, name = part.rpartition(".")
    (data[owner] if owner else data)[name] = value
    record.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"one\.json: no record of a sequence"):
        made_how(outputs.previews, ["one"], outputs.masks)
    propagate_sequences(data_of(davis), ["one"], method, outputs)
    assert made == ["one", "one"]


def test_masks_that_cannot_be_read_are_not_those_of_their_record(davis, outputs):
    propagate_sequences(data_of(davis), ["one"], by_copying("copy"), outputs)
    assert made_how(outputs.previews, ["one"], outputs.masks) is not None
    mask = outputs.masks / "one/00002.png"
    mask.unlink()
    mask.mkdir()
    assert made_how(outputs.previews, ["one"], outputs.masks) is None
    propagate_sequences(data_of(davis), ["one"], by_copying("copy"), outputs)
    assert mask.is_file()


def test_other_weights_are_another_method():
    class Stub(torch.nn.Linear):
        name, digest, statistics = "stub", Backbone.digest, Backbone.statistics
        mean, std = IMAGENET_MEAN, IMAGENET_STD

    first, second = (by_encoder(Stub(2, 2), "run", DavisSettings(), torch.device("cpu")) for _ in range(2))
    assert first.params["weights_sha256"] != second.params["weights_sha256"]
    assert first.params["radius"] == 12
    assert "batch_size" not in first.params

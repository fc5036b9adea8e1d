"""The UAVDT layout: the files' fields, and that they tell the truth about what the frames show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flsl.config.data import ScenesSettings
from flsl.data.scenes import uavdt
from flsl.data.scenes.aerial import draw_frame
from flsl.data.scenes.backdrop import Light
from flsl.data.scenes.make import make_scenes
from flsl.data.scenes.traffic import Traffic
from flsl.data.uavdt import TEST_SEQUENCES, TRAIN_SEQUENCES

SETTINGS = ScenesSettings(
    train_images=10, val_images=10, coco_train_images=0, uavdt_sequences=4, uavdt_frames=12, davis_sequences=0
)
WIDTH, HEIGHT = 256, 135


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    make_scenes(SETTINGS, out, processes=1)
    return out / "uavdt"


def rows(root: Path, name: str, suffix: str) -> np.ndarray:
    lines = (root / uavdt.TRUTH / f"{name}_{suffix}.txt").read_text().splitlines()
    return np.array([[int(field) for field in line.split(",")] for line in lines]).reshape(-1, 9)


NAMES = [name for name, *_ in uavdt.sequences(SETTINGS)]


def test_sequence_names_are_the_official_ones() -> None:
    assert set(uavdt.TEST) == set(TEST_SEQUENCES)
    assert set(uavdt.TRAIN) == set(TRAIN_SEQUENCES)
    for count in (2, 3, 4, 41, 50):
        names = [name for name, *_ in uavdt.sequences(SETTINGS.model_copy(update={"uavdt_sequences": count}))]
        assert len(set(names)) == len(names) == count
        assert len(set(names) & set(TEST_SEQUENCES)) == min(count // 2, 20)


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_numbered_from_one(root: Path, name: str) -> None:
    frames = sorted((root / uavdt.FRAMES / name).iterdir())
    assert [path.name for path in frames] == [f"img{k:06d}.jpg" for k in range(1, SETTINGS.uavdt_frames + 1)]
    with Image.open(frames[0]) as first, Image.open(frames[-1]) as last:
        assert first.size == last.size == (WIDTH, HEIGHT)
        assert np.abs(np.asarray(first, float) - np.asarray(last, float)).mean() > 2


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_in_their_ranges(root: Path, name: str) -> None:
    whole = rows(root, name, "gt_whole")
    assert len(whole) > 5 * SETTINGS.uavdt_frames
    frame, target, left, top, width, height, out_of_view, occlusion, category = whole.T
    assert set(frame) == set(range(1, SETTINGS.uavdt_frames + 1))
    assert set(target) == set(range(1, target.max() + 1))
    assert len({tuple(pair) for pair in whole[:, :2].tolist()}) == len(whole)
    assert (np.lexsort((frame, target)) == np.arange(len(whole))).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (width > 0).all()
    assert (height > 0).all()
    assert (left + width <= WIDTH).all()
    assert (top + height <= HEIGHT).all()
    assert set(out_of_view) <= {1, 2, 3}
    assert set(occlusion) <= {1, 2, 3, 4}
    assert all(len(set(category[target == one])) == 1 for one in set(target))
    border = (left == 0) | (top == 0) | (left + width == WIDTH) | (top + height == HEIGHT)
    assert (border | (out_of_view == 1)).all()


def test_all_codes_and_categories_occur(root: Path) -> None:
    whole = np.concatenate([rows(root, name, "gt_whole") for name in NAMES])
    assert set(whole[:, 6]) == {1, 2, 3}
    assert set(whole[:, 7]) == {1, 2, 3, 4}
    assert set(whole[:, 8]) == {1, 2, 3}


def test_ignored_boxes_hold_no_labelled_vehicle_and_some_files_are_empty(root: Path) -> None:
    counts = []
    for name in NAMES:
        ignored, whole = rows(root, name, "gt_ignore"), rows(root, name, "gt_whole")
        counts.append(len(ignored))
        assert (ignored[:, 6:] == [1, -1, -1]).all()
        for frame, target, left, top, width, height in ignored[:, :6]:
            assert target not in whole[:, 1]
            assert 0 <= left < left + width <= WIDTH
            assert 0 <= top < top + height <= HEIGHT
            x, y, w, h = whole[whole[:, 0] == frame, 2:6].T
            inside = (x > left) & (y > top) & (x + w < left + width) & (y + h < top + height)
            assert not inside.any()
    assert 0 in counts
    assert max(counts) > 0


def test_the_tracking_file_holds_those_wholly_in_view(root: Path) -> None:
    for name in NAMES:
        whole, tracked = rows(root, name, "gt_whole"), rows(root, name, "gt")
        np.testing.assert_array_equal(tracked[:, :6], whole[whole[:, 6] == 1][:, :6])
        assert (tracked[:, 6:] == [1, 1, -1]).all()


def shot(traffic: Traffic, frame: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    image, _, _ = draw_frame(traffic, frame, height, width, np.random.default_rng(0))
    return image.astype(float)


def body(traffic: Traffic, index: int, frame: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """How much of each pixel shows the vehicle: what its being black or white changes (its windows are lost)."""
    one = traffic.driven[index]
    shots = []
    for tone in (0.2, 0.8):
        paint = np.full(3, tone, np.float32)
        recoloured = replace(one, vehicle=replace(one.vehicle, paint=paint, roof=paint))
        shots.append(shot(replace(traffic, driven=(recoloured,)), frame, height, width))
    return (shots[1] - shots[0]).mean(2) / (0.6 * 255)


@pytest.mark.parametrize("sequence", [0, 1])
def test_boxes_and_shares_are_what_the_pictures_show(sequence: int) -> None:
    """Each vehicle alone, dark and light: with and without what hides it, and on a frame three times as large."""
    traffic = uavdt.plan(SETTINGS, sequence)
    traffic = replace(traffic, weather="day", light=Light(1.0, 0.0, 0.0))
    bare = replace(traffic, trees=(), bridge=None)
    # the same camera with a frame of three times the size: the former frame is its middle
    wide = replace(bare, camera=replace(bare.camera, across=3 * bare.camera.across))
    frame = 6
    _, seen, _ = draw_frame(traffic, frame, HEIGHT, WIDTH, np.random.default_rng(0))
    assert len(seen) >= 8
    # those that are partly outside or hidden, and a few others; each takes several renderings
    partly = [one for one in seen if one.outside > 0 or one.hidden > 0]
    wholly = [one for one in seen if one not in partly]
    assert partly
    for one in partly[:4] + wholly[:2]:
        open_, hidden = body(bare, one.index, frame), body(traffic, one.index, frame)
        y, x = np.nonzero(open_ > 0.5)
        assert np.abs(np.subtract(one.box, (x.min(), y.min(), x.max() + 1, y.max() + 1))).max() <= 1
        assert 1 - hidden.sum() / open_.sum() == pytest.approx(one.hidden, abs=0.1)
        beyond = body(wide, one.index, frame, 3 * HEIGHT, 3 * WIDTH)
        middle = beyond[HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH]
        assert 1 - middle.sum() / beyond.sum() == pytest.approx(one.outside, abs=0.05)


@pytest.mark.parametrize(
    ("outside", "hidden", "codes"),
    [
        (0.0, 0.0, (1, 1)),
        (0.2, 0.005, (3, 1)),
        (0.4, 0.2, (2, 4)),
        (0.0, 0.5, (1, 3)),
        (0.005, 0.9, (1, 2)),
        (0.51, 0.0, None),
        (0.0, 0.97, None),
    ],
)
def test_shares_become_the_benchmarks_codes(outside: float, hidden: float, codes: tuple[int, int] | None) -> None:
    traffic = uavdt.plan(SETTINGS, 0)
    row = uavdt._row(traffic, 1, uavdt.Seen(0, (3, 4, 10, 20), outside, hidden))
    assert (row and (row.out_of_view, row.occlusion)) == codes
    if row is not None:
        assert row.box == (3, 4, 7, 16)

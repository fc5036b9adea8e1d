"""The DAVIS layout: files, palette, ids, and objects that hide one another, leave and come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flsl.config.data import ScenesSettings
from flsl.data.scenes import davis
from flsl.data.scenes.make import make_scenes

SETTINGS = ScenesSettings(
    train_images=10, val_images=10, coco_train_images=0, uavdt_sequences=0, davis_sequences=5, davis_frames=20
)
HEIGHT, WIDTH = 96, 171
NAMES = davis.names(SETTINGS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    make_scenes(SETTINGS, out, processes=1)
    return out / "davis"


def masks(root: Path, name: str) -> np.ndarray:
    found = []
    for path in sorted((root / "Annotations/480p" / name).iterdir()):
        with Image.open(path) as image:
            found.append(np.array(image))
    return np.stack(found)


def test_the_lists_share_out_the_sequences(root: Path) -> None:
    lists = [(root / "ImageSets/2017" / f"{split}.txt").read_text().split() for split in ("train", "val")]
    assert lists == [NAMES[:2], NAMES[2:]]


@pytest.mark.parametrize("name", NAMES)
def test_frames_and_masks_are_named_and_sized_alike(root: Path, name: str) -> None:
    stems = [f"{k:05d}" for k in range(SETTINGS.davis_frames)]
    frames = sorted((root / "JPEGImages/480p" / name).iterdir())
    assert [path.name for path in frames] == [f"{stem}.jpg" for stem in stems]
    for frame in frames:
        with Image.open(frame) as image, Image.open(root / "Annotations/480p" / name / f"{frame.stem}.png") as mask:
            assert image.size == mask.size == (WIDTH, HEIGHT)
            assert (image.mode, mask.mode) == ("RGB", "P")


def test_the_palette_is_the_data_sets(root: Path) -> None:
    with Image.open(root / "Annotations/480p" / NAMES[0] / "00000.png") as mask:
        colours = np.array(mask.getpalette()).reshape(-1, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 20: (0, 64, 128)}
    known |= {255: (224, 224, 192)}
    for identity, colour in known.items():
        assert tuple(colours[identity]) == colour


@pytest.mark.parametrize("name", NAMES)
def test_all_objects_start_in_sight_and_one_leaves_and_returns(root: Path, name: str) -> None:
    video = masks(root, name)
    count = 2 + NAMES.index(name) % 2
    assert set(np.unique(video)) == set(range(count + 1))
    areas = np.stack([(video == identity).sum((1, 2)) for identity in range(1, count + 1)], 1)
    assert (areas[0] > 200).all()
    assert (areas[-1] > 200).all()
    gone = (areas == 0).sum(0)
    assert sum(gone > 0) >= 1
    assert gone.max() < 0.5 * SETTINGS.davis_frames


def test_objects_hide_one_another(root: Path) -> None:
    """Somewhere an object's mask is much smaller than the object alone."""
    for sequence, name in enumerate(NAMES):
        video = davis.plan(SETTINGS, sequence)
        drawn = masks(root, name)
        most = 0.0
        for identity in range(1, len(video.looks)):
            alone = replace(video, looks=video.looks[identity - 1 : identity], ways=video.ways[identity - 1 : identity])
            for frame in range(SETTINGS.davis_frames):
                time = frame / (SETTINGS.davis_frames - 1)
                _, mask = davis.draw_frame(alone, time, HEIGHT, WIDTH, np.random.default_rng(0))
                if mask.any():
                    most = max(most, 1 - (drawn[frame] == identity).sum() / mask.sum())
        assert most > 0.15, name


def test_masks_are_where_the_objects_are_painted() -> None:
    video = davis.plan(SETTINGS, 1)
    empty = replace(video, looks=(), ways=())
    for time in (0.0, 0.3, 1.0):
        shown, mask = davis.draw_frame(video, time, HEIGHT, WIDTH, np.random.default_rng(0))
        ground, nothing = davis.draw_frame(empty, time, HEIGHT, WIDTH, np.random.default_rng(0))
        assert not nothing.any()
        changed = np.abs(shown.astype(int) - ground).max(2) > 10
        both = (changed & (mask > 0)).sum()
        assert both / (changed | (mask > 0)).sum() > 0.85
        # nothing changes away from the objects
        assert changed[mask == 0].mean() < 0.03


def test_the_camera_moves(root: Path) -> None:
    for sequence in range(len(NAMES)):
        empty = replace(davis.plan(SETTINGS, sequence), looks=(), ways=())
        first, last = (davis.draw_frame(empty, t, HEIGHT, WIDTH, np.random.default_rng(0))[0] for t in (0.0, 1.0))
        assert (first != last).mean() > 0.3


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    single = SETTINGS.model_copy(update={"davis_frames": 1, "davis_sequences": 1})
    make_scenes(single, tmp_path, processes=1)
    assert (tmp_path / "davis/ImageSets/2017/val.txt").read_text() == "scene-00\n"
    assert masks(tmp_path / "davis", "scene-00").shape == (1, HEIGHT, WIDTH)

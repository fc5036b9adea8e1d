from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import propagation_reference as reference
import pytest
import torch
from davis_files import data_of, moving_discs, write_davis, write_mask
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from flsl.config.pretrain import EncoderSettings
from flsl.config.video import DavisSettings
from flsl.model.backbone import Backbone
from flsl.model.vit import build_encoder, timm_arguments
from flsl.runtime.errors import UserError
from flsl.video import frames
from flsl.video.frames import encode, load_batches, preview_picture, protocol_size
from flsl.video.propagate import copy_first_mask, label_map, one_hot, propagate, segment
from flsl.video.sequences import open_video

CPU = torch.device("cpu")
SMALL = DavisSettings(size=48, multiple=16, radius=3, context_frames=3, batch_size=2)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    tiny = EncoderSettings(patch_size=8, width=32, depth=2, heads=2)
    return Backbone(build_encoder(tiny, 48), *timm_arguments(tiny, 48))


def unit_features(seed, count, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, rows, columns, 5, generator=generator, dtype=torch.float64), dim=-1)


@given(
    seed=st.integers(0, 2**30),
    context=st.integers(0, 4),
    rows=st.integers(2, 7),
    columns=st.integers(2, 9),
    patch_size=st.sampled_from([1, 4, 7, 8]),
)
@example(seed=349, context=1, rows=2, columns=2, patch_size=7)  # a plane that is constant but for rounding
@settings(max_examples=25)
def test_label_maps_are_those_of_the_literal_protocol_on_random_features(seed, context, rows, columns, patch_size):
    rng = np.random.default_rng(seed)
    mask = (rng.integers(0, 4, (rows * patch_size + 3, columns * patch_size + 5)) * 2).astype(np.uint8)
    chosen = DavisSettings(context_frames=context, radius=2, top_k=3)
    features = unit_features(seed, 7, rows, columns)
    ids = np.unique(np.append(mask, 0)).astype(np.uint8)

    first = one_hot(mask, ids, (columns, rows)).double()
    assert (ids[first.argmax(-1).numpy()] == reference.nearest(mask, columns, rows)).all()
    height, width = mask.shape
    expected = reference.video(features.numpy(), first.numpy(), chosen)
    found = list(propagate(iter(features), first, chosen))
    assert len(found) == len(expected)
    for soft, literal in zip(found, expected, strict=True):
        full = Image.fromarray(ids[label_map(soft, patch_size)]).resize((width, height), Image.Resampling.NEAREST)
        labels, clear = reference.label_map(literal, patch_size, ids, width, height)
        # on grids this small labels often tie but for rounding: either of them is right
        assert (np.asarray(full) == labels)[clear].all()
        assert soft.numpy() == pytest.approx(literal, abs=1e-9)


def test_label_maps_are_identical_on_a_larger_grid():
    """Five frames of several tiles: no ties, so not a pixel differs."""
    features = unit_features(8, 5, 18, 14)
    first = torch.rand(18, 14, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = DavisSettings(context_frames=2, radius=3)
    expected = reference.video(features.numpy(), first.numpy(), chosen)
    for soft, literal in zip(propagate(iter(features), first, chosen), expected, strict=True):
        labels, clear = reference.label_map(literal, 8, range(4), 14 * 8, 18 * 8)
        assert clear.all()
        assert (label_map(soft, 8) == labels).all()


@pytest.mark.real
def test_label_maps_are_those_of_the_literal_protocol_on_real_frames(real_data, backbone):
    chosen = DavisSettings(size=96, multiple=8, radius=4, context_frames=2)
    video = open_video(data_of(real_data / "davis"), "car-shadow")
    mask = np.asarray(Image.open(video.first_mask))
    original = (mask.shape[1], mask.shape[0])
    size = protocol_size(*original, chosen, 8)
    batch = next(load_batches(video.frames[:5], size, original, 5))
    with torch.inference_mode():
        features = encode(batch, backbone, CPU, "float32").double()
    first = one_hot(mask, np.array([0, 1], np.uint8), (size[0] // 8, size[1] // 8)).double()
    expected = reference.video(features.numpy(), first.numpy(), chosen)
    for soft, literal in zip(propagate(iter(features), first, chosen), expected, strict=True):
        full = Image.fromarray(label_map(soft, 8).astype(np.uint8)).resize(original, Image.Resampling.NEAREST)
        labels, _ = reference.label_map(literal, 8, [0, 1], *original)
        assert (np.asarray(full) == labels).all()


def test_frames_that_repeat_tie_and_the_mask_stays():
    """Two equal context frames tie key by key; a still video must keep its first mask."""
    features = unit_features(3, 1, 5, 6).expand(6, -1, -1, -1)
    first = F.one_hot(torch.randint(3, (5, 6), generator=torch.Generator().manual_seed(0)), 3).double()
    for soft in propagate(iter(features), first, DavisSettings(top_k=1)):
        assert (soft == first).all()


def test_constant_labels_and_equal_ones_are_decided_for_the_lowest_id():
    background = torch.tensor([1.0, 0.0]).expand(3, 4, 2)
    assert (label_map(background, 4) == 0).all()
    assert (label_map(1 - background, 4) == 1).all()
    assert (label_map(torch.full((3, 4, 2), 0.5), 4) == 0).all()


def test_an_object_that_fills_the_frame_keeps_all_of_it():
    features = unit_features(0, 4, 30, 52).float()
    first = torch.tensor([0.0, 1.0]).expand(30, 52, 2)
    for soft in propagate(iter(features), first, DavisSettings()):
        assert (label_map(soft, 16) == 1).all()
    faint = 1e-7 * F.one_hot(torch.arange(4).view(2, 2) // 3, 2)  # a label that nearly faded away still varies
    assert label_map(faint, 4)[-1, -1] == 1


@pytest.mark.parametrize(
    ("width", "height", "patch_size", "expected"),
    [
        (854, 480, 16, (832, 480)),  # as DINO's code at 480p
        (480, 854, 8, (480, 832)),
        (1920, 1080, 16, (832, 480)),
        (480, 480, 16, (448, 480)),  # the long side of a square is rounded down as well
        (854, 480, 14, (854, 476)),
    ],
)
def test_frames_are_resized_as_the_protocol_says(width, height, patch_size, expected):
    assert protocol_size(width, height, DavisSettings(), patch_size) == expected


def test_sizes_that_hold_no_patch_are_refused():
    with pytest.raises(UserError, match=r"davis\.size: 8"):
        protocol_size(854, 480, DavisSettings(size=8), 16)
    with pytest.raises(UserError, match=r"davis\.multiple: .* 64"):
        protocol_size(50, 48, DavisSettings(size=48), 16)


def small_video(tmp_path, count=7, objects=2, **kwargs):
    root = write_davis(tmp_path / "davis", {"discs": moving_discs(count, objects, (52, 90))}, **kwargs)
    return open_video(data_of(root), "discs")


def test_a_video_is_segmented_at_its_own_size_from_features_that_are_computed_once(tmp_path, backbone):
    video = small_video(tmp_path)
    calls = []
    counting = SimpleNamespace(
        patch_size=8,
        mean=backbone.mean,
        std=backbone.std,
        name="",
        tokens=lambda images: calls.append(len(images)) or backbone.tokens(images),
    )
    found = list(segment(video, counting, SMALL, CPU))
    assert calls == [2, 2, 2, 1]
    first = np.asarray(Image.open(video.first_mask))
    assert [(item.labels.shape, item.labels.dtype) for item in found] == [((52, 90), np.uint8)] * 7
    assert (found[0].labels == first).all()

    size = protocol_size(90, 52, SMALL, 8)
    with torch.inference_mode():
        features = torch.cat(
            [encode(b, backbone, CPU, "float32") for b in load_batches(video.frames, size, (90, 52), 2)]
        )
        soft = list(propagate(iter(features), one_hot(first, np.arange(3, dtype=np.uint8), (10, 6)), SMALL))
    for item, labels in zip(found[1:], soft[1:], strict=True):
        assert (item.labels == reference.nearest(label_map(labels, 8), 90, 52)).all()


def test_ids_with_gaps_keep_their_numbers_and_void_is_background(tmp_path, backbone):
    video = small_video(tmp_path)
    labels = moving_discs(1, 2, (52, 90))[0]
    gaps = np.choose(labels, [0, 5, 254]).astype(np.uint8)
    gaps[:3] = 255
    write_mask(video.first_mask, gaps)
    found = list(segment(video, backbone, SMALL, CPU))
    assert set(np.unique([item.labels for item in found])) <= {0, 5, 254}
    assert (found[0].labels[:3] == 0).all()


def test_a_sequence_of_one_frame_gives_its_mask(tmp_path, backbone):
    video = small_video(tmp_path, count=1)
    (only,) = segment(video, backbone, SMALL, CPU)
    assert (only.labels == np.asarray(Image.open(video.first_mask))).all()


def test_an_object_lost_between_tokens_is_reported(tmp_path, backbone, capsys):
    video = small_video(tmp_path)
    labels = moving_discs(1, 1, (52, 90))[0]
    labels[0, 0] = 2
    write_mask(video.first_mask, labels)
    list(segment(video, backbone, SMALL, CPU))
    assert "object 2" in capsys.readouterr().err


def test_copying_repeats_the_first_mask(tmp_path):
    video = small_video(tmp_path, count=3)
    first = np.asarray(Image.open(video.first_mask))
    assert [(item.labels == first).all() for item in copy_first_mask(video)] == [True] * 3


def test_frames_of_one_row_have_a_preview():
    assert preview_picture(Image.new("RGB", (700, 1))).size == (320, 1)


def test_decoding_runs_ahead_of_the_encoder_by_a_few_batches_only(tmp_path, monkeypatch):
    seen = []

    def load(path, size, original):
        seen.append(path)
        return path

    monkeypatch.setattr(frames, "load_frame", load)
    batches = load_batches(range(100), (1, 1), (1, 1), 4)
    assert next(batches) == [0, 1, 2, 3]
    assert len(seen) <= 12
    assert [item for batch in batches for item in batch] == list(range(4, 100))


def test_features_that_are_not_finite_are_refused(tmp_path):
    class Broken(nn.Module):
        patch_size, mean, std, name = 8, (0.0,) * 3, (1.0,) * 3, "broken"

        def tokens(self, images):
            return torch.full((len(images), 60, 4), torch.nan)

    with pytest.raises(UserError, match="broken: the encoder's features are not finite"):
        list(segment(small_video(tmp_path), Broken(), SMALL, CPU))


def resize_frame(video):
    Image.open(video.frames[4]).resize((30, 20)).save(video.frames[4])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (resize_frame, "00004.jpg: 30×20 pixels, but the first mask has 90×52"),
        (lambda video: video.frames[3].write_bytes(b"x"), "00003.jpg: not a readable image"),
        (lambda video: write_mask(video.first_mask, np.zeros((52, 90))), "00000.png: the first mask is empty"),
        (lambda video: write_mask(video.first_mask, 255 * moving_discs(1, 1, (52, 90))[0]), "0/255 mask"),
        (lambda video: Image.new("RGB", (90, 52)).save(video.first_mask), "00000.png: an image of mode RGB"),
    ],
)
def test_bad_frames_and_masks_are_refused_in_one_line(tmp_path, backbone, spoil, message):
    video = small_video(tmp_path)
    spoil(video)
    with pytest.raises(UserError) as error:
        list(segment(video, backbone, SMALL, CPU))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda video: video.frames[3].unlink(), "00003.jpg is missing"),
        (lambda video: video.first_mask.unlink(), "the mask of the first frame of discs"),
        (lambda video: [path.unlink() for path in video.frames], "holds no .jpg files"),
        (
            lambda video: [path.rename(path.with_stem(f"{4 + int(path.stem)}")) for path in video.frames],
            "discs: names are sorted as text; write numbers with leading zeros, e.g. 00000.jpg",
        ),
    ],
)
def test_missing_files_are_named(tmp_path, spoil, message):
    video = small_video(tmp_path)
    spoil(video)
    with pytest.raises(UserError) as error:
        open_video(data_of(tmp_path / "davis"), "discs")
    assert message in str(error.value)

"""The parts of the pictures: components, colours, usage of prototypes, sheets, choice of images."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image, ImageDraw, ImageFont
from sklearn.decomposition import PCA
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flsl.config.data import ImageFolderSettings
from flsl.config.pretrain import EncoderSettings
from flsl.data.check import check_data
from flsl.data.packing import pack_images
from flsl.model.backbone import Backbone
from flsl.model.head import ProjectionHead
from flsl.model.mean_shift import attention_map
from flsl.model.vit import build_encoder, timm_arguments
from flsl.runtime.errors import UserError
from flsl.visualize import choose
from flsl.visualize.colours import align, as_rgb, colour, heat, principal_components, regrid, segment_colours
from flsl.visualize.models import Looked
from flsl.visualize.pictures import effective_keys, query_indices, usage_chart
from flsl.visualize.prototypes import Usage, count_usage
from flsl.visualize.sheet import sheet, wrapped


def test_components_are_those_of_scikit_learn_up_to_sign() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(4, 9, 12) * torch.arange(1, 13)
    parts, share = principal_components(tokens)
    theirs = PCA(3, svd_solver="full").fit(tokens.flatten(0, 1).double().numpy())
    expected = theirs.transform(tokens.flatten(0, 1).double().numpy())
    np.testing.assert_allclose(np.abs(parts.reshape(-1, 3)), np.abs(expected), atol=1e-6)
    assert share == pytest.approx(theirs.explained_variance_ratio_.sum())
    # the largest value of each component is positive
    flat = parts.reshape(-1, 3)
    assert (flat[np.abs(flat).argmax(0), range(3)] > 0).all()


@settings(max_examples=20)
@given(st.permutations(range(3)), st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3), st.integers(0, 99))
def test_aligned_components_undo_orders_and_signs(order: list[int], signs: list[int], seed: int) -> None:
    parts = np.random.default_rng(seed).standard_normal((2, 16, 3))
    np.testing.assert_allclose(align(parts[..., order] * signs, parts), parts)
    # those of an encoder with larger patches, too
    coarse = parts.reshape(2, 4, 4, 3)[:, 1::2, 1::2].reshape(2, 4, 3)
    np.testing.assert_allclose(align(parts[..., order] * signs, coarse), parts)


def test_components_of_constant_features_are_colours_all_the_same() -> None:
    parts, share = principal_components(torch.ones(2, 4, 6))
    assert np.isfinite(parts).all()
    assert 0 <= share <= 1
    assert as_rgb(parts).dtype == np.uint8


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 99))
def test_segments_under_other_names_get_the_same_colours(prototypes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, prototypes, (3, 16))
    renamed = rng.permutation(100)[:prototypes][base]
    one, other = segment_colours([base, renamed], 0)
    np.testing.assert_array_equal(one, other)
    again, _ = segment_colours([renamed, base], 1)
    np.testing.assert_array_equal(again, one)
    # one colour a prototype, two prototypes two colours
    pairs = {(int(name), tuple(rgb)) for name, rgb in zip(base.ravel(), one.reshape(-1, 3), strict=True)}
    assert len(pairs) == len(np.unique(base)) == len({rgb for _, rgb in pairs})


def test_split_prototype_keeps_the_colour_of_its_larger_part() -> None:
    base = np.array([[0, 0, 0, 1]])
    split = np.array([[7, 7, 8, 5]])
    one, other = segment_colours([base, split], 0)
    np.testing.assert_array_equal(other[0, :2], one[0, :2])
    np.testing.assert_array_equal(other[0, 3], one[0, 3])
    assert not any((other[0, 2] == known).all() for known in one[0])


def test_first_colours_are_all_distinct() -> None:
    assert len({tuple(colour(slot)) for slot in range(24)}) == 24


def test_other_grids_are_sampled_at_the_patches_centres() -> None:
    grid = np.arange(16).reshape(1, 16)
    np.testing.assert_array_equal(regrid(grid, 4), [[5, 7, 13, 15]])
    np.testing.assert_array_equal(regrid(regrid(grid, 64), 16), grid)


def test_attention_is_brightest_where_it_is_largest() -> None:
    values = np.linspace(0, 1, 64).reshape(8, 8)
    drawn = heat(values, np.full((8, 8, 3), 128, dtype=np.uint8)).astype(int).sum(-1).ravel()
    assert drawn[-1] == drawn.max()
    assert drawn[0] < drawn[-1] / 2


def test_effective_keys_of_even_and_single_attention() -> None:
    axes = torch.eye(20)[None]
    assert effective_keys(axes[:, :3].repeat(2, 1, 1), axes.repeat(2, 1, 1), 0.0) == pytest.approx(100)
    assert effective_keys(axes, axes, 1e4) == pytest.approx(5)


def test_effective_keys_of_many_images_take_the_memory_of_one() -> None:
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            largest[0] = max(largest[0], made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    queries, keys = torch.randn(7, 30, 4), torch.randn(7, 40, 4)
    weights = attention_map(queries, keys, 0.5)
    wanted = 100 * torch.exp(-(weights * weights.log()).sum(-1).mean()) / 40
    with Sizes():
        assert effective_keys(queries, keys, 0.5) == pytest.approx(float(wanted))
    assert largest[0] == 30 * 40


def test_queries_are_distinct_patches() -> None:
    for grid in (2, 3, 6, 14):
        assert len(set(query_indices(grid, 5))) == (5 if grid > 2 else 4)
        assert all(0 <= index < grid * grid for index in query_indices(grid, 5))


@pytest.fixture
def model() -> Looked:
    torch.manual_seed(0)
    encoder = EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=16, depth=2, heads=2)
    backbone = Backbone(build_encoder(encoder, 32), *timm_arguments(encoder, 32))
    head = ProjectionHead(16, 6, hidden=16, bottleneck=8, batch_norm=True).eval()
    return Looked("x", backbone, head, 0.2, 0.2, Path("x"))


@pytest.mark.parametrize("centred", [False, True])
def test_usage_is_that_of_a_loop(model: Looked, centred: bool) -> None:
    # so that everything is assigned to the last prototype
    center = torch.tensor([2.0, 2, 2, 2, 2, -2]) if centred else torch.zeros(6)
    model = replace(model, center=center if centred else None)
    torch.manual_seed(1)
    images = torch.rand(7, 3, 32, 32)
    usage = count_usage(model, [images[:3], images[3:]], nearest=4)
    counts = [0] * 6
    nearest: list[list[tuple[float, int, int]]] = [[] for _ in range(6)]
    for index in range(7):
        keys = model.tokens(images[index : index + 1])[0]
        rows = []
        for query in keys:
            weights = torch.softmax(model.tau_sa * keys @ query, 0)
            rows.append(weights @ keys)
        assert model.head is not None
        logits = model.head(torch.stack(rows))
        for row in logits:
            counts[int((row - center).argmax())] += 1
        for prototype in range(6):
            patch = int(logits[:, prototype].argmax())
            nearest[prototype].append((float(logits[patch, prototype].detach()), index, patch))
    assert usage.counts.tolist() == counts
    assert (counts[5] == sum(counts)) == centred
    for prototype, found in enumerate(nearest):
        expected = sorted(found, reverse=True)[:4]
        np.testing.assert_allclose(usage.similarity[:, prototype], [one[0] for one in expected], atol=1e-5)
        assert usage.image[:, prototype].tolist() == [one[1] for one in expected]
        assert usage.patch[:, prototype].tolist() == [one[2] for one in expected]
    shares = [count / sum(counts) for count in counts if count]
    assert usage.perplexity == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
    assert usage.used == len(shares)


def test_most_used_leaves_out_the_unused() -> None:
    none = Tensor()
    usage = Usage(torch.tensor([0, 5, 2, 0, 5]), none, none, none)
    assert usage.most_used(4) == [1, 4, 2]


def test_sheet_has_room_for_all_words(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (20, 10), "red"), None]
    made = sheet("A title that is longer than its columns", "a note " * 30, ["one", "two"], [("row", pictures)], 40)
    assert made.width > 300
    red = (np.asarray(made) == (255, 0, 0)).all(-1)
    assert red.sum() == 1600


@pytest.mark.parametrize("text", ["epochs-2_head.layers-3_seed-1", "a " * 40, "W" * 50, "x", "", "i" * 9 + "_" * 40])
def test_lines_are_no_wider_than_asked_and_lose_no_letter(text: str) -> None:
    font, pen = ImageFont.load_default(14), ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = wrapped(text, font, pen, 144)
    assert max(pen.textlength(line, font) for line in lines) <= 144
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_names_are_broken_between_their_parts() -> None:
    font, pen = ImageFont.load_default(14), ImageDraw.Draw(Image.new("RGB", (1, 1)))
    assert wrapped("epochs-2_head.layers-3, epoch 7", font, pen, 144) == ["epochs-2_", "head.layers-3, epoch 7"]
    assert wrapped("val2017/000000001096.jpg", font, pen, 144) == ["val2017/", "000000001096.jpg"]


def test_use_of_a_collapsed_encoder_is_seen() -> None:
    none = torch.empty(0, 5)
    usages = [Usage(torch.tensor(counts), none, none, none) for counts in ([9, 0, 0, 0, 0], [4, 3, 2, 1, 1])]
    chart = np.asarray(usage_chart(["collapsed", "healthy"], usages, 1))
    collapsed, healthy = ((chart == colour).all(-1) for colour in ([31, 119, 180], [255, 127, 14]))
    # at the left of the panel, where the most used one has its place, and not in the key alone
    assert collapsed[:380, :200].any()
    assert healthy[:380, :200].any()


def test_images_of_all_sizes_and_modes_are_seen(tmp_path: Path) -> None:
    for name, image in (
        ("wide.png", Image.new("L", (300, 3))),
        ("tall.jpg", Image.new("CMYK", (2, 90))),
        ("dot.png", Image.new("RGBA", (1, 1))),
        ("deep.png", Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16))),
        ("two.png", Image.new("1", (5, 4))),
        ("few.png", Image.new("P", (33, 47))),
    ):
        image.save(tmp_path / name)
        view = choose.view(*choose.files([tmp_path / name]), 32, seed=0)
        assert view.teacher.size == view.student.size == (32, 32)
        assert view.teacher.mode == view.student.mode == "RGB"
        top, left, height, width = view.box
        assert 0 <= top < top + height <= 32
        assert 0 <= left < left + width <= 32
        assert choose.view(*choose.files([tmp_path / name]), 32, seed=0).box == view.box
    assert len(choose.images_of(tmp_path, "val")) == 6
    (tmp_path / "torn.png").write_bytes((tmp_path / "few.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"torn.png: not a readable image"):
        choose.view(*choose.files([tmp_path / "torn.png"]), 32, seed=0)


def test_a_checked_set_gives_the_usable_images_of_its_split(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / name)
    (root / "val/b/4.png").write_bytes(b"torn")
    check_data(ImageFolderSettings(root=str(root)), tmp_path / "checked")

    def found(split: str) -> list[str]:
        images = choose.images_of(tmp_path / "checked", split)
        return [image.path.relative_to(root).as_posix() for image in choose.evenly(images, 100)]

    assert found("val") == ["val/a/2.png", "val/b/3.png"]
    assert found("train") == ["train/a/0.png", "train/b/1.png"]
    # a set that has no such split gives all of its images
    assert found("test") == found("train") + found("val")
    # a pack is read instead of the files
    pack_images(tmp_path / "checked", tmp_path / "pack")
    shutil.rmtree(root)
    assert found("val") == ["val/a/2.png", "val/b/3.png"]
    assert choose.images_of(tmp_path / "checked", "val")[1].load().size == (9, 9)


def test_evenly_spaced_choice() -> None:
    images = choose.files(Path(str(index)) for index in range(10))
    assert [image.path.name for image in choose.evenly(images, 4)] == ["0", "3", "6", "9"]
    assert choose.evenly(images, 50) == images
    assert choose.evenly(images, 1) == images[:1]


def test_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        choose.images_of(tmp_path, "val")

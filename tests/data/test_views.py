"""Views and queries: nesting, sizes, determinism, and the CPU's crop against torchvision."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from flsl.config.pretrain import PretrainSettings, ViewSettings
from flsl.data.crops import CROP_DRAWS, random_resized_boxes
from flsl.data.views import FLSLViews, query_draws, sample_queries

OFF = {"jitter": 0.0, "grayscale": 0.0, "blur_a": 0.0, "blur_b": 0.0, "solarize": 0.0}


def small(**views: object) -> FLSLViews:
    sizes = {"teacher_size": 64, "global_size": 64, "local_size": 32, **views}
    return FLSLViews(PretrainSettings(views=ViewSettings(**sizes)), depth=2)  # type: ignore[arg-type]


def image_of(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Noise of a width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def views_of(views: FLSLViews, images: list[torch.Tensor], epoch: int = 0, seed: int = 0):
    numbers = np.stack([views.draw(seed, epoch, index) for index in range(len(images))])
    crops = torch.stack([views.crop(image, row) for image, row in zip(images, numbers, strict=True)])
    return views(views.batch(crops, numbers))


def test_paper_sizes() -> None:
    views = FLSLViews(PretrainSettings(), depth=12)
    teacher, (whole, local) = views_of(views, [image_of((300, 260), i) for i in range(3)])
    assert teacher.shape == (3, 3, 224, 224)
    assert whole.shape == (3, 3, 224, 224)
    assert local.shape == (6, 3, 96, 96)


@pytest.mark.parametrize("size", [(90, 70), (48, 300), (64, 64), (30, 20)])
def test_teacher_crop_equals_torchvisions_on_the_same_box(size: tuple[int, int]) -> None:
    views, image = small(), image_of(size)
    numbers = views.draw(3, 1, 4)
    box = random_resized_boxes(numbers[None, :CROP_DRAWS], size[1], size[0], (0.8, 1.0))[0].tolist()
    crop = views.crop(image, numbers)
    assert torch.equal(crop, tv2.resized_crop(image, *box, [64, 64], tv.InterpolationMode.BICUBIC, antialias=True))
    # Pillow keeps more digits of the filter's weights: a level here and there
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    wanted = tv.pil_to_tensor(tv.resized_crop(photo, *box, [64, 64], tv.InterpolationMode.BICUBIC))
    difference = (crop.int() - wanted.int()).abs()
    assert int(difference.max()) <= 3
    assert float(difference.float().mean()) < 0.05


def test_student_views_are_crops_of_the_teachers_crop() -> None:
    views = small(**OFF)
    numbers = np.stack([views.draw(0, 0, index) for index in range(3)])
    crops = torch.stack([views.crop(image_of((90, 80), i), row) for i, row in enumerate(numbers)])
    batch = views.batch(crops, numbers)
    _, students = views(batch)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for group, size, made in zip(batch.students, (64, 32), students, strict=True):
        for place, (box, view) in enumerate(zip(group.boxes.tolist(), made, strict=True)):
            crop = crops[place % 3].float() / 255
            wanted = tv.resized_crop(crop, *box, [size, size], tv.InterpolationMode.BICUBIC, antialias=True)
            torch.testing.assert_close(view * std + mean, wanted.clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_areas_are_in_their_ranges() -> None:
    views = FLSLViews(PretrainSettings(), depth=0)
    numbers = np.random.default_rng(0).random((2000, views.draws))
    batch = views.batch(torch.zeros(2000, 3, 224, 224, dtype=torch.uint8), numbers)
    for group, (low, high) in zip(batch.students, ((0.5, 1.0), (0.05, 0.4)), strict=True):
        area = (group.boxes[:, 2] * group.boxes[:, 3]).double() / 224**2
        assert float(area.min()) == pytest.approx(low, abs=0.02)
        assert float(area.max()) == pytest.approx(high, abs=0.03)


def test_a_samples_views_depend_on_seed_epoch_and_index_alone() -> None:
    views = small()
    images = [image_of((80, 90), i) for i in range(4)]
    teacher, (whole, local) = views_of(views, images)
    again, (whole_again, local_again) = views_of(views, images[:2])
    torch.testing.assert_close(again, teacher[:2])
    torch.testing.assert_close(whole_again, whole[:2])
    # view by view: the first two samples' second local views come after all first ones
    torch.testing.assert_close(local_again, local[[0, 1, 4, 5]])
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not torch.allclose(views_of(views, images, **other)[0], teacher)


def test_every_number_is_used_once() -> None:
    """A change of any one number changes its own sample's views or queries, and no other sample's."""
    views = small(jitter=1.0, grayscale=0.0, blur_a=1.0, blur_b=1.0, solarize=1.0)
    numbers = np.random.default_rng(1).random((2, views.draws))
    crops = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)

    def everything(values: np.ndarray) -> torch.Tensor:
        batch = views.batch(crops, values)
        teacher, students = views(batch)
        parts = [teacher.flatten(1)]
        for group, made in zip(batch.students, students, strict=True):
            per_sample = len(made) // 2
            for view in range(per_sample):
                rows = slice(view * 2, view * 2 + 2)
                parts += [made[rows].flatten(1), group.queries[rows].float(), group.drop_path[rows]]
        return torch.cat(parts, 1)

    before = everything(numbers)
    unused = 0
    for place in range(CROP_DRAWS, views.draws):
        changed = numbers.copy()
        changed[0, place] = (changed[0, place] + 0.5) % 1
        after = everything(changed)
        assert torch.equal(after[1], before[1])
        unused += torch.equal(after[0], before[0])
    # tries after the first that fits are unused, as are draws whose threshold the change does not cross
    assert unused < 0.6 * views.draws


@settings(max_examples=60)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 9))
def test_one_query_of_each_window(grid: int, window: int, seed: int) -> None:
    window = min(grid, window)
    uniforms = torch.from_numpy(np.random.default_rng(seed).random((50, query_draws(grid, window))))
    queries = sample_queries(grid, window, uniforms)
    count = grid // window
    assert queries.shape == (50, count * count)
    for row in queries.numpy():
        ys, xs = np.divmod(row, grid)
        # the square of windows lies in one corner
        for slack_y in {0, grid - count * window}:
            for slack_x in {0, grid - count * window}:
                wy, wx = (ys - slack_y) // window, (xs - slack_x) // window
                if (
                    (wy * count + wx == np.arange(count * count)).all()
                    and (ys >= slack_y).all()
                    and (xs >= slack_x).all()
                ):
                    break
            else:
                continue
            break
        else:
            raise AssertionError(f"{row} is not one token of each window")


def test_queries_are_uniform_within_a_window_and_over_corners() -> None:
    uniforms = torch.from_numpy(np.random.default_rng(0).random((40_000, query_draws(5, 2))))
    queries = sample_queries(5, 2, uniforms)
    first = torch.bincount(queries[:, 0], minlength=25).double() / len(queries)
    # the first window's corner is 0, 1, 5 or 6 with probability 1/4 each, and its token one of four
    expected = torch.zeros(25, dtype=torch.float64)
    for corner in (0, 1, 5, 6):
        for token in (0, 1, 5, 6):
            expected[corner + token] += 1 / 16
    assert float((first - expected).abs().max()) < 0.006


def test_fixed_sampling_takes_the_first_token() -> None:
    assert sample_queries(5, 2, torch.rand(3, 5), "first").tolist() == [[0, 2, 10, 12]] * 3


def test_query_counts_of_the_paper() -> None:
    assert [query_draws(224 // 16, 2) - 1, query_draws(96 // 16, 2) - 1] == [49, 9]
    assert query_draws(224 // 8, 4) - 1 == 49

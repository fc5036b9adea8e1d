"""Views made in few passes are the views, whatever the batch."""

import numpy as np
import pytest
import torch

from flsl.config.pretrain import PretrainSettings, ViewSettings
from flsl.data.crops import resize_matrices
from flsl.data.fused_views import FusedOperations, changed, finished
from flsl.data.views import FLSLViews

PLAIN = FusedOperations(resize_matrices, changed, finished)


def views_and_batch(count: int, seed: int, **changes):
    sizes = {"teacher_size": 48, "global_size": 48, "local_size": 32, **changes}
    views = FLSLViews(PretrainSettings(views=ViewSettings(**sizes), query_window=1), depth=2)
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randint(256, (count, 3, 48, 48), dtype=torch.uint8, generator=generator)
    crops[0] = crops[0, :1]  # a gray image: it has no hue
    return views, views.batch(crops, np.random.default_rng(seed).random((count, views.draws)))


@pytest.mark.parametrize("compiled", [False, True])
def test_they_equal_those_made_one_change_after_another(compiled: bool) -> None:
    fused = FusedOperations.compiled("aot_eager") if compiled else PLAIN
    for seed, count in enumerate((20, 20, 3)):
        views, batch = views_and_batch(count, seed)
        teacher, students = views(batch)
        teacher_again, students_again = views(batch, fused)
        for made, wanted in zip((teacher_again, *students_again), (teacher, *students), strict=True):
            assert made.shape == wanted.shape
            # a pixel at the threshold of solarizing may fall to its other side by rounding
            apart = ((made - wanted).abs() > 1e-4).double().mean()
            assert float(apart) < 1e-4


@pytest.mark.parametrize(
    "only",
    [
        {"jitter": 1.0, "contrast": 0.4},
        {"jitter": 1.0, "brightness": 0.4},
        {"jitter": 1.0, "saturation": 0.4},
        {"jitter": 1.0, "hue": 0.3},
        {"grayscale": 1.0},
        {"blur_a": 1.0, "blur_b": 1.0},
        {"solarize": 1.0},
        {},
    ],
    ids=lambda only: "_".join(only) or "nothing",
)
def test_each_change_by_itself(only: dict[str, float]) -> None:
    names = ("jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "blur_a", "blur_b", "solarize")
    off = dict.fromkeys(names, 0.0)
    views, batch = views_and_batch(12, 0, **{**off, **only})
    _, without = views_and_batch(12, 0, **off)
    teacher, students = views(batch)
    made, made_students = views(batch, PLAIN)
    torch.testing.assert_close(made, teacher, atol=1e-4, rtol=1e-4)
    for mine, wanted in zip(made_students, students, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    assert (not only) == torch.equal(views(without, PLAIN)[0], made)


def test_the_batch_is_left_as_it_was() -> None:
    views, batch = views_and_batch(8, 0)
    before = batch.crops.clone()
    views(batch, PLAIN)
    assert torch.equal(batch.crops, before)

"""Crops: the boxes' distribution and the matrices, against torchvision given the same boxes and sigmas."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from flsl.data.crops import CROP_DRAWS, apply_matrices, blur_matrices, random_resized_boxes, resize_matrices


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 99))
def test_boxes_lie_in_the_image(height: int, width: int, low: float, more: float, seed: int) -> None:
    uniforms = np.random.default_rng(seed).random((20, CROP_DRAWS))
    top, left, h, w = random_resized_boxes(uniforms, height, width, (low, low + more * (1 - low))).T
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(224, 224, (0.05, 0.4)), (375, 500, (0.8, 1.0)), (60, 400, (0.5, 1.0))]
)
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    count = 3000
    ours = random_resized_boxes(np.random.default_rng(0).random((count, CROP_DRAWS)), height, width, scale)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    for ours_column, theirs_column in zip(ours.T, theirs.T, strict=True):
        # two-sample Kolmogorov-Smirnov distance, far above what chance gives at the 0.1 % level
        grid = np.unique(np.concatenate([ours_column, theirs_column]))
        distance = (
            np.abs(
                np.searchsorted(np.sort(ours_column), grid, "right")
                - np.searchsorted(np.sort(theirs_column), grid, "right")
            ).max()
            / count
        )
        assert distance < 1.95 * math.sqrt(2 / count)


@settings(max_examples=25)
@given(st.integers(4, 40), st.integers(2, 50), st.integers(0, 99))
def test_crop_and_resize_equals_torchvision(in_size: int, out_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.random((3, 3, in_size, in_size), dtype=np.float32))
    boxes = random_resized_boxes(rng.random((3, CROP_DRAWS)), in_size, in_size, (0.05, 1.0))
    top, left, height, width = torch.from_numpy(boxes).unbind(1)
    rows, columns = (resize_matrices(a, b, in_size, out_size) for a, b in ((top, height), (left, width)))
    ours = apply_matrices(images, rows, columns)
    for image, box, made in zip(images, boxes.tolist(), ours, strict=True):
        wanted = tv.resized_crop(image, *box, [out_size, out_size], InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(made, wanted, atol=5e-6, rtol=1e-5)


def test_blur_equals_torchvision() -> None:
    images, sigmas = torch.rand(4, 3, 30, 30), torch.tensor([0.1, 0.7, 1.3, 2.0])
    matrices = blur_matrices(sigmas, 30, 6)
    for image, sigma, made in zip(images, sigmas.tolist(), apply_matrices(images, matrices, matrices), strict=True):
        torch.testing.assert_close(made, tv.gaussian_blur(image, [13, 13], [sigma, sigma]), atol=1e-6, rtol=1e-5)


def test_a_radius_of_zero_blurs_nothing() -> None:
    assert torch.equal(blur_matrices(torch.zeros(2), 8, 3), torch.eye(8).expand(2, -1, -1))


def test_rows_sum_to_one() -> None:
    starts, lengths = torch.tensor([0, 3, 10]), torch.tensor([16, 5, 1])
    for matrix in (resize_matrices(starts, lengths, 16, 7), blur_matrices(torch.tensor([0.2, 1.0, 5.0]), 16, 15)):
        torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:2]))

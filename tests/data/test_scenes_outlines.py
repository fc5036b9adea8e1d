"""Masks as polygons and run lengths, against pycocotools' own rasteriser."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from flsl.data.scenes.outlines import outlines, run_lengths, segmentation

masks = hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def decoded(segmented: list | dict, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    coded = coco_mask.frPyObjects(segmented, height, width)
    return coco_mask.decode(coco_mask.merge(coded) if isinstance(coded, list) else coded).astype(bool)


@given(masks)
@settings(max_examples=300)
def test_pycocotools_reads_back_the_very_mask(mask: np.ndarray) -> None:
    segmented = segmentation(mask)
    if segmented == []:
        assert not mask.any()
    else:
        np.testing.assert_array_equal(decoded(segmented, mask.shape), mask)


@given(masks)
@settings(max_examples=200)
def test_polygons_are_one_a_connected_part_and_run_lengths_say_holes(mask: np.ndarray) -> None:
    segmented = segmentation(mask)
    # what the background cannot reach from outside, going round corners too, is a hole
    holes = ndimage.binary_fill_holes(mask, structure=np.ones((3, 3)))
    assert isinstance(segmented, dict) == bool((holes & ~mask).any())
    if isinstance(segmented, list):
        assert len(segmented) == ndimage.label(mask)[1]


@given(masks)
@settings(max_examples=200)
def test_run_lengths_are_those_of_the_columns(mask: np.ndarray) -> None:
    coded = run_lengths(mask)
    expected, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            expected.append(0)
            value = pixel
        expected[-1] += 1
    assert coded == {"size": list(mask.shape), "counts": expected}


def test_a_square_has_four_corners_clockwise() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    (corners,) = outlines(mask)
    start = corners.index((2, 1))
    assert corners[start:] + corners[:start] == [(2, 1), (5, 1), (5, 4), (2, 4)]


@pytest.mark.parametrize("shape", [(3, 3), (1, 7)])
def test_an_empty_mask_has_no_outline(shape: tuple[int, int]) -> None:
    assert segmentation(np.zeros(shape, bool)) == []

from __future__ import annotations

import davis_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from flsl.video import bitmaps
from flsl.video.davis_measures import region_and_contour, statistics

shapes = st.tuples(st.integers(1, 12), st.integers(1, 140))


@st.composite
def mask_stacks(draw):
    height, width = draw(shapes)
    share = draw(st.sampled_from([0.02, 0.3, 0.95]))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).random((draw(st.integers(1, 3)), height, width)) < share


def unpack(words, width):
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little").astype(bool)
    assert not bits[..., width:].any(), "bits beyond the width must stay zero"
    return bits[..., :width]


@given(mask_stacks())
def test_packing_keeps_every_pixel_and_counts_it(masks):
    words = bitmaps.pack(masks)
    assert (unpack(words, masks.shape[-1]) == masks).all()
    assert bitmaps.count(words).tolist() == masks.sum((1, 2)).tolist()


@given(mask_stacks())
@settings(max_examples=50)
def test_boundary_is_the_literal_boundary_map(masks):
    edges = unpack(bitmaps.boundary(bitmaps.pack(masks), masks.shape[-1]), masks.shape[-1])
    assert (edges == np.stack([reference.edge(mask) for mask in masks])).all()


@given(mask_stacks(), st.integers(0, 20))
def test_dilation_reaches_what_the_distance_transform_says(masks, radius):
    width = masks.shape[-1]
    dilated = unpack(bitmaps.dilate(bitmaps.pack(masks), radius, width), width)
    for mask, found in zip(masks, dilated, strict=True):
        near = ndimage.distance_transform_edt(~mask) <= radius if mask.any() else np.zeros_like(mask)
        assert (found == near).all()


@given(
    st.tuples(st.integers(2, 14), st.integers(2, 70)).flatmap(
        lambda shape: st.tuples(
            *[arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 2, 3, 7, 255]))] * 2
        )
    ),
    st.integers(1, 3),
)
@settings(max_examples=60)
def test_region_and_contour_equal_the_literal_measures(pair, objects):
    region, contour = region_and_contour(*pair, objects)
    for index in range(objects):
        truth, found = (labels == index + 1 for labels in pair)
        assert region[index] == pytest.approx(reference.region(truth, found), abs=1e-12)
        assert contour[index] == pytest.approx(reference.contour(truth, found), abs=1e-12)


def test_contour_tolerates_what_lies_within_the_radius_and_no_more():
    truth, found = np.zeros((90, 120), np.uint8), np.zeros((90, 120), np.uint8)
    truth[20:60, 20:60] = 1  # the diagonal is 150 pixels, the tolerance ⌈1.2⌉ = 2
    for shift, expected in ((2, 1.0), (3, 0.0)):
        found[:] = 0
        found[20:60, 20 + shift : 60 + shift] = 1
        _, contour = region_and_contour(truth, found, 1)
        sides_only = reference.contour(truth == 1, found == 1)
        assert contour[0] == pytest.approx(sides_only)
        assert (contour[0] == 1.0) == (expected == 1.0)


@pytest.mark.parametrize(
    ("in_truth", "in_prediction", "expected"), [(False, False, 1.0), (True, False, 0.0), (False, True, 0.0)]
)
def test_an_object_that_vanished_is_right_only_when_it_is_not_predicted(in_truth, in_prediction, expected):
    masks = [np.zeros((20, 30), np.uint8) for _ in range(2)]
    for mask, present in zip(masks, (in_truth, in_prediction), strict=True):
        mask[5:10, 5:10] = present
    region, contour = region_and_contour(*masks, 1)
    assert (region[0], contour[0]) == (expected, expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=120))
def test_statistics_equal_the_literal_ones(values):
    assert statistics(np.array(values)) == pytest.approx(reference.statistics(values), abs=1e-12)


def test_decay_of_five_frames_shares_the_frames_between_quarters():
    # quarter ends 1, 2, 3, 4, 5: the first quarter is frames 1 and 2, the last one 4 and 5
    assert statistics(np.array([1.0, 0.8, 0.6, 0.4, 0.0])) == pytest.approx((0.56, 0.6, 0.7))

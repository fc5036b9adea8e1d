from __future__ import annotations

import subprocess
import sys

import propagation_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from flsl.video.affinity import propagate_labels


def random_case(seed, height, width, frames, channels=6, classes=3):
    generator = torch.Generator().manual_seed(seed)
    queries = F.normalize(torch.randn(height, width, channels, generator=generator, dtype=torch.float64), dim=-1)
    keys = F.normalize(torch.randn(frames, height, width, channels, generator=generator, dtype=torch.float64), dim=-1)
    labels = torch.rand(frames, height, width, classes, generator=generator, dtype=torch.float64)
    return queries, keys, labels


@given(
    seed=st.integers(0, 2**30),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    frames=st.integers(1, 3),
    radius=st.integers(0, 14),
    top_k=st.integers(1, 60),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
)
@settings(max_examples=40)
def test_labels_equal_the_literal_protocol(seed, height, width, frames, radius, top_k, temperature):
    case = random_case(seed, height, width, frames)
    expected = reference.step(*(part.numpy() for part in case), radius, top_k, temperature)
    assert propagate_labels(*case, radius, top_k, temperature).numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("radius", [2, 5, 12])
def test_labels_equal_the_literal_protocol_where_several_tiles_meet(radius):
    case = random_case(1, 25, 19, 2)
    expected = reference.step(*(part.numpy() for part in case), radius, 5, 0.1)
    assert propagate_labels(*case, radius, 5, 0.1).numpy() == pytest.approx(expected, abs=1e-9)


@given(seed=st.integers(0, 2**30), top_k=st.integers(1, 9), radius=st.integers(1, 6))
@settings(max_examples=25)
def test_keys_that_tie_with_the_last_of_the_best_are_all_kept(seed, top_k, radius):
    # axes of the space as features: every cosine is exactly 0 or 1, so that nearly all queries see ties
    _, _, labels = random_case(seed, 7, 9, 3)
    generator = torch.Generator().manual_seed(seed)
    axes = torch.eye(4, dtype=torch.float64)
    queries = axes[torch.randint(4, (7, 9), generator=generator)]
    keys = axes[torch.randint(4, (3, 7, 9), generator=generator)]
    expected = reference.step(queries.numpy(), keys.numpy(), labels.numpy(), radius, top_k, 0.1)
    found = propagate_labels(queries, keys, labels, radius, top_k, 0.1)
    assert found.numpy() == pytest.approx(expected, abs=1e-9)
    # so that the order of the context frames cannot matter
    reordered = propagate_labels(queries, keys.flip(0), labels.flip(0), radius, top_k, 0.1)
    assert reordered.numpy() == pytest.approx(found.numpy(), abs=1e-9)


def test_a_radius_keeps_labels_from_further_away_out():
    queries = torch.ones(9, 9, 1)
    labels = torch.zeros(1, 9, 9, 1)
    labels[0, 4, 4] = 1
    reached = propagate_labels(queries, queries[None], labels, radius=2, top_k=100, temperature=1.0)[..., 0] > 0
    rows, columns = torch.nonzero(reached, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 2, 6)
    assert reached.sum() == 25


def products_of_features(height, width, radius):
    """How many cosines are computed, by counting the multiplications of matrix products."""
    features = F.normalize(torch.rand(height, width, 64), dim=-1)
    with FlopCounterMode(display=False) as counter:
        propagate_labels(features, features[None], torch.zeros(1, height, width, 1), radius, 5, 0.1)
    return counter.get_total_flops() / (2 * 64)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (64, 128)])
@pytest.mark.parametrize(("radius", "most"), [(3, 4.2), (12, 2.6)])
def test_work_is_linear_in_tokens_times_window(height, width, radius, most):
    # at radius 12 a tile of 16 × 16 queries meets 40 × 40 keys, where each query needs 25 × 25
    assert products_of_features(height, width, radius) <= most * height * width * (2 * radius + 1) ** 2


def test_eight_frames_of_a_480p_grid_of_small_patches_fit_in_memory():
    """ViT-S/8 at 480p: 60 × 106 tokens. The dense affinity alone would take 1.3 GB, its mask as much again."""
    code = (
        "import torch, resource\n"
        "from flsl.video.affinity import propagate_labels\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "torch.set_num_threads(1)\n"
        "keys = torch.nn.functional.normalize(torch.rand(8, 60, 106, 384), dim=-1)\n"
        "propagate_labels(keys[0], keys, torch.rand(8, 60, 106, 3), 12, 5, 0.1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    kilobytes = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 600 * 1024

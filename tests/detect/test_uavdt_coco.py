"""COCO's figures from arrays equal pycocotools'."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flsl.detect import uavdt_match
from flsl.detect.uavdt_coco import Boxes, coco_stats


def reference(found: Boxes, score: np.ndarray, truth: Boxes, crowds: Boxes, frames: int) -> np.ndarray:
    annotations: list[dict[str, Any]] = []
    for boxes, crowd in ((truth, 0), (crowds, 1)):
        for frame, box in zip(boxes.frame.tolist(), boxes.box.tolist(), strict=True):
            entry = {"image_id": frame, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            annotations.append({**entry, "id": len(annotations) + 1})
    results = [
        {"image_id": frame, "category_id": 1, "bbox": box, "score": value}
        for frame, box, value in zip(found.frame.tolist(), found.box.tolist(), score.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        images = [{"id": frame, "width": 400, "height": 400} for frame in range(frames)]
        ground.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(results) if results else COCO(), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats)


def made(rng: np.random.Generator, frames: int, most: int) -> tuple[Boxes, np.ndarray, Boxes, Boxes]:
    """Make boxes of all sizes on a coarse grid, with ties, and detections near them, in crowds and repeated."""

    def some(count: int) -> Boxes:
        frame = np.sort(rng.integers(0, frames, count))
        sizes = rng.choice([8, 16, 28, 32, 40, 96, 104, 150], (count, 2))
        return Boxes(frame, np.column_stack([rng.integers(0, 12, (count, 2)) * 20, sizes]).astype(np.float64))

    truth, crowds = some(int(rng.integers(0, 6 * frames))), some(int(rng.integers(0, 2 * frames)))
    everything = [np.column_stack([each.frame, each.box]) for each in (truth, crowds, some(frames))]
    near = np.concatenate(everything)
    rows = near[rng.integers(0, len(near), int(rng.integers(1, most * frames)))]
    rows[:, 1:] += rng.integers(-4, 5, (len(rows), 4)) * (rng.random((len(rows), 1)) < 0.6)
    rows[:, 3:] = np.maximum(rows[:, 3:], 0)
    score = np.where(rng.random(len(rows)) < 0.5, rng.choice([0.25, 0.5, 0.75], len(rows)), rng.random(len(rows)))
    order = np.lexsort((-score, rows[:, 0]))
    return Boxes(rows[order, 0].astype(np.int64), rows[order, 1:]), score[order], truth, crowds


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 5), most=st.sampled_from([3, 12, 150]))
def test_all_twelve_figures_equal_pycocotools(seed: int, frames: int, most: int) -> None:
    files = made(np.random.default_rng(seed), frames, most)
    np.testing.assert_allclose(coco_stats(*files), reference(*files, frames), atol=1e-9)


def test_pieces_of_the_work_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    files = made(np.random.default_rng(3), 6, 40)
    expected = coco_stats(*files)
    monkeypatch.setattr(uavdt_match, "_CHUNK", 7)
    np.testing.assert_array_equal(coco_stats(*files), expected)


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one() -> None:
    none = Boxes(np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
    one = Boxes(np.array([3]), np.array([[1.0, 2.0, 50.0, 50.0]]))
    found_none = coco_stats(none, np.zeros(0), one, none)
    assert found_none[[0, 6, 7, 8]].tolist() == [0, 0, 0, 0]
    # there is no small and no large box
    assert found_none[[3, 4, 5]].tolist() == [-1, 0, -1]
    assert coco_stats(one, np.array([0.5]), none, one).tolist() == [-1] * 12

"""bbox-aligned k-NN: which patches a box names, how they vote, and the whole stage on images whose answer is known."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from flsl.model.choice import EncoderChoice
from flsl.probe.aligned import classify, judge, nine_patches
from flsl.probe.images import ImageSource
from flsl.runtime.errors import UserError

COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


class MeanColours(nn.Module):
    """A stand-in for an encoder: a token is its patch's mean colour, less the grey of the background."""

    name, patch_size, width, depth = "colours", 8, 3, 1
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)

    def check_size(self, size: int, setting: str) -> None:
        """Any size will do."""


class Colours(EncoderChoice):
    def load(self, experiment: Any) -> Any:
        return MeanColours()


def slow_patches(boxes: list[tuple[float, float, float, float]], side: int, patch: int) -> list[int]:
    best, most = None, 0.0
    for x0, y0, x1, y1 in boxes:
        if (x1 - x0) * (y1 - y0) > most:
            best, most = (x0, y0, x1, y1), (x1 - x0) * (y1 - y0)
    if best is None:
        return [-1] * 9
    x0, y0, x1, y1 = best
    found = []
    for row in range(3):
        for column in range(3):
            x = x0 + (column + 0.5) * (x1 - x0) / 3
            y = y0 + (row + 0.5) * (y1 - y0) / 3
            found.append(math.floor(y / patch) * (side // patch) + math.floor(x / patch))
    return found


@settings(max_examples=300)
@given(st.lists(st.tuples(*[st.integers(0, 64)] * 4), max_size=5))
def test_nine_patches_equal_the_slow_reference(corners: list[tuple[int, int, int, int]]) -> None:
    # quarters of a pixel are exact, so that both computations round alike
    boxes = [(min(a, c) / 4 * 3, min(b, d) / 4 * 3, max(a, c) / 4 * 3, max(b, d) / 4 * 3) for a, b, c, d in corners]
    got = nine_patches(np.array(boxes, float).reshape(-1, 4), 48, 8).tolist()
    assert got == slow_patches(boxes, 48, 8)


def test_a_box_of_the_whole_crop_names_the_middles_of_its_thirds() -> None:
    # 14 × 14 patches of 16 pixels; the centres are at pixels 37.3, 112 and 186.7: patches 2, 7 and 11
    expected = [row * 14 + column for row in (2, 7, 11) for column in (2, 7, 11)]
    assert nine_patches(np.array([[0.0, 0, 224, 224]]), 224, 16).tolist() == expected


def test_a_small_box_names_one_patch_nine_times() -> None:
    assert nine_patches(np.array([[17.0, 1, 22, 6]]), 48, 8).tolist() == [2] * 9


def slow_judge(similarities: Any, neighbours: Any, labels: list[int], temperature: float) -> dict[str, float]:
    patch = image = anyone = 0
    for number, label in enumerate(labels):
        ballots: Counter[int] = Counter()
        sums: dict[int, float] = defaultdict(float)
        hits = 0
        for row in range(9 * number, 9 * number + 9):
            votes: dict[int, float] = defaultdict(float)
            for similarity, named in zip(similarities[row], neighbours[row], strict=True):
                votes[named] += math.exp(similarity / temperature)
            total = sum(votes.values())
            for named, weight in votes.items():
                sums[named] += weight / total
            winner = min(votes, key=lambda c: (-votes[c], c))
            ballots[winner] += 1
            hits += winner == label
        patch += hits
        anyone += hits > 0
        image += min(ballots, key=lambda c: (-ballots[c], -sums[c], c)) == label
    count = len(labels)
    return {
        "patch_top1": 100 * patch / (9 * count),
        "image_top1": 100 * image / count,
        "any_of_nine": 100 * anyone / count,
    }


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), k=st.integers(1, 6), memory=st.sampled_from([16, 1024]))
def test_votes_equal_the_slow_reference(seed: int, classes: int, k: int, memory: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarities = torch.rand(13 * 9, k, generator=generator).sort(1, descending=True).values
    neighbours = torch.randint(classes, (13 * 9, k), generator=generator)
    labels = torch.randint(classes, (13,), generator=generator)
    got = judge(similarities, neighbours, labels, classes, 0.07, memory)
    assert got == pytest.approx(slow_judge(similarities.tolist(), neighbours.tolist(), labels.tolist(), 0.07))


def test_equal_ballots_are_settled_by_the_sum_of_shares() -> None:
    # four patches for class 0, four for class 1, one for class 2; class 1's are surer of themselves
    neighbours = torch.tensor([[0, 0, 1]] * 4 + [[1, 1, 1]] * 4 + [[2, 2, 2]])
    similarities = torch.full((9, 3), 0.5)
    figures = judge(similarities, neighbours, torch.tensor([1]), 3, 0.07, 16)
    assert figures == pytest.approx({"patch_top1": 400 / 9, "image_top1": 100.0, "any_of_nine": 100.0})


def write_objects(root: Path, split: str, count: int, rows: list[list[Any]], seed: int) -> None:
    """Grey images with a coloured rectangle, the class's, and a smaller one of another class's colour."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    for number, name in enumerate(names):
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((60, 80, 3), 128, np.uint8)
            x, y = (int(start) for start in rng.integers((12, 0), (20, 3)))
            other = COLOURS[names[(number + 1) % 3]]
            pixels[y : y + 44, x : x + 48] = COLOURS[name]
            pixels[:12, 66:] = other
            path = f"{split}/{name}/{index}.png"
            Image.fromarray(pixels).save(root / path)
            rows.append([path, 66, 0, 80, 12])
            rows.append([path, x, y, x + 48, y + 44])


def write_boxes(root: Path, rows: list[list[Any]]) -> None:
    with (root / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "x0", "y0", "x1", "y1"], *rows])


@pytest.fixture
def objects(tmp_path: Path) -> tuple[Path, list[list[Any]]]:
    rows: list[list[Any]] = []
    root = tmp_path / "objects"
    write_objects(root, "train", 5, rows, 0)
    write_objects(root, "val", 3, rows, 1)
    return root, rows


SIZES = {"features": {"resize": 48, "crop": 48, "batch_size": 4}, "aligned_knn": {"k": [5, 20]}}


def test_patches_of_the_largest_box_tell_the_object(
    objects: tuple[Path, list[list[Any]]], make_settings: Callable, tmp_path: Path
) -> None:
    root, rows = objects
    write_boxes(root, rows)
    record = classify(make_settings(**SIZES), Colours(), ImageSource(root), "boxes.csv", tmp_path / "out", "base")
    names = [f"{name}@{k}" for k in (5, 20) for name in ("patch_top1", "image_top1", "any_of_nine")]
    assert record["metrics"] == {f"aligned_knn/{name}": 100.0 for name in names}
    assert record["images"] == {
        "train": {"used": 15, "without_box": 0, "box_outside_crop": 0},
        "val": {"used": 9, "without_box": 0, "box_outside_crop": 0},
    }


def test_boxes_of_background_tell_nothing(
    objects: tuple[Path, list[list[Any]]], make_settings: Callable, tmp_path: Path
) -> None:
    root, rows = objects
    write_boxes(root, [[row[0], 10, 52, 78, 60] for row in rows])
    record = classify(make_settings(**SIZES), Colours(), ImageSource(root), "boxes.csv", tmp_path / "out", "base")
    # all patches are equal: the neighbours are the first ones, of the first class
    assert record["metrics"]["aligned_knn/patch_top1@20"] == pytest.approx(100 / 3)


def test_images_without_a_box_in_their_crop_are_counted_and_left_out(
    objects: tuple[Path, list[list[Any]]], make_settings: Callable, tmp_path: Path
) -> None:
    root, rows = objects
    # the crop of an 80 × 60 image is its middle 60 columns: a box at the right edge lies outside
    outside = {"train/red/0.png", "val/blue/1.png", "val/blue/2.png"}
    none = {"train/red/1.png"}
    kept = [row for row in rows if row[0] not in none and not (row[0] in outside and row[1] != 66)]
    kept = [[row[0], 72, *row[2:]] if row[0] in outside else row for row in kept]
    write_boxes(root, kept)
    for workers in (0, 2):
        changes = {**SIZES, "compute": {"workers": workers}}
        record = classify(make_settings(**changes), Colours(), ImageSource(root), "boxes.csv", tmp_path / "o", "base")
        assert record["images"] == {
            "train": {"used": 13, "without_box": 1, "box_outside_crop": 1},
            "val": {"used": 7, "without_box": 0, "box_outside_crop": 2},
        }
        assert record["metrics"]["aligned_knn/patch_top1@5"] == 100.0


def write_xml(root: Path, rows: list[list[Any]]) -> None:
    boxes: dict[str, str] = defaultdict(str)
    for path, x0, y0, x1, y1 in rows:
        corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        boxes[path] += f"<object><bndbox>{corners}</bndbox></object>"
    for path, objects in boxes.items():
        file = (root / "boxes" / path).with_suffix(".xml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<annotation>{objects}</annotation>")


@pytest.mark.parametrize("workers", [0, 2])
def test_boxes_of_xml_files_are_read_beside_their_images(
    objects: tuple[Path, list[list[Any]]], make_settings: Callable, tmp_path: Path, workers: int
) -> None:
    root, rows = objects
    # one box outside its image, which counts as none, and two images without a file
    none = {"train/red/1.png", "val/blue/0.png"}
    rows = [row for row in rows if row[0] not in none | {"train/green/3.png"}]
    write_xml(root, [*rows, ["train/green/3.png", 200, 200, 210, 210]])
    changed = make_settings(**SIZES, compute={"workers": workers})
    record = classify(changed, Colours(), ImageSource(root), "boxes", tmp_path / "out", "base")
    assert record["images"] == {
        "train": {"used": 13, "without_box": 2, "box_outside_crop": 0},
        "val": {"used": 8, "without_box": 1, "box_outside_crop": 0},
    }
    assert record["metrics"]["aligned_knn/patch_top1@5"] == 100.0
    broken = root / "boxes" / "val" / "green" / "2.xml"
    broken.write_text("<annotation>")
    with pytest.raises(UserError, match=r"^\S+/boxes/val/green/2\.xml: not a PASCAL VOC file of boxes \([^()]+\)$"):
        classify(changed, Colours(), ImageSource(root), "boxes", tmp_path / "broken", "base")
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("rows", "boxes", "k", "message"),
    [
        ([], "boxes.csv", [5], r"boxes\.csv: no image of train has a box within its crop"),
        (
            [["train/red/0.png", 0, 0, 60, 60], ["val/red/0.png", 79, 0, 80, 60]],
            "boxes.csv",
            [5],
            "no image of val has",
        ),
        (
            [["train/red/0.png", 20, 0, 60, 60], ["val/red/0.png", 20, 0, 60, 60]],
            "boxes.csv",
            [10],
            "there are 9 patches",
        ),
        ([], None, [5], r"data\.images\.boxes: the aligned k-NN needs boxes"),
        ([], "../boxes.csv", [5], "leaves"),
        ([], "none", [5], "no such folder"),
    ],
)
def test_bad_boxes_are_refused_in_one_line(
    objects: tuple[Path, list[list[Any]]],
    make_settings: Callable,
    tmp_path: Path,
    rows: list[list[Any]],
    boxes: str | None,
    k: list[int],
    message: str,
) -> None:
    root, _ = objects
    write_boxes(root, rows)
    changed = make_settings(**{**SIZES, "aligned_knn": {"k": k}})
    with pytest.raises(UserError, match=message):
        classify(changed, Colours(), ImageSource(root), boxes, tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()

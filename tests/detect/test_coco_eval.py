"""COCO's figures equal pycocotools' on any input, and broken files get one clear line."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flsl.cli import main
from flsl.data.rle import check_codes, compress
from flsl.detect.coco_eval import FIGURES, evaluate_files
from flsl.runtime.errors import UserError

HEIGHT, WIDTH = 100, 120


def made_mask(rng: np.random.Generator, box: list[float], form: str) -> Any:
    x, y, w, h = (int(v) for v in box)
    if form == "polygon":
        return [[x, y, x + w, y + 0.5, x + 0.7 * w, y + h, x, y + 0.8 * h], [x, y, x + 3, y, x, y + 3.5]]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    mask[rng.random(mask.shape) < 0.02] ^= 1
    if form == "compressed":
        rle = reference_mask.encode(mask)
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()}


def made_files(seed: int, form: str, most: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make ground truth with crowds, empty images and gaps in the ids, and detections near and far from it."""
    rng = np.random.default_rng(seed)
    categories = sorted(int(c) for c in rng.choice(90, rng.integers(1, 4), replace=False) + 1)
    images = [
        {"id": int(i) * 7 + 3, "width": WIDTH, "height": HEIGHT, "file_name": f"{i}.jpg"}
        for i in range(rng.integers(1, 6))
    ]

    def box() -> list[float]:
        x, y = rng.integers(0, WIDTH - 20), rng.integers(0, HEIGHT - 20)
        return [float(v) for v in (x, y, rng.integers(1, WIDTH - x), rng.integers(1, HEIGHT - y))]

    truth, found = [], []
    for image in images:
        mine = []
        for _ in range(rng.integers(0, 8)):
            b, crowd = box(), int(rng.random() < 0.2)
            entry = {
                "id": len(truth) + 1,
                "image_id": image["id"],
                "category_id": int(rng.choice(categories)),
                "bbox": b,
                "iscrowd": crowd,
                "area": b[2] * b[3] * float(rng.choice([1, 0.7])),
                "segmentation": made_mask(rng, b, "runs" if crowd else str(rng.choice(["polygon", "compressed"]))),
            }
            truth.append(entry)
            mine.append(entry)
        for _ in range(rng.integers(0, most) if rng.random() < 0.8 else 10 * most):
            category, b = int(rng.choice(categories)), box()
            if mine and rng.random() < 0.7:
                near = mine[rng.integers(len(mine))]
                category = near["category_id"]
                b = [float(v) for v in np.array(near["bbox"]) + rng.integers(-3, 4, 4) * (rng.random() < 0.6)]
                b = [b[0], b[1], max(b[2], 0.0), max(b[3], 0.0)]
            score = float(rng.choice([0.1, 0.5, 0.9]) if rng.random() < 0.5 else rng.random())
            entry = {"image_id": image["id"], "category_id": category, "score": score}
            if form != "masks":
                entry["bbox"] = b
            if form != "boxes":
                entry["segmentation"] = made_mask(rng, b, "compressed")
            found.append(entry)
    names = [{"id": c, "name": f"class {c}"} for c in categories]
    return {"images": images, "annotations": truth, "categories": names}, found


def reference(truth: dict[str, Any], found: list[dict[str, Any]], kind: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(copy.deepcopy(found)), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def written(folder: Path, truth: Any, found: Any) -> tuple[Path, Path, Path]:
    paths = folder / "truth.json", folder / "found.json", folder / "metrics.json"
    paths[0].write_text(json.dumps(truth))
    paths[1].write_text(json.dumps(found))
    paths[2].unlink(missing_ok=True)
    return paths


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), form=st.sampled_from(["boxes", "masks", "both"]))
def test_all_figures_equal_pycocotools(tmp_path: Path, seed: int, form: str) -> None:
    truth, found = made_files(seed, form)
    if not found:
        return
    paths = written(tmp_path, truth, found)
    record = evaluate_files(*paths)
    assert list(record["stats"]) == (["bbox"] if form == "boxes" else ["bbox", "segm"])
    for kind, stats in record["stats"].items():
        expected = reference(truth, found, kind)
        for index, (name, value) in enumerate(zip(FIGURES, stats, strict=True)):
            wanted = expected.stats[index]
            assert value == pytest.approx(wanted, abs=1e-9)
            metric = record["metrics"].get(f"coco/{kind}/{name}")
            assert metric == (pytest.approx(100 * wanted, abs=1e-6) if wanted >= 0 else None)
        for index, row in enumerate(record["classes"][kind]):
            precision = expected.eval["precision"][:, :, index, 0, 2]
            if (precision > -1).any():
                assert row["AP"] == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-6)
                assert row["AP50"] == pytest.approx(100 * precision[0].mean(), abs=1e-6)
                recall = expected.eval["recall"][:, index, 0, 2]
                assert row["AR@100"] == pytest.approx(100 * recall.mean(), abs=1e-6)
            else:
                assert row["AP"] is None


@pytest.mark.parametrize("place", [0, 1])
def test_figures_do_not_take_the_place_of_what_they_are_of(tmp_path: Path, place: int) -> None:
    paths = written(tmp_path, *made_files(8, "boxes"))
    before = [path.read_bytes() for path in paths[:2]]
    with pytest.raises(UserError, match="is one of the files that are read"):
        evaluate_files(*paths[:2], paths[place])
    assert [path.read_bytes() for path in paths[:2]] == before


@pytest.mark.parametrize("change", ["floats", "from zero", "negative", "huge"])
def test_ids_of_any_kind_give_pycocotools_figures(tmp_path: Path, change: str) -> None:
    truth, found = made_files(8, "both")
    wanted = copy.deepcopy(truth)
    for entry in truth["annotations"]:
        match change:
            case "floats":
                entry |= {name: float(entry[name]) for name in ("id", "image_id", "category_id")}
            case "from zero":
                entry["id"] -= 1
            case "negative":
                entry["id"] = -entry["id"]
            case "huge":
                entry["id"] += 2**63
    if change == "floats":
        for entry in found:
            entry |= {name: float(entry[name]) for name in ("image_id", "category_id")}
        for entry in (*truth["categories"], *truth["images"]):
            entry["id"] = float(entry["id"])
    if change == "from zero":
        wanted = truth  # pycocotools never finds an annotation with the id 0, and neither do we
    record = evaluate_files(*written(tmp_path, truth, found))
    for kind, stats in record["stats"].items():
        assert stats == pytest.approx(list(reference(wanted, found, kind).stats), abs=1e-9)
        assert stats[0] > 0.01


@pytest.mark.parametrize("kind", ["image", "category"])
@pytest.mark.parametrize(
    "change", [lambda number: -number, lambda number: 2**53 + number, lambda number: 2**63 + number]
)
def test_images_and_categories_of_any_id_give_pycocotools_figures(
    tmp_path: Path, kind: str, change: Callable[[int], int]
) -> None:
    truth, found = made_files(8, "both")
    plural = {"image": "images", "category": "categories"}[kind]
    # neighbours, which double precision does not tell apart
    numbers = {entry["id"]: change(place) for place, entry in enumerate(truth[plural], 1)}
    assert len(numbers) > 1
    for entry in truth[plural]:
        entry["id"] = numbers[entry["id"]]
    for entry in (*truth["annotations"], *found):
        entry[f"{kind}_id"] = numbers[entry[f"{kind}_id"]]
    record = evaluate_files(*written(tmp_path, truth, found))
    for iou_type, stats in record["stats"].items():
        assert stats == pytest.approx(list(reference(truth, found, iou_type).stats), abs=1e-9)
        assert stats[0] > 0.01
    assert [row["id"] for row in record["classes"]["bbox"]] == sorted(entry["id"] for entry in truth["categories"])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_more_than_100_detections_an_image_are_cut_as_pycocotools_cuts_them(tmp_path: Path, kind: str) -> None:
    truth, found = made_files(5, "both", most=40)
    assert max(np.bincount([d["image_id"] for d in found])) > 200
    stats = evaluate_files(*written(tmp_path, truth, found))["stats"][kind]
    np.testing.assert_allclose(np.array(stats), reference(truth, found, kind).stats, atol=1e-8)


def test_no_detections_give_zero_and_no_ground_truth_leaves_figures_out(tmp_path: Path) -> None:
    truth, _ = made_files(1, "both")
    metrics = evaluate_files(*written(tmp_path, truth, []))["metrics"]
    assert metrics["coco/bbox/AP"] == metrics["coco/segm/AP"] == metrics["coco/bbox/AR@100"] == 0
    truth["annotations"] = []
    record = evaluate_files(*written(tmp_path, truth, []))
    assert record["metrics"] == {}
    assert record["stats"]["bbox"] == [-1] * 12


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.0, 0.01, 0.5, 1.0]))
def test_codes_of_any_mask_are_sound_and_altered_ones_are_not_trusted(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 40, 2))
    masks = [np.asfortranarray(rng.random((height, width)) < density).astype(np.uint8) for _ in range(3)]
    codes = [reference_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks]
    pixels = np.full(3, height * width)
    assert check_codes(codes, pixels).all()
    assert not check_codes(codes, pixels + 1).any()
    cut = [code[: rng.integers(0, len(code))] for code in codes]
    sound = check_codes([*cut, codes[0]], np.append(pixels, height * width))
    assert sound[3]
    for code, ok in zip(cut, sound, strict=False):
        # a cut code may by chance be whole: then it decodes to the right number of pixels
        if ok:
            runs = reference_mask.decode({"size": [height, width], "counts": code})
            assert runs.size == height * width


def test_runs_and_polygons_compress_to_what_pycocotools_makes_of_them() -> None:
    rng = np.random.default_rng(0)
    for form in ("polygon", "runs", "compressed"):
        segmentation = made_mask(rng, [10.0, 20.0, 50.0, 40.0], form)
        expected = segmentation
        if form == "polygon":
            expected = reference_mask.merge(reference_mask.frPyObjects(segmentation, HEIGHT, WIDTH))
        elif form == "runs":
            expected = reference_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
        ours = reference_mask.decode(compress(segmentation, HEIGHT, WIDTH))
        np.testing.assert_array_equal(ours, reference_mask.decode(expected))


def _change(files: tuple[Any, Any], change: str) -> None:
    truth, found = files
    entry = truth["annotations"][0]
    match change:
        case "unknown image":
            found[0]["image_id"] = 999999
        case "score":
            found[0]["score"] = float("nan")
        case "negative":
            found[0]["bbox"] = [1, 2, -3, 4]
        case "no bbox":
            del entry["bbox"]
        case "duplicate":
            truth["annotations"].append(entry)
        case "two points":
            entry.update(segmentation=[[1, 2, 3, 4]], iscrowd=0)
        case "cut code":
            found[0]["segmentation"]["counts"] = found[0]["segmentation"]["counts"][:-1]
        case "long runs":
            entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [5, 10**9]}
        case "size":
            found[0]["segmentation"]["size"] = [HEIGHT, WIDTH + 1]
        case "no images":
            del truth["images"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unknown image", "1 detection of images that"),
        ("score", "detection 0: its score is nan"),
        ("negative", "detection 0: its bbox [1, 2, -3, 4] has a negative width"),
        ("no bbox", "annotation 1: its bbox is None"),
        ("duplicate", "two entries of kind annotation have the id 1"),
        ("two points", "annotation 1: a polygon has 2 points; it needs at least three"),
        ("cut code", "detection 0: the run-length code is broken"),
        ("long runs", "annotation 1: the run-length code is broken: its runs cover 1000000005 pixels"),
        ("size", "detection 0: the mask's size [100, 121] is not the image's [100, 120]"),
        ("no images", "it has no list 'images'"),
    ],
)
def test_broken_files_get_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    files = made_files(3, "both")
    _change(files, change)
    truth, found, out = written(tmp_path, *files)
    command = ["coco", "evaluate", "--annotations", str(truth), "--detections", str(found), "--out", str(out)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.json", "truth.json"]


def test_unknown_categories_and_annotations_of_unknown_images_are_counted(tmp_path: Path) -> None:
    truth, found = made_files(3, "boxes")
    expected = evaluate_files(*written(tmp_path, truth, found))
    found.append({**found[0], "category_id": 1000})
    truth["annotations"].append({**truth["annotations"][0], "id": 1000, "image_id": 12345})
    record = evaluate_files(*written(tmp_path, truth, found))
    assert record["skipped"] == {"annotations of unknown images": 1, "detections of unknown categories": 1}
    assert record["metrics"] == expected["metrics"]


def test_masks_asked_for_where_the_ground_truth_has_none(tmp_path: Path) -> None:
    truth, found = made_files(3, "both")
    del truth["annotations"][2]["segmentation"]
    with pytest.raises(UserError, match="annotation 3 has no segmentation"):
        evaluate_files(*written(tmp_path, truth, found), kinds=["segm"])


def test_masks_that_are_left_out_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = made_files(3, "both")
    del truth["annotations"][2]["segmentation"]
    assert list(evaluate_files(*written(tmp_path, truth, found))["stats"]) == ["bbox"]
    assert "annotation 3 has no segmentation; only boxes are evaluated" in capsys.readouterr().err


@pytest.mark.real
def test_real_annotations_as_detections_reach_100(tmp_path: Path, real_data: Path) -> None:
    annotations = real_data / "coco/annotations/instances_val2017.json"
    truth = json.loads(annotations.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found = [
        {k: entry[k] for k in ("image_id", "category_id", "bbox")}
        | {"score": 0.9, "segmentation": compress(entry["segmentation"], *sizes[entry["image_id"]])}
        for entry in truth["annotations"]
        if not entry["iscrowd"]
    ]
    paths = written(tmp_path, truth, found)
    record = evaluate_files(annotations, paths[1], paths[2])
    assert record["metrics"]["coco/bbox/AP"] == pytest.approx(100)
    assert record["metrics"]["coco/segm/AP"] == pytest.approx(100)
    for kind in ("bbox", "segm"):
        stats = reference(truth, found, kind).stats
        np.testing.assert_allclose(np.array(record["stats"][kind]), stats, atol=1e-8)

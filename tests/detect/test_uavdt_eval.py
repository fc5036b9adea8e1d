"""UAVDT's figures equal a slow reference that follows the protocol one detection at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flsl.cli import main
from flsl.detect.uavdt_eval import OBJECT_ATTRIBUTES, SEQUENCE_ATTRIBUTES, evaluate_files
from flsl.detect.uavdt_files import image_id

COLUMN = {"out_of_view": 6, "occlusion": 7, "category": 8}


# --- the slow reference: lists of numbers, one box at a time ---------------------------------------------------------
def common_area(a: list[float], b: list[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def reference_frame(found: list[Any], truth: list[Any], other: list[Any], corrected: bool) -> list[tuple[float, int]]:
    """Return (score, 1 true / 0 false) of one frame's detections (left, top, width, height, score)."""
    taken: set[int] = set()
    outcome = []
    for d in sorted(found, key=lambda row: -row[4]):
        best, chosen = 0.7, None
        for j, g in enumerate(truth):
            common = common_area(d, g)
            union = d[2] * d[3] + g[2] * g[3] - common
            if j not in taken and union > 0 and common / union >= best:
                best, chosen = common / union, j
        if chosen is not None:
            taken.add(chosen)
            outcome.append((d[4], 1))
        elif not (corrected and any(d[2] * d[3] and common_area(d, g) / (d[2] * d[3]) >= 0.7 for g in other)):
            outcome.append((d[4], 0))
    return outcome


def reference_ap(outcome: list[tuple[float, int]], positives: int) -> float:
    recalls, precisions, true = [0.0], [0.0], 0
    for count, (_, hit) in enumerate(sorted(outcome, key=lambda row: -row[0]), 1):
        true += hit
        recalls.append(true / positives)
        precisions.append(true / count)
    recalls.append(1.0)
    precisions.append(0.0)
    for i in range(len(precisions) - 2, -1, -1):
        precisions[i] = max(precisions[i], precisions[i + 1])
    return 100 * sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls)))


def reference(
    folder: Path, detections: Path, names: list[str], label: tuple[str, int] | None, corrected: bool
) -> float:
    outcome, positives = [], 0
    for name in sorted(names):
        rows = [list(map(float, line.split(","))) for line in (folder / f"{name}_gt_whole.txt").read_text().split()]
        ignore = [list(map(float, line.split(","))) for line in (folder / f"{name}_gt_ignore.txt").read_text().split()]
        found = [list(map(float, line.split(","))) for line in (detections / f"{name}.txt").read_text().split()]
        for frame in sorted({row[0] for row in rows} | {row[0] for row in found}):
            regions = [row[2:6] for row in ignore if row[0] == frame]
            kept = []
            for row in (row for row in found if row[0] == frame):
                d = row[2:7]
                if not any(
                    d[0] > r[0] and d[1] > r[1] and d[0] + d[2] < r[0] + r[2] and d[1] + d[3] < r[1] + r[3]
                    for r in regions
                ):
                    kept.append(d)
            mine, other = [], []
            for row in (row for row in rows if row[0] == frame):
                (mine if label is None or row[COLUMN[label[0]]] == label[1] else other).append(row[2:6])
            outcome += reference_frame(kept, mine, other, corrected)
            positives += len(mine) + (0 if corrected else len(other))
    return reference_ap(outcome, positives)


def reference_metrics(folder: Path, detections: Path, names: list[str]) -> dict[str, float]:
    expected = {"uavdt/AP@0.7": reference(folder, detections, names, None, False)}
    for attribute, members in SEQUENCE_ATTRIBUTES.items():
        chosen = [name for name in names if name in members]
        if chosen and any((folder / f"{name}_gt_whole.txt").read_text() for name in chosen):
            expected[f"uavdt/AP@0.7/{attribute}"] = reference(folder, detections, chosen, None, False)
    codes = [line.split(",") for name in names for line in (folder / f"{name}_gt_whole.txt").read_text().split()]
    for attribute, labels in OBJECT_ATTRIBUTES.items():
        for code, label in labels.items():
            if any(int(row[COLUMN[attribute]]) == code for row in codes):
                key = f"uavdt/AP@0.7/{attribute}/{label}"
                expected[f"{key}/official"] = reference(folder, detections, names, (attribute, code), False)
                expected[f"{key}/corrected"] = reference(folder, detections, names, (attribute, code), True)
    return expected


# --- made files ------------------------------------------------------------------------------------------------------
def make(root: Path, seed: int, names: list[str], frames: int = 6, crowded: bool = False) -> tuple[Path, Path]:
    """Make ground truth with ties and overlaps on a coarse grid, and detections near it, far from it and repeated."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(root, ignore_errors=True)
    folder, detections = root / "gt", root / "found"
    folder.mkdir(parents=True)
    detections.mkdir()
    for number, name in enumerate(names):
        truth, ignore, found = [], [], []
        for frame in rng.permutation(frames) + 1:
            boxes = []
            for target in range(rng.integers(0, 12)):
                box = rng.integers(0, 8, 4) * [8, 8, 4, 4] + [0, 0, 8, 8]
                if boxes and rng.random() < 0.3:
                    box = boxes[rng.integers(len(boxes))] + rng.integers(-1, 2, 4)
                boxes.append(box)
                codes = rng.integers(1, [4, 5, 4])
                truth.append([frame, target, *box, *codes])
            for _ in range(rng.integers(0, 2) if number % 2 == 0 else 0):
                ignore.append([frame, 1, *rng.integers(0, 60, 2), *rng.integers(10, 40, 2), 1, -1, -1])
            for _ in range(rng.integers(0, 150 if crowded else 20)):
                if boxes and rng.random() < 0.8:
                    box = boxes[rng.integers(len(boxes))] + rng.integers(-1, 2, 4) * (rng.random() < 0.6)
                else:
                    box = rng.integers(0, 60, 4)
                score = rng.choice([0.25, 0.5, 0.75]) if rng.random() < 0.5 else round(rng.random(), 3)
                found.append([frame, -1, *box, score, 1, -1])
        for path, rows in (
            (folder / f"{name}_gt_whole.txt", truth),
            (folder / f"{name}_gt_ignore.txt", ignore),
            (detections / f"{name}.txt", found),
        ):
            path.write_text("".join(",".join(f"{value:g}" for value in row) + "\n" for row in rows))
    return folder, detections


def check(record: dict[str, Any], expected: dict[str, float]) -> None:
    ours = {name: value for name, value in record["metrics"].items() if not name.startswith("uavdt/coco/")}
    assert ours == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), names=st.sets(st.sampled_from(["M0203", "M0208", "M0701", "M1001"]), min_size=1))
def test_equal_to_the_reference_on_made_files(tmp_path: Path, seed: int, names: set[str]) -> None:
    folder, detections = make(tmp_path / "made", seed, sorted(names), crowded=seed % 5 == 0)
    if not any((folder / f"{name}_gt_whole.txt").stat().st_size for name in names):
        return
    record = evaluate_files(folder, detections, tmp_path / "metrics.json")
    check(record, reference_metrics(folder, detections, sorted(names)))


def test_coco_results_give_the_text_files_figures(tmp_path: Path) -> None:
    names = ["M0203", "M0208"]
    folder, detections = make(tmp_path / "made", 7, names)
    results, renumbered, images = [], [], []
    for name in names:
        for line in (detections / f"{name}.txt").read_text().split():
            frame, _, *box, score = map(float, line.split(",")[:7])
            results.append({"image_id": image_id(name, int(frame)), "category_id": 1, "bbox": box, "score": score})
    ids = sorted({entry["image_id"] for entry in results})
    for number, old in enumerate(ids):
        images.append({"id": number, "file_name": f"M{old // 10**6:04d}/img{old % 10**6:06d}.jpg"})
    renumbered = [{**entry, "image_id": ids.index(entry["image_id"])} for entry in results]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "renumbered.json").write_text(json.dumps(renumbered))
    (tmp_path / "frames.json").write_text(json.dumps({"images": images}))
    out = tmp_path / "metrics.json"
    expected = evaluate_files(folder, detections, out)["metrics"]
    assert evaluate_files(folder, tmp_path / "results.json", out)["metrics"] == expected
    mapped = evaluate_files(folder, tmp_path / "renumbered.json", out, annotations=tmp_path / "frames.json")
    assert mapped["metrics"] == expected
    assert 0 < expected["uavdt/coco/AP50"] < 100


@pytest.mark.parametrize("digits", [7, 400, 5000])
def test_a_file_name_of_no_possible_frame_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], digits: int
) -> None:
    folder, _ = make(tmp_path / "made", 1, ["M0203"])
    image = {"id": 1, "file_name": f"M0203/img{'1' * digits}.jpg"}
    (tmp_path / "images.json").write_text(json.dumps({"images": [image]}))
    (tmp_path / "found.json").write_text(json.dumps([{"image_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}]))
    command = ["uavdt", "evaluate", "--gt", folder, "--detections", tmp_path / "found.json"]
    command += ["--annotations", tmp_path / "images.json", "--sequences", "M0203", "--out", tmp_path / "m.json"]
    assert main([str(word) for word in command]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_sequences_of_any_name_can_be_asked_for(tmp_path: Path) -> None:
    folder, detections = make(tmp_path / "made", 4, ["street", "yard"])
    record = evaluate_files(folder, detections, tmp_path / "m.json", ["street", "yard"])
    check(record, reference_metrics(folder, detections, ["street", "yard"]))


def test_perfect_detections_reach_100_and_the_official_object_figure_does_not(tmp_path: Path) -> None:
    folder, detections = make(tmp_path / "made", 3, ["M0203"])
    (folder / "M0203_gt_ignore.txt").write_text("")
    rows = ["1,1,10,10,20,20,1,1,1", "1,2,60,10,20,20,1,1,2", "2,1,10,40,20,20,1,2,1"]
    (folder / "M0203_gt_whole.txt").write_text("\n".join(rows) + "\n")
    found = [",".join([*row.split(",")[:1], "-1", *row.split(",")[2:6], "0.9"]) for row in rows]
    (detections / "M0203.txt").write_text("\n".join(found) + "\n")
    metrics = evaluate_files(folder, detections, tmp_path / "metrics.json")["metrics"]
    assert metrics["uavdt/AP@0.7"] == metrics["uavdt/coco/AP"] == pytest.approx(100)
    assert metrics["uavdt/AP@0.7/category/car/corrected"] == pytest.approx(100)
    # the truck's detection is false and its box cannot be found: hits 1, 0, 1 of 3
    assert metrics["uavdt/AP@0.7/category/car/official"] == pytest.approx(100 * (1 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "M0203.txt: no such file"),
        ("text", "M0203.txt: rows of numbers frame,-1,left,top,width,height,score are expected"),
        ("short", "expected 7 and found 4"),
        ("short later", "M0203.txt: row 2:"),
        ("negative", "M0203.txt: row 1:"),
        (
            "late",
            "M0203.txt: row 1: frame,left,top,width,height,score are 1000000,3,2,4,4,0.5; a whole frame up to",
        ),
        ("late truth", "M0203_gt_whole.txt: line 1: a frame number beyond 999999"),
        ("large", "M0203.txt: row 1:"),
        ("sequence", "no M0204_gt_whole.txt there (did you mean 'M0203'?)"),
        ("folder", "no such folder"),
    ],
)
def test_broken_input_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    folder, detections = make(tmp_path / "made", 1, ["M0203"])
    path, names = detections / "M0203.txt", ["M0203"]
    match change:
        case "missing":
            path.unlink()
        case "text":
            path.write_text("1,-1,car,2,3,4,0.5\n")
        case "short":
            path.write_text("1,-1,3,2\n")
        case "short later":
            path.write_text("1,-1,3,2,4,4,0.5\n1,-1,3,2\n")
        case "negative":
            path.write_text("1,-1,3,2,-4,4,0.5\n")
        case "late":
            path.write_text("1000000,-1,3,2,4,4,0.5\n")
        case "late truth":
            (folder / "M0203_gt_whole.txt").write_text("1000000,1,3,2,40,40,1,1,1\n")
        case "large":
            path.write_text("1,-1,3,2,1e200,1e200,0.5\n")
        case "sequence":
            names = ["M0204"]
        case "folder":
            folder = tmp_path / "nowhere"
    command = ["uavdt", "evaluate", "--gt", str(folder), "--detections", str(detections)]
    assert main([*command, "--sequences", *names, "--out", str(tmp_path / "m.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m.json").exists()


def test_detections_after_the_last_frame_are_counted_and_left_out(tmp_path: Path) -> None:
    folder, detections = make(tmp_path / "made", 5, ["M0208"])
    expected = evaluate_files(folder, detections, tmp_path / "m.json")["metrics"]
    with (detections / "M0208.txt").open("a") as stream:
        stream.write("266,-1,3,2,4,4,0.99\n")
    record = evaluate_files(folder, detections, tmp_path / "m.json")
    assert record["skipped"] == {"detections outside their sequence's frames": 1}
    assert record["metrics"] == expected


def test_boxes_after_the_last_frame_are_left_out_as_detections_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, detections = make(tmp_path / "made", 5, ["M0208"])
    expected = evaluate_files(folder, detections, tmp_path / "m.json")["metrics"]
    whole = folder / "M0208_gt_whole.txt"
    whole.write_text(whole.read_text().rstrip() + "\n266,1,3,2,40,40,1,1,1\n")
    assert evaluate_files(folder, detections, tmp_path / "m.json")["metrics"] == expected
    assert "M0208_gt_whole.txt: 1 box after the sequence's last frame, 265, skipped" in capsys.readouterr().err


def test_further_fields_may_hold_anything_and_a_byte_order_mark_is_no_number(tmp_path: Path) -> None:
    folder, detections = make(tmp_path / "made", 6, ["M0203"])
    expected = evaluate_files(folder, detections, tmp_path / "m.json")["metrics"]
    found = detections / "M0203.txt"
    rows = [",".join(row.split(",")[:7]) for row in found.read_text().split()]
    rows = [row + ",car" * (index % 3) for index, row in enumerate(rows)]
    found.write_text("\ufeff" + "\r\n".join(rows))
    for path in folder.glob("*.txt"):
        path.write_text("\ufeff" + path.read_text())
    assert evaluate_files(folder, detections, tmp_path / "m.json")["metrics"] == expected


@pytest.mark.real
def test_equal_to_the_reference_on_real_ground_truth(tmp_path: Path, real_data: Path) -> None:
    folder = real_data / "uavdt/UAV-benchmark-MOTD_v1.0/GT"
    rng = np.random.default_rng(0)
    names = ["M0205", "M0208"]
    short = tmp_path / "gt"
    short.mkdir()
    for name in names:
        lines = []
        for kind in ("whole", "ignore"):
            # every twelfth frame, so that the slow reference takes seconds
            rows = [r for r in (folder / f"{name}_gt_{kind}.txt").read_text().split() if int(r.split(",")[0]) % 12 == 1]
            (short / f"{name}_gt_{kind}.txt").write_text("\n".join(rows))
            lines += rows
        found = []
        for line in lines:
            frame, _, *box = map(float, line.split(",")[:6])
            for _ in range(rng.integers(0, 3)):
                near = np.round(np.array(box) * rng.normal(1, 0.04, 4) + rng.normal(0, 1, 4), 1)
                found.append(f"{frame:g},-1,{','.join(map(str, np.maximum(near, 1)))},{rng.random():.2f},1,-1")
        (tmp_path / f"{name}.txt").write_text("\n".join(found))
    record = evaluate_files(short, tmp_path, tmp_path / "metrics.json")
    check(record, reference_metrics(short, tmp_path, names))
    assert 10 < record["metrics"]["uavdt/AP@0.7"] < 90

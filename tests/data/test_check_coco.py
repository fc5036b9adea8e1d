"""`flsl data check coco`: what is wrong with annotation files and their images, each as one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from flsl.config.data import CocoSettings
from flsl.config.experiment import Experiment
from flsl.data.check import check_data
from flsl.data.manifest import checked
from flsl.data.rle import MaskError, check, check_codes
from flsl.runtime.errors import UserError

Data = dict[str, list[dict[str, Any]]]
POLYGON = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]


def _sound(offset: int) -> Data:
    return {
        "images": [
            {"id": 100 + offset + i, "file_name": f"{offset + i}.jpg", "width": 20 + i, "height": 10} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 100 + offset, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 32.0, "iscrowd": 0,
             "segmentation": POLYGON},
            {"id": 2, "image_id": 101 + offset, "category_id": 3, "bbox": [0, 0, 21, 10], "area": 210, "iscrowd": 1,
             "segmentation": {"size": [10, 21], "counts": [100, 110]}},
        ],
    }  # fmt: skip


def _make(root: Path, train: Any, val: Any) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, data, offset in (("train", train, 0), ("val", val, 50)):
        folder = root / f"{split}2017"
        folder.mkdir()
        for index, image in enumerate(_sound(offset)["images"]):
            pixels = np.random.default_rng(offset + index).integers(0, 256, (10, 20 + index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
        text = data if isinstance(data, str) else json.dumps(data)
        (root / "annotations" / f"instances_{split}2017.json").write_text(text)


def _check(root: Path) -> dict[str, Any]:
    return check_data(CocoSettings(root=str(root)), root.parent / "out")[0]


def test_a_sound_data_set_has_nothing_but_notes(tmp_path: Path) -> None:
    _make(tmp_path / "coco", _sound(0), _sound(50))
    manifest = _check(tmp_path / "coco")
    assert manifest["inconsistencies"]["count"] == manifest["quarantined"]["count"] == 0
    assert manifest["splits"]["train"] == {
        "files": 4, "ok": 4, "images": 3, "folder": "train2017", "listed": 3, "annotations": 2, "crowds": 1,
        "polygons": 1, "run_lengths": 1, "images_without_annotations": 1,
    }  # fmt: skip
    assert manifest["classes"]["listed"] == {"person": {"train": 1, "val": 1}, "car": {"train": 1, "val": 1}}
    assert [note.partition("json: ")[2] for note in manifest["notes"]["first"]] == [
        "2 category ids with gaps from 1 to 3, as in COCO"
    ] * 2


def test_ids_written_as_1_0_are_whole_numbers(tmp_path: Path) -> None:
    data = _sound(0)
    for entry in (*data["images"], *data["annotations"], *data["categories"]):
        entry |= {name: float(entry[name]) for name in ("id", "image_id", "category_id") if name in entry}
    _make(tmp_path / "coco", data, _sound(50))
    manifest = _check(tmp_path / "coco")
    assert manifest["inconsistencies"]["count"] == 0
    assert manifest["classes"]["listed"] == {"person": {"train": 1, "val": 1}, "car": {"train": 1, "val": 1}}


def _change(path: str, value: Any) -> Callable[[Data], None]:
    """Return what sets ``images.0.width``, say."""
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]

    def change(data: Any) -> None:
        for part in way:
            data = data[part]
        if value is None:
            del data[last]
        else:
            data[last] = value

    return change


def _twice(kind: str) -> Callable[[Data], None]:
    return lambda data: data[kind].append(copy.deepcopy(data[kind][0]))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_change("images.0.file_name", "gone.jpg"), "1 × image that is listed but not there, e.g. gone.jpg"),
        (_change("images.0.file_name", "../x.jpg"), "1 × image whose file_name is no path below its folder"),
        (_change("images.0.file_name", 7), "1 × image whose file_name is no path below its folder"),
        (_change("images.0.width", 21), "1 × image of another size than listed, e.g. 0.jpg is 20×10, listed as 21×10"),
        (_change("images.2.height", 10**400), "1 × image without a width and height, e.g. id 102"),
        (_change("images.2.height", None), "1 × image without a width and height, e.g. id 102"),
        (_change("images.1.file_name", "0.jpg"), "1 × image file listed twice, e.g. 0.jpg"),
        (_twice("images"), "1 × image id used twice, e.g. 100"),
        (_twice("annotations"), "1 × annotation id used twice, e.g. 1"),
        (_twice("categories"), "1 × category id used twice, e.g. 1"),
        (_change("categories.1.name", "person"), "1 × category name used twice, e.g. person"),
        (_change("categories.1.name", None), "1 × category without a name, e.g. id 3"),
        (_change("annotations.0.image_id", 7), "1 × annotation of an unknown image, e.g. id 1"),
        (_change("annotations.0.image_id", [7]), "1 × annotation of an unknown image, e.g. id 1"),
        (_change("annotations.0.category_id", 2), "1 × annotation of an unknown category, e.g. id 1"),
        (_change("annotations.0.iscrowd", 2), "1 × annotation whose iscrowd is not 0 or 1, e.g. id 1"),
        (_change("annotations.0.bbox", [1, 1, 8]), "1 × box that is not [x, y, width, height], e.g. id 1"),
        (_change("annotations.0.bbox", [1, 1, float("nan"), 8]), "1 × box that is not [x, y, width, height]"),
        (_change("annotations.0.bbox", None), "1 × box that is not [x, y, width, height], e.g. id 1"),
        (_change("annotations.0.bbox", [1, 1, 0, 8]), "1 × box without area, e.g. id 1"),
        (_change("annotations.0.bbox", [1, 1, 8, -2]), "1 × box without area, e.g. id 1"),
        (_change("annotations.0.bbox", [15, 1, 8, 8]), "1 × box that leaves its image, e.g. id 1"),
        (_change("annotations.0.segmentation", None), "1 × annotation without segmentation, e.g. id 1"),
        (_change("annotations.0.segmentation", []), "1 × an empty segmentation, e.g. id 1"),
        (_change("annotations.0.segmentation", [[1, 1, 2, 2]]), "1 × a polygon of fewer than 3 points, e.g. id 1"),
        (_change("annotations.0.segmentation", [[1, 1, 2, 2, 3]]), "1 × a polygon that is not x, y, x, y, …"),
        (_change("annotations.0.segmentation", [["a"] * 6]), "1 × a polygon that is not x, y, x, y, …"),
        (_change("annotations.0.segmentation", [[0, 0, 1e6, 0, 0, 1e6]]), "1 × a polygon that lies far outside its"),
        (_change("annotations.0.segmentation", "x"), "1 × a segmentation that is neither polygons nor"),
        (_change("annotations.1.segmentation.counts", [100, 111]), "1 × a run-length code that cannot be decoded"),
        (_change("annotations.1.segmentation.counts", [220, -10]), "1 × a run-length code that cannot be decoded"),
        (_change("annotations.1.segmentation.counts", "\x01"), "1 × a run-length code that cannot be decoded"),
        (_change("annotations.1.segmentation.size", [21, 10]), "1 × a run-length code of another size than its image"),
        (_change("images.0.file_name", "\ud83d.jpg"), "1 × image that is listed but not there, e.g. \\ud83d.jpg"),
        (_change("categories.1.id", 2), "the categories of train and val differ"),
    ],
)  # fmt: skip
def test_each_inconsistency_is_one_line(tmp_path: Path, change: Callable[[Data], None], line: str) -> None:
    train = _sound(0)
    change(train)
    _make(tmp_path / "coco", train, _sound(50))
    assert any(line in told for told in _check(tmp_path / "coco")["inconsistencies"]["first"])


def test_what_is_no_id_is_no_image_of_the_id_minus_one(tmp_path: Path) -> None:
    data = _sound(0)
    data["images"][0]["id"] = data["annotations"][0]["image_id"] = -1
    _make(tmp_path / "coco", data, _sound(50))
    assert _check(tmp_path / "coco")["inconsistencies"]["count"] == 0
    data["annotations"][0]["image_id"] = None
    (tmp_path / "coco/annotations/instances_train2017.json").write_text(json.dumps(data))
    first = _check(tmp_path / "coco")["inconsistencies"]["first"]
    assert [line.partition("json: ")[2] for line in first] == ["1 × annotation of an unknown image, e.g. id 1"]


def test_many_equal_mistakes_are_one_line(tmp_path: Path) -> None:
    train = _sound(0)
    train["annotations"] = [{**train["annotations"][0], "id": i, "bbox": [0, 0, 0, 0]} for i in range(500)]
    _make(tmp_path / "coco", train, _sound(50))
    lines = _check(tmp_path / "coco")["inconsistencies"]["first"]
    assert [line.partition("json: ")[2] for line in lines] == ["500 × box without area, e.g. id 0"]


def test_quarantined_and_unlisted_images_are_told(tmp_path: Path) -> None:
    _make(tmp_path / "coco", _sound(0), _sound(50))
    (tmp_path / "coco" / "train2017" / "1.jpg").write_bytes(b"")
    Image.new("RGB", (5, 5)).save(tmp_path / "coco" / "train2017" / "extra.jpg")
    manifest = _check(tmp_path / "coco")
    assert (
        "1 × image that is listed but quarantined, e.g. 1.jpg (empty file)" in manifest["inconsistencies"]["first"][0]
    )
    assert any("1 × image file that is not listed, e.g. train2017/extra.jpg" in n for n in manifest["notes"]["first"])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("{", "instances_train2017.json: not valid JSON"),
        ("[]", "instances_train2017.json: has no list 'images'; a COCO annotation file is expected"),
        ('{"images": [], "annotations": {}}', "instances_train2017.json: has no list 'annotations'"),
        ('{"images": [{"id": "1"}]}', r"images\[0\]: a mapping with a whole number 'id' is expected"),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path: Path, data: str, line: str) -> None:
    _make(tmp_path / "coco", data, _sound(50))
    with pytest.raises(UserError, match=line):
        _check(tmp_path / "coco")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_missing_parts_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    _make(root, _sound(0), _sound(50))
    (root / "annotations" / "instances_val2017.json").rename(root / "x.json")
    with pytest.raises(UserError, match=r"instances_val2017\.json: no such file; data\.coco\.val_annotations needs it"):
        _check(root)
    (root / "x.json").rename(root / "annotations" / "instances_val2017.json")
    for path in (root / "val2017").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"val2017: holds no images; data\.coco\.val_images"):
        _check(root)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.integers(0, 1)))
@settings(max_examples=150)
def test_run_lengths_are_judged_as_coco_decodes_them(mask: np.ndarray) -> None:
    height, width = mask.shape
    pixels = np.array([height * width])
    code = coco_mask.encode(np.asfortranarray(mask))
    told = check({"size": list(code["size"]), "counts": code["counts"].decode()}, height, width)
    assert told == code["counts"]
    assert check_codes([told], pixels).all()
    # the same runs, counted the slow way
    flat = mask.flatten(order="F").tolist()
    runs, value = [0], 0
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    assert check({"size": [height, width], "counts": runs}, height, width) is None
    runs[-1] += 1
    with pytest.raises(MaskError, match="its runs cover"):
        check({"size": [height, width], "counts": runs}, height, width)
    longer = coco_mask.frPyObjects(
        {"size": [height, width + 1], "counts": [*runs[:-1], runs[-1] - 1 + height]}, height, width + 1
    )
    assert not check_codes([longer["counts"]], pixels).any()


@pytest.mark.real
def test_real_sample_is_sound(real_data: Path, tmp_path: Path) -> None:
    manifest = check_data(CocoSettings(root=str(real_data / "coco")), tmp_path / "out", decode=True)[0]
    assert manifest["inconsistencies"]["count"] == manifest["quarantined"]["count"] == 0
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    assert (train["listed"], train["annotations"], train["crowds"], train["run_lengths"]) == (40, 332, 4, 4)
    assert (val["listed"], val["annotations"], val["crowds"], val["run_lengths"]) == (40, 407, 5, 5)
    assert manifest["classes"]["count"] == 80


def test_the_projects_manifest_of_a_data_set_is_found_for_the_records_of_what_reads_it(tmp_path: Path) -> None:
    _make(tmp_path / "coco", _sound(0), _sound(50))
    root, manifest = tmp_path / "coco", tmp_path / "results/mine/data/coco/manifest.json"

    def found(**settings: Any) -> list[Path]:
        data = {"coco": {"root": str(root), **settings}}
        return checked(Experiment(project="mine", results=str(tmp_path / "results"), data=data), "coco")

    assert found() == []
    check_data(CocoSettings(root=str(root)), manifest.parent)
    assert found() == found(root=f"{root}/") == found(decode=True, watch="off") == [manifest]
    assert checked(Experiment(project="mine", results=str(tmp_path / "results")), "davis") == []
    # other files, if in the same folder
    assert found(root=str(tmp_path)) == found(val_annotations="annotations/others.json") == []
    manifest.write_text("{")
    assert found() == []

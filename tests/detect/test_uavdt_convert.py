"""UAVDT in COCO's form: what pycocotools reads back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from flsl.cli import main


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """One train sequence of five 100×60 frames with a box that leaves the image and one that is outside."""
    (tmp_path / "gt").mkdir()
    rows = ["1,1,10,10,20,20,1,1,1", "1,2,90,50,20,20,2,1,3", "2,1,12,10,20,20,1,1,1", "5,3,200,10,5,5,3,1,2"]
    (tmp_path / "gt/M0101_gt_whole.txt").write_text("\n".join(rows))
    (tmp_path / "gt/M0101_gt_ignore.txt").write_text("1,1,0,0,30,5,1,-1,-1\n2,1,0,0,30,5,1,-1,-1\n")
    folder = tmp_path / "frames/M0101"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        Image.new("RGB", (100, 60)).save(folder / f"img{number:06d}.jpg")
    return tmp_path


def run(root: Path, *more: str) -> int:
    command = ["uavdt", "convert", "--frames", str(root / "frames"), "--gt", str(root / "gt")]
    return main([*command, "--out", str(root / "coco.json"), *more])


def test_classes_borders_ignore_regions_and_ids(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, "--classes", "each") == 0
    assert "1 boxes outside the image or of no area skipped" in capsys.readouterr().err
    coco = COCO(str(made / "coco.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["car", "truck", "bus"]
    assert sorted(coco.imgs) == [101_000_000 + frame for frame in range(1, 6)]
    assert coco.imgs[101_000_002]["file_name"] == "M0101/img000002.jpg"
    assert (coco.imgs[101_000_002]["width"], coco.imgs[101_000_002]["height"]) == (100, 60)
    real = coco.loadAnns(coco.getAnnIds(imgIds=[101_000_001], iscrowd=False))
    assert [(a["bbox"], a["category_id"]) for a in real] == [([10, 10, 20, 20], 1), ([90, 50, 10, 10], 3)]
    crowds = coco.loadAnns(coco.getAnnIds(iscrowd=True))
    assert sorted((a["image_id"] % 10, a["category_id"]) for a in crowds) == [(i, c) for i in (1, 2) for c in (1, 2, 3)]


def test_stride_and_one_class(made: Path) -> None:
    assert run(made, "--stride", "2") == 0
    data = json.loads((made / "coco.json").read_text())
    assert [image["id"] % 10 for image in data["images"]] == [1, 3, 5]
    assert {a["image_id"] % 10 for a in data["annotations"]} == {1}
    assert [c["name"] for c in data["categories"]] == ["vehicle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "none of the 20 test sequences"),
        (["--sequences", "M0102"], "no M0102_gt_whole.txt there (did you mean 'M0101'?)"),
        (["--stride", "0"], "--stride: 0 is not a number of frames"),
        ([], "1 frames of the ground truth are missing, the first is img000002.jpg"),
    ],
)
def test_one_line_and_no_file(
    made: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (made / "frames/M0101/img000002.jpg").unlink()
    assert run(made, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (made / "coco.json").exists()

"""Boxes of image folders: CSV and PASCAL VOC files, matched, scaled, and refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flsl.config.data import ImageFolderSettings
from flsl.data.boxes import find_boxes
from flsl.data.check import check_data
from flsl.runtime.errors import UserError


def _voc(boxes: list[tuple[Any, Any, Any, Any]], size: tuple[int, int] | None = (40, 30)) -> str:
    objects = "".join(
        f"<object><name>n1</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    told = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><folder>f</folder><filename>%s</filename>{told}{objects}</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("n1/n1_1", "n1/n1_2", "n2/n2_1"):
            path = tmp_path / split / f"{name}_{split}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30)).save(path)
    return tmp_path


def _write(root: Path, name: str, text: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def read_boxes(
    root: Path, boxes: str, paths: list[str] | None = None, size: tuple[int, int] = (40, 30)
) -> dict[str, list[list[float]]]:
    """Find the boxes of these images (of all by default), all of one size, and read them."""
    if paths is None:
        paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.JPEG"))
    found = find_boxes(root, boxes, paths)
    return {paths[image]: found.read(image, size).tolist() for image in found.images.tolist()}


@pytest.mark.parametrize("folder", ["boxes/n1", "boxes", "boxes/val/n1", "boxes/val", "boxes/deeper/val/n1"])
def test_voc_files_find_their_images_nested_or_flat(root: Path, folder: str) -> None:
    # the whole image, and the pixel at its top left corner: from 1, corners included
    _write(root, f"{folder}/n1_2_val.xml", _voc([(1, 1, 40, 30), (1, 1, 1, 1)]))
    if folder == "boxes/deeper/val/n1":  # a folder that its image is not in
        assert read_boxes(root, "boxes") == {}
    else:
        assert read_boxes(root, "boxes") == {"val/n1/n1_2_val.JPEG": [[0, 0, 40, 30], [0, 0, 1, 1]]}


def test_imagenets_own_folders(tmp_path: Path) -> None:
    images = ["Data/CLS-LOC/train/n1/n1_1.JPEG", "Data/CLS-LOC/val/n1/val_1.JPEG", "Data/CLS-LOC/val/n2/val_2.JPEG"]
    for name in ("train/n1/n1_1", "val/val_1", "val/val_2", "val/val_3", "train/val_1"):
        _write(tmp_path, f"Annotations/CLS-LOC/{name}.xml", _voc([(1, 1, 40, 30)]))
    assert list(read_boxes(tmp_path, "Annotations/CLS-LOC", images)) == images
    assert list(read_boxes(tmp_path, "Annotations", images)) == images


def test_boxes_are_scaled_from_the_size_that_their_file_names_and_clipped(root: Path) -> None:
    _write(root, "boxes/n1_1_val.xml", _voc([(11, 21, 20, 40), (0, 0, 100, 90), (200, 1, 210, 9)], size=(80, 90)))
    half, third = 40 / 80, 30 / 90
    expected = [[10 * half, 20 * third, 20 * half, 40 * third], [0, 0, 40, 30]]
    found = read_boxes(root, "boxes")["val/n1/n1_1_val.JPEG"]
    np.testing.assert_allclose(found, expected)
    same = read_boxes(root, "boxes", size=(80, 90))
    assert same["val/n1/n1_1_val.JPEG"] == [[10, 20, 20, 40], [0, 0, 80, 90]]


def test_a_voc_file_without_a_size_is_taken_as_it_is(root: Path) -> None:
    _write(root, "boxes/n1_1_val.xml", _voc([(2, 3, 4, 5)], size=None))
    assert read_boxes(root, "boxes") == {"val/n1/n1_1_val.JPEG": [[1, 2, 4, 5]]}


def test_only_the_images_asked_for_are_read(root: Path) -> None:
    _write(root, "boxes/n1/n1_1_val.xml", _voc([(1, 1, 9, 9)]))
    _write(root, "boxes/n1/n1_2_val.xml", "broken")
    _write(root, "boxes/n1/n1_9_val.xml", "of no image")
    assert list(read_boxes(root, "boxes", ["val/n1/n1_1_val.JPEG"])) == ["val/n1/n1_1_val.JPEG"]


def test_an_xml_file_that_fits_two_images_is_refused(root: Path) -> None:
    for split in ("train", "val"):
        Image.new("RGB", (5, 5)).save(root / split / "n1" / "same.JPEG")
    _write(root, "boxes/n1/same.xml", _voc([(1, 1, 2, 2)]))
    with pytest.raises(UserError, match=r"same\.xml: fits 2 images, train/n1/same\.JPEG and val/n1/same\.JPEG"):
        read_boxes(root, "boxes")
    assert list(read_boxes(root, "boxes", ["val/n1/same.JPEG"])) == ["val/n1/same.JPEG"]


_LAUGHS = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<annotation>", "not a PASCAL VOC file of boxes"),
        ("", "not a PASCAL VOC file of boxes"),
        (b"\xff\xfe<\x00", "not a PASCAL VOC file of boxes"),
        (_LAUGHS, "declares a document type or entities"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a document type or entities"),
        (_LAUGHS.encode("utf-16"), "not a PASCAL VOC file of boxes"),
        ("<annotation>" + " " * 2**21 + "</annotation>", "larger than"),
        (_voc([("x", 1, 2, 3)]), "could not convert"),
        (_voc([("nan", 1, 2, 3)]), "xmin <= xmax"),
        (_voc([(5, 1, 2, 3)]), "xmin <= xmax"),
    ],
)
def test_bad_xml_is_one_line_with_its_path(root: Path, text: str | bytes, line: str) -> None:
    _write(root, "boxes/n1_1_val.xml", text)
    with pytest.raises(UserError, match=line) as caught:
        read_boxes(root, "boxes")
    assert str(caught.value).startswith(str(root / "boxes" / "n1_1_val.xml"))


def test_csv_boxes_keep_their_order_and_odd_names(root: Path) -> None:
    text = (
        '\ufeffpath,x0,y0,x1,y1\n./val//n1/n1_1_val.JPEG,0,0,5,5\n"a, b.jpg",1.5,2,3,4\nval/n1/n1_1_val.JPEG,1,2,3,4\n'
    )
    _write(root, "boxes.csv", text)
    everything = {"val/n1/n1_1_val.JPEG": [[0, 0, 5, 5], [1, 2, 3, 4]], "a, b.jpg": [[1.5, 2, 3, 4]]}
    assert read_boxes(root, "boxes.csv", ["c.jpg", "val/n1/n1_1_val.JPEG", "b.jpg", "a, b.jpg"]) == everything
    assert read_boxes(root, "boxes.csv", ["a, b.jpg"]) == {"a, b.jpg": [[1.5, 2, 3, 4]]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", r"its first line must be path,x0,y0,x1,y1"),
        ("file,x,y,w,h\n", r"its first line must be path,x0,y0,x1,y1, not 'file,x,y,w,h'"),
        ("path,x0,y0,x1,y1\na,1,2,3\n", "line 2: a path and four numbers"),
        ("path,x0,y0,x1,y1\na,1,2,3,4\nb,1,2,x,4\n", "line 3: a path and four numbers"),
        ("path,x0,y0,x1,y1\na,3,2,3,4\n", "line 2: a box needs x0 < x1"),
        ("path,x0,y0,x1,y1\na,1,2,inf,4\n", "line 2: a box needs x0 < x1"),
        ("path,x0,y0,x1,y1\n../../etc/passwd,1,2,3,4\n", r"line 2: the path '\.\./\.\./etc/passwd' leaves"),
        ("path,x0,y0,x1,y1\n/etc/passwd,1,2,3,4\n", "line 2: the path '/etc/passwd' leaves"),
    ],
)
def test_bad_csv_is_one_line_with_its_number(root: Path, text: str, line: str) -> None:
    _write(root, "boxes.csv", text)
    with pytest.raises(UserError, match=line):
        read_boxes(root, "boxes.csv")


def test_a_missing_place_is_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"boxes: no such folder; data\.images\.boxes"):
        read_boxes(root, "boxes")


@given(
    box=st.tuples(*[st.integers(1, 60)] * 4).map(
        lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
    ),
    told=st.tuples(st.integers(60, 400), st.integers(60, 400)),
    real=st.tuples(st.integers(1, 400), st.integers(1, 400)),
)
@settings(max_examples=60)
def test_a_box_covers_the_same_share_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, box: Any, told: Any, real: Any
) -> None:
    root = tmp_path_factory.mktemp("boxes")
    (root / "b").mkdir()
    (root / "b" / "x.xml").write_text(_voc([box], told))
    found = np.array(read_boxes(root, "b", ["x.png"], real)["x.png"][0])
    shares = found / np.array([real[0], real[1]] * 2)
    expected = np.array([box[0] - 1, box[1] - 1, box[2], box[3]]) / np.array([told[0], told[1]] * 2)
    np.testing.assert_allclose(shares, expected, atol=1e-12)


def test_the_check_reports_boxes_and_what_is_wrong_with_them(root: Path, tmp_path: Path) -> None:
    def check(boxes: str) -> dict[str, Any]:
        return check_data(ImageFolderSettings(root=str(root), boxes=boxes), tmp_path / "out" / boxes)[0]

    _write(root, "boxes/n1_1_val.xml", _voc([(1, 1, 9, 9), (2, 2, 5, 5)]))
    _write(root, "boxes/n1_2_val.xml", "broken")
    _write(root, "boxes/nobody.xml", _voc([(1, 1, 9, 9)]))
    manifest = check("boxes")
    assert manifest["boxes"] == {"images": 1, "boxes": 2}
    assert manifest["inconsistencies"]["count"] == 1
    assert "n1_2_val.xml: not a PASCAL VOC file" in manifest["inconsistencies"]["first"][0]
    assert manifest["notes"]["first"][-1] == "boxes: boxes of 1 image(s) that are not there or not readable"
    assert manifest["files"] == 9

    _write(root, "b.csv", "path,x0,y0,x1,y1\nval/n1/n1_1_val.JPEG,0,0,41,5\nnowhere.jpg,0,0,1,1\n")
    manifest = check("b.csv")
    assert manifest["boxes"] == {"images": 1, "boxes": 2}
    assert manifest["inconsistencies"]["first"] == ["b.csv: 1 box(es) reach out of their image"]
    _write(root, "b.csv", "path,x0,y0,x1,y1\nval/n1/n1_1_val.JPEG,0,0,oops,5\n")
    assert [line.partition("b.csv: ")[2] for line in check("b.csv")["inconsistencies"]["first"]] == [
        "line 2: a path and four numbers are expected",
        "holds no box of a readable image",
    ]

"""Files of any content are read, or refused in one line: no traceback, no hang, no half-written figures."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_coco_eval import made_files
from tiny_coco import tiny_experiment, write_uavdt

from flsl.cli import main
from flsl.detect.coco_eval import evaluate_files
from flsl.detect.coco_files import read_annotations
from flsl.detect.dataset import training_set
from flsl.detect.stage import run
from flsl.detect.uavdt_eval import evaluate_files as evaluate_uavdt
from flsl.detect.uavdt_files import image_id
from flsl.model.choice import EncoderChoice
from flsl.runtime.errors import UserError

WRONG: list[Any] = [None, True, "text", "\0", -1, 3.5, 10**30, 10**400, float("nan"), 1e308, [], [None], {}, {"a": 1}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of lists the first two entries' alone."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def broken(value: Any) -> Iterator[Any]:
    """The value with one place at a time replaced by something that does not belong there."""
    for path in places(value):
        for wrong in WRONG:
            changed = copy.deepcopy(value)
            if not path:
                changed = wrong
            else:
                parent = changed
                for key in path[:-1]:
                    parent = parent[key]
                parent[path[-1]] = wrong
            yield changed


def refused(calls: Iterator[Callable[[], object]]) -> int:
    """Make every call and return how many were refused; anything but a one-line ``UserError`` fails the test."""
    count = 0
    for call in calls:
        try:
            call()
        except UserError as error:
            if "\n" in str(error):
                pytest.fail(f"more than one line: {error}")
            count += 1
    return count


@pytest.mark.parametrize("which", ["annotations", "detections"])
def test_coco_files_with_anything_in_any_place(tmp_path: Path, which: str) -> None:
    files = dict(zip(("annotations", "detections"), made_files(3, "both"), strict=True))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))

    def calls() -> Iterator[Callable[[], object]]:
        for content in broken(files[which]):
            (tmp_path / which).write_text(json.dumps(content))
            yield lambda: evaluate_files(tmp_path / "annotations", tmp_path / "detections", tmp_path / "metrics.json")

    assert refused(calls()) > 100


def test_training_annotations_with_anything_in_any_place(tiny: Path) -> None:
    content = json.loads((tiny / "coco.json").read_text())

    def calls() -> Iterator[Callable[[], object]]:
        for changed in broken(content):
            (tiny / "changed.json").write_text(json.dumps(changed))
            yield lambda: training_set(read_annotations(tiny / "changed.json"), tiny / "images", masks=True)

    assert refused(calls()) > 100


@pytest.mark.parametrize("which", ["results", "images"])
def test_uavdt_results_with_anything_in_any_place(tmp_path: Path, which: str) -> None:
    write_uavdt(tmp_path, train=[], test=["M0208"], frames=4)
    boxes = [(1, [4, 20, 20, 16]), (2, [8, 20, 20, 16]), (3, [30, 5, 9, 9])]
    results = [{"image_id": image_id("M0208", f), "bbox": box, "score": 0.1 * f, "category_id": 1} for f, box in boxes]
    images = [{"id": image_id("M0208", f), "file_name": f"M0208/img{f:06d}.jpg"} for f, _ in boxes]
    files = {"results": results, "images": {"images": images}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))

    def calls() -> Iterator[Callable[[], object]]:
        for content in broken(files[which]):
            (tmp_path / which).write_text(json.dumps(content))
            yield lambda: evaluate_uavdt(
                tmp_path / "gt", tmp_path / "results", tmp_path / "m.json", ["M0208"], tmp_path / "images"
            )

    assert refused(calls()) > 30


LINES = [
    *(b"", b"\n\n", b"\xff\xfe", b"a,b\n", b"1\n", b"1,2,3,4,5,6,7,8,9,10,11,12\n", b"0,1,1,1,1,1,1,1,1\n", b"\0\0\n"),
    *(b"1,1,1,1,nan,1,1,1,1\n", b"1e400,1,1,1,1,1,1,1,1\n", b"1,1,1,1,1e300,1e300,1,1,1\n", b"1;2;3\n", b'"a\n', b"{}"),
    *(b"1000000000000000000000000,1,1,1,1,1,1,1,1\n", b"1e15,1,1,1,1,1,1,1,1\n", b"1,1,1,1,-5,5,1,1,1\n"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["gt/M0208_gt_whole.txt", "gt/M0208_gt_ignore.txt", "found/M0208.txt"])
def test_uavdt_text_files_of_any_content(tmp_path: Path, name: str) -> None:
    write_uavdt(tmp_path, train=[], test=["M0208"], frames=4)
    (tmp_path / "found").mkdir()
    (tmp_path / "found/M0208.txt").write_text("1,-1,4,20,20,16,0.9,1,-1\n")
    whole = (tmp_path / name).read_bytes()

    def calls() -> Iterator[Callable[[], object]]:
        for line in LINES:
            for content in (line, whole.rstrip() + b"\n" + line):
                (tmp_path / name).write_bytes(content)
                yield lambda: evaluate_uavdt(tmp_path / "gt", tmp_path / "found", tmp_path / "m.json", ["M0208"])

    assert refused(calls()) > 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "coco.json: not valid JSON"),
        ("{", "coco.json: not valid JSON"),
        ("[]", "it has no list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "no image has an object to train on (no annotations)"),
    ],
)
def test_training_on_what_is_no_annotation_file(tiny: Path, tmp_path: Path, content: str, message: str) -> None:
    (tiny / "coco.json").write_text(content)
    with pytest.raises(UserError) as error:
        run("coco", tiny_experiment(tiny), EncoderChoice(random=True), tmp_path / "out", "base")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [([[5, 5, 20, 5]], "annotation 4: a polygon has 2 points"), ([], "annotation 4 has no segmentation")],
)
def test_a_mask_that_cannot_be_evaluated_is_refused_before_the_training(
    tiny: Path, tmp_path: Path, segmentation: list[Any], message: str
) -> None:
    content = json.loads((tiny / "coco.json").read_text())
    content["annotations"][3]["segmentation"] = segmentation
    (tiny / "val.json").write_text(json.dumps(content))
    experiment = tiny_experiment(tiny, "data.coco.val_annotations=val.json")
    with pytest.raises(UserError, match=message):
        run("coco", experiment, EncoderChoice(random=True), tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[" * 10**5, f"[{'1' * 5000}]"], ids=["deep", "long number"])
def test_json_that_python_gives_up_on(tmp_path: Path, text: str) -> None:
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(UserError, match=r"found\.json: not valid JSON"):
        read_annotations(tmp_path / "found.json")


def test_a_file_that_is_no_encoder(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"junk\.pth"):
        run("coco", tiny_experiment(tiny), EncoderChoice(backbone=tmp_path / "junk.pth"), tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"out.*: cannot be written: a file stands where a folder is needed"):
        run("coco", tiny_experiment(tiny), EncoderChoice(random=True), tmp_path / "out", "base")


def test_prediction_needs_images_and_categories_alone(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(tiny, "detection.coco.epochs=1", "detection.coco.milestones=[]")
    run("coco", experiment, EncoderChoice(random=True), tmp_path / "out", "base")
    listed = json.loads((tiny / "coco.json").read_text())
    del listed["annotations"]
    (tmp_path / "info.json").write_text(json.dumps(listed))
    predict = ["detect", "predict", "--model", str(tmp_path / "out/model.pth"), "--images", str(tiny / "images")]
    predict += ["--workers", "0", "--device", "cpu", "--out", str(tmp_path / "found.json"), "--annotations"]
    assert main([*predict, str(tmp_path / "info.json")]) == 0
    assert (tmp_path / "found.json").read_text() == (tmp_path / "out/detections.json").read_text()

    (tmp_path / "found.json").unlink()
    listed["categories"] = listed["categories"][:1]
    (tmp_path / "info.json").write_text(json.dumps(listed))
    capsys.readouterr()
    assert main([*predict, str(tmp_path / "info.json")]) == 2
    error = capsys.readouterr().err
    assert "category ids are not the" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [("coco.json", "coco.json is one of the files that are read"), ("coco.json/found.json", "a file stands where")],
)
def test_a_place_that_cannot_be_written_is_told_before_the_prediction(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str, words: str
) -> None:
    monkeypatch.chdir(tiny)
    before = Path("coco.json").read_bytes()
    files = ["--model", "not-read-yet.pth", "--annotations", "coco.json", "--images", "images"]
    assert main(["detect", "predict", *files, "--out", out]) == 2
    assert words in capsys.readouterr().err
    assert Path("coco.json").read_bytes() == before

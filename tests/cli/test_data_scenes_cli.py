"""``flsl data scenes`` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flsl.cli import main

SMALL = [
    f"data.scenes.{setting}"
    for setting in (
        "train_images=20",
        "val_images=10",
        "coco_train_images=3",
        "coco_val_images=4",
        "uavdt_size=128",
        "uavdt_sequences=2",
        "uavdt_frames=2",
        "davis_size=64",
        "davis_sequences=1",
        "davis_frames=3",
    )
]


def test_makes_everything_and_a_picture_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, preview = tmp_path / "scenes", tmp_path / "preview.png"
    assert main(["data", "scenes", "--out", str(out), "--jobs", "1", "--preview", str(preview), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert f"{out / 'images'}: 20 train, 10 val" in printed
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["coco", "davis", "images", "uavdt"]
    with Image.open(preview) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        # ten classes, and more, stacked
        assert image.height > 1000
        assert len(image.convert("L").getcolors()) > 100


def test_settings_come_from_a_file_and_name_the_folder(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    root = tmp_path / "made"
    config.write_text(
        f"project: p\ndata:\n  scenes: {{root: {root}, train_images: 10, val_images: 10, coco_train_images: 0, "
        "uavdt_sequences: 0, davis_sequences: 0}\n"
    )
    assert main(["data", "scenes", "--config", str(config), "--jobs", "1", "data.scenes.image_size=32"]) == 0
    with Image.open(next((root / "images/val").rglob("*.jpg"))) as image:
        assert image.size == (32, 32)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "--jobs 0: at least one process"),
        (["data.scenes.clases=3"], "data.scenes.clases: unknown setting (did you mean 'classes'?)"),
        (["data.scenes.train_images=3"], "data.scenes.train_images: at least one image per class"),
        (["data.scenes.classes"], "an override is written as setting=value"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "scenes", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

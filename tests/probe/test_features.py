"""Frozen features against a slow pass over single images, and the file that they are kept in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torchvision.transforms import InterpolationMode

from flsl.model.backbone import load_backbone
from flsl.model.choice import EncoderChoice
from flsl.probe.features import extract
from flsl.probe.images import ImageSource
from flsl.probe.store import check_finite, feature_file, read_features
from flsl.runtime.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def slow_features(backbone_file: Path, path: Path, resize: int, crop: int, blocks: int) -> torch.Tensor:
    """One image by itself, with torchvision's transforms and the blocks called one by one: (blocks, C)."""
    image = tv.resize(
        Image.open(path).convert("RGB"), [resize], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    pixels = tv.normalize(tv.to_dtype(tv.pil_to_tensor(tv.center_crop(image, [crop])), torch.float32, True), *IMAGENET)
    vit = load_backbone(backbone_file).vit
    with torch.no_grad():
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(pixels[None]))))
        outputs = []
        for block in vit.blocks:
            tokens = block(tokens)
            outputs.append(vit.norm(tokens)[0].mean(0))
    return torch.stack(outputs[-blocks:])


@pytest.mark.parametrize("workers", [0, 2])
def test_features_equal_a_slow_pass_and_are_in_the_order_of_the_paths(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path, workers: int
) -> None:
    settings = make_settings(features={"blocks": 2}, compute={"workers": workers})
    record = extract(settings, EncoderChoice(backbone_file), ImageSource(image_folder), tmp_path / "out", "base")
    for split, count in (("train", 72), ("val", 30)):
        stored = safetensors.torch.load_file(tmp_path / "out" / f"{split}.safetensors")
        assert stored["features"].shape == (count, 2, 32)
        assert stored["features"].dtype == torch.float32
        read = read_features(tmp_path / "out" / f"{split}.safetensors")
        assert read.paths == sorted(str(p.relative_to(image_folder)) for p in image_folder.glob(f"{split}/*/*.png"))
        assert read.classes == ["ant", "bee", "cow", "dog", "elk", "fox"]
        assert [read.classes[label] for label in read.labels] == [path.split("/")[1] for path in read.paths]
        for row in range(0, count, 5):
            expected = slow_features(backbone_file, image_folder / read.paths[row], 36, 32, 2)
            torch.testing.assert_close(stored["features"][row], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(read.features[row], expected[-1], rtol=1e-4, atol=1e-5)
    both = read_features(tmp_path / "out" / "val.safetensors", blocks=2).features
    assert torch.equal(both, stored["features"].flatten(1))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == record
    assert record["stage"] == "features"
    assert record["run"] == "base"
    assert (record["metrics"]["features/train_images"], record["metrics"]["features/val_images"]) == (72, 30)
    assert record["metrics"]["features/images_per_second"] > 0
    assert list(record["provenance"]["inputs"]) == [str(backbone_file)]


def test_bf16_on_the_cpu_is_near_float32(
    image_folder: Path, backbone_file: Path, make_settings: Callable, tmp_path: Path
) -> None:
    found = {}
    for precision in ("float32", "bf16"):
        extract(
            make_settings(features={"precision": precision}),
            EncoderChoice(backbone_file),
            ImageSource(image_folder),
            tmp_path / precision,
            "base",
        )
        found[precision] = read_features(tmp_path / precision / "val.safetensors").features
    assert not torch.equal(found["bf16"], found["float32"])
    cosines = torch.nn.functional.cosine_similarity(found["bf16"], found["float32"])
    assert cosines.min() > 0.999


def test_the_file_holds_any_names_and_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(5, 3, 4)).astype(np.float32))
    names = ["a/0.png", "ä/ü b.png", "c/\udcff.png", "d,\n.png", "e"]
    with feature_file(
        tmp_path / "x.safetensors", (5, 3, 4), torch.arange(5), ["k\n1", "ß"], names, {"encoder": "vit"}
    ) as append:
        append(features[:2])
        append(features[2:])
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("features"), features)
        assert file.metadata()["encoder"] == "vit"
    read = read_features(tmp_path / "x.safetensors", blocks=2)
    assert torch.equal(read.features, features[:, 1:].flatten(1))
    assert read.paths == names
    assert read.classes == ["k\n1", "ß"]
    assert read.labels.tolist() == [0, 1, 2, 3, 4]


def test_an_incomplete_file_does_not_appear(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="features of 3 of 5 images are missing"),
        feature_file(tmp_path / "x.safetensors", (5, 1, 2), torch.arange(5), ["a"], list("abcde"), {}) as append,
    ):
        append(torch.zeros(2, 1, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_image_whose_features_are_not_finite_is_named(
    image_folder: Path,
    backbone_file: Path,
    make_settings: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: float,
) -> None:
    from flsl.model.backbone import Backbone

    tokens = Backbone.tokens
    seen = 0

    def break_the_tenth(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        found = tokens(self, images).clone()
        if seen <= 9 < seen + len(images):
            found[9 - seen, 3, 5] = bad
        seen += len(images)
        return found

    monkeypatch.setattr(Backbone, "tokens", break_the_tenth)
    with pytest.raises(UserError, match=r"train/ant/009\.png: the encoder's features of this image are not finite"):
        extract(make_settings(), EncoderChoice(backbone_file), ImageSource(image_folder), tmp_path / "out", "base")
    assert list((tmp_path / "out").iterdir()) == []


def test_reading_refuses_what_is_no_whole_feature_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no such file; frozen features"):
        read_features(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a file of frozen features"):
        read_features(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="not a file of frozen features"):
        read_features(path)
    with feature_file(path, (2, 1, 2), torch.arange(2), ["a", "b"], ["p", "q"], {}) as append:
        append(torch.tensor([[[1.0, 2.0]], [[1.0, torch.nan]]]))
    with pytest.raises(UserError, match=r"^q: the encoder's features of this image are not finite"):
        read_features(path)
    with pytest.raises(UserError, match=r"holds features of 1 blocks where 3 are needed; set features\.blocks=3"):
        read_features(path, blocks=3)


def test_features_that_are_not_finite_are_found_wherever_they_are() -> None:
    names = [str(index) for index in range(9000)]
    for bad in ([], [0], [8999], [4095, 4096, 7000]):
        features = torch.zeros(9000, 2)
        features[bad, 1] = torch.nan
        if not bad:
            check_finite(features, names)
            continue
        with pytest.raises(UserError, match=rf"^{bad[0]}: .* {len(bad)} of 9000 images"):
            check_finite(features, names)

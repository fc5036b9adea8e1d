"""The k-NN check of a training against Pillow and a plain loop over votes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flsl.config.pretrain import EncoderSettings
from flsl.data.images import ImageSet
from flsl.model.vit import build_encoder
from flsl.pretrain.online_knn import OnlineKnn, _Small

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Smooth images of three classes and many shapes, 30 to train on and 30 others."""
    generator = np.random.default_rng(0)
    for index in range(60):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        shape = (int(generator.integers(20, 90)), int(generator.integers(20, 90)))
        path = tmp_path / f"{'train' if index < 30 else 'val'}/class{index % 3}/{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC).save(path)
    return ImageSet.scan(tmp_path, "train")


def test_images_are_central_squares_of_the_resized_image(images: ImageSet) -> None:
    small = _Small(images, 100, 32)
    assert len(small) == 30
    for index in range(30):
        whole = images.load(index)
        scale = 32 / min(whole.size)
        width, height = (max(32, round(side * scale)) for side in whole.size)
        left, top = (width - 32) // 2, (height - 32) // 2
        wanted = whole.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        pixels, label = small[index]
        assert pixels.shape == (3, 32, 32)
        assert label == images.labels[index]
        # a crop that lies a pixel beside the right one is some levels away
        apart = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted).astype(int))
        assert apart.mean() < 0.3


def test_accuracy_is_that_of_a_loop_over_votes(images: ImageSet) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2), 32)
    encoder.train()
    val = ImageSet.scan(images.root, "val")
    found = OnlineKnn(images, val, 300, 32, workers=0).accuracy(encoder, torch.device("cpu"))
    assert encoder.training

    def features(part: ImageSet) -> tuple[np.ndarray, list[int]]:
        small = _Small(part, 30, 32)
        encoder.eval()
        rows, labels = [], []
        for pixels, label in (small[index] for index in range(30)):
            normalised = (pixels.permute(1, 2, 0).numpy() / 255 - MEAN) / STD
            with torch.no_grad():
                tokens = encoder.forward_features(torch.from_numpy(normalised).float().permute(2, 0, 1)[None])
            row = tokens[0].mean(0).double().numpy()
            rows.append(row / np.linalg.norm(row))
            labels.append(label)
        return np.stack(rows), labels

    bank, classes = features(images)
    queries, wanted = features(val)
    right = 0
    for query, label in zip(queries, wanted, strict=True):
        votes = [0.0] * 3
        for row in sorted(range(30), key=lambda row: -float(bank[row] @ query))[:20]:
            votes[classes[row]] += math.exp(float(bank[row] @ query) / 0.07)
        right += int(np.argmax(votes)) == label
    assert found == pytest.approx(100 * right / 30)
    assert 0 < right < 30

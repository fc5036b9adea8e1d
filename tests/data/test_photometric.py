"""Colour changes: each against torchvision given the same parameters, and the recipe's probabilities and ranges."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from flsl.config.pretrain import ViewSettings
from flsl.data.photometric import PHOTOMETRIC_DRAWS, apply_photometric, draw_photometric, turn_hue

SETTINGS = ViewSettings()
MANY = 40_000


def drawn(count: int = MANY, seed: int = 0, settings: ViewSettings = SETTINGS):
    uniforms = np.random.default_rng(seed).random((count, PHOTOMETRIC_DRAWS))
    return uniforms, draw_photometric(uniforms, settings, blur_scale=1.0)


def one_by_one(image: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """The recipe for one image, step by step with torchvision's functions, from the meaning of each number."""
    spread = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2}
    factors = {name: 1 - s + 2 * s * numbers[1 + i] for i, (name, s) in enumerate(spread.items())}
    if numbers[0] < 0.8:
        for operation in np.argsort(numbers[5:9]):
            if operation == 0:
                image = tv.adjust_brightness(image, factors["brightness"])
            elif operation == 1:
                image = tv.adjust_contrast(image, factors["contrast"])
            elif operation == 2:
                image = tv.adjust_saturation(image, factors["saturation"])
            else:
                image = tv.adjust_hue(image, 0.1 * (2 * numbers[4] - 1))
    if numbers[9] < 0.2:
        image = tv.rgb_to_grayscale(image, 3)
    sigma = 0.1 + 1.9 * numbers[12]
    branch_a = numbers[10] < 0.5
    if numbers[11] < (0.5 if branch_a else 0.1):
        image = tv.gaussian_blur(image, [13, 13], [sigma, sigma])
    if not branch_a and numbers[13] < 0.2:
        image = tv.solarize(image, 128 / 255)
    return image


def test_batch_equals_torchvision_one_image_at_a_time() -> None:
    uniforms, parameters = drawn(200)
    images = torch.rand(200, 3, 20, 24)
    made = apply_photometric(images, parameters, largest_sigma=2.0)
    for image, numbers, ours in zip(images, uniforms, made, strict=True):
        torch.testing.assert_close(ours, one_by_one(image, numbers), atol=2e-5, rtol=1e-4)


def test_hue_equals_torchvision_on_all_kinds_of_colours() -> None:
    images = torch.rand(6, 3, 16, 16)
    images[0] = images[0, :1]  # gray
    images[1] = (images[1] > 0.5).float()  # pure colours, black and white
    turns = torch.tensor([0.1, -0.1, 0.5, -0.5, 0.03, 0.0])
    for image, turn, ours in zip(images, turns.tolist(), turn_hue(images, turns), strict=True):
        torch.testing.assert_close(ours, tv.adjust_hue(image, turn), atol=2e-6, rtol=1e-5)


def test_input_is_left_as_it_was() -> None:
    images = torch.rand(20, 3, 8, 8)
    before = images.clone()
    apply_photometric(images, drawn(20)[1], 2.0)
    assert torch.equal(images, before)


def test_probabilities() -> None:
    _, parameters = drawn()
    hue_turned = sum(len(samples) for samples in parameters.hue_samples)
    near = pytest.approx
    assert hue_turned / MANY == near(0.8, abs=0.01)
    assert len(parameters.gray) / MANY == near(0.2, abs=0.01)
    assert len(parameters.blurred) / MANY == near(0.5 * 0.5 + 0.5 * 0.1, abs=0.01)
    assert len(parameters.solarized) / MANY == near(0.5 * 0.2, abs=0.01)
    # solarize is of branch B only, where blur is rare
    both = np.intersect1d(parameters.blurred.numpy(), parameters.solarized.numpy())
    assert len(both) / MANY == near(0.5 * 0.1 * 0.2, abs=0.005)


def test_every_order_of_the_jitter_is_equally_likely() -> None:
    uniforms, _ = drawn()
    orders, counts = np.unique(np.argsort(uniforms[:, 5:9], axis=1), axis=0, return_counts=True)
    assert len(orders) == 24
    assert (np.abs(counts / MANY - 1 / 24) < 0.006).all()


def test_ranges() -> None:
    _, parameters = drawn()
    plain = (parameters.to_mean == 0) & (parameters.to_gray == 0)
    for chosen, spread in ((plain, 0.4), (parameters.to_mean == 1, 0.4), (parameters.to_gray == 1, 0.2)):
        factors = parameters.factors[chosen]
        changed = factors[factors != 1]
        assert float(changed.min()) == pytest.approx(1 - spread, abs=0.01)
        assert float(changed.max()) == pytest.approx(1 + spread, abs=0.01)
        assert float(changed.mean()) == pytest.approx(1, abs=0.01)
    turns = parameters.turns[parameters.turns != 0]
    assert (float(turns.min()), float(turns.max())) == pytest.approx((-0.1, 0.1), abs=0.001)
    assert (float(parameters.sigmas.min()), float(parameters.sigmas.max())) == pytest.approx((0.1, 2.0), abs=0.01)


def test_nothing_happens_when_everything_is_off() -> None:
    off = ViewSettings(jitter=0.0, grayscale=0.0, blur_a=0.0, blur_b=0.0, solarize=0.0)
    images = torch.rand(50, 3, 8, 8)
    torch.testing.assert_close(apply_photometric(images, drawn(50, settings=off)[1], 2.0), images)

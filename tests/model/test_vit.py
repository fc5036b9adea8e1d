"""The encoder: timm's ViT without a class token, on fixed positions, with stochastic depth a sample."""

import numpy as np
import pytest
import timm
import torch

from flsl.config.pretrain import EncoderSettings
from flsl.model.vit import (
    PatchProjection,
    build_encoder,
    multiply_patches,
    round_residuals,
    set_drop_path,
    sincos_positions,
)
from flsl.runtime.errors import UserError

SMALL = EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=3, heads=2)


def test_tokens_are_the_patches_and_nothing_else() -> None:
    encoder = build_encoder(SMALL, 48)
    assert encoder.num_prefix_tokens == 0
    assert encoder.forward_features(torch.rand(2, 3, 48, 48)).shape == (2, 36, 32)
    assert encoder.forward_features(torch.rand(2, 3, 24, 40)).shape == (2, 15, 32)


def test_final_layer_norm_is_on_every_token() -> None:
    tokens = build_encoder(SMALL, 48).forward_features(torch.rand(2, 3, 48, 48))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 36), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(2, 36), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "width", "heads", "millions"), [("small", 384, 6, 21.6), ("base", 768, 12, 85.7)])
def test_paper_sizes(name: str, width: int, heads: int, millions: float) -> None:
    with torch.device("meta"):
        encoder = build_encoder(EncoderSettings(name=f"vit_{name}_patch16_224", position="learned"), 224)
    assert (encoder.embed_dim, len(encoder.blocks), encoder.blocks[0].attn.num_heads) == (width, 12, heads)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.2)


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    positions = sincos_positions((3, 5), 16)[0].numpy().reshape(3, 5, 16)
    rates = 1 / 10000 ** (np.arange(4) / 4)
    for row in range(3):
        for column in range(5):
            expected = [f(x * rates) for x in (row, column) for f in (np.sin, np.cos)]
            # which quarter holds what is a convention; each quarter must be one of the four
            quarters = positions[row, column].reshape(4, 4)
            for wanted in expected:
                assert any(np.allclose(wanted, quarter, atol=1e-5) for quarter in quarters)


def test_positions_are_fixed_and_scaled() -> None:
    encoder = build_encoder(SMALL.model_copy(update={"position_strength": 0.25}), 48)
    assert not encoder.pos_embed.requires_grad
    torch.testing.assert_close(encoder.pos_embed.data, 0.25 * sincos_positions((6, 6), 32))
    assert build_encoder(SMALL.model_copy(update={"position": "learned"}), 48).pos_embed.requires_grad


def test_positions_of_another_grid_are_resampled_bicubically() -> None:
    encoder = build_encoder(SMALL, 48).eval()
    seen = {}
    encoder.pos_drop.register_forward_hook(lambda module, given, out: seen.update(tokens=given[0]))
    images = torch.rand(1, 3, 24, 24)
    encoder.forward_features(images)
    patches = encoder.patch_embed(images).flatten(1, 2)
    grid = sincos_positions((6, 6), 32).reshape(1, 6, 6, 32).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, (3, 3), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen["tokens"] - patches, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_over_patches_is_the_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 5, (4, 2), stride=(4, 2), bias=bias)
    projection = PatchProjection(3, 5, (4, 2), stride=(4, 2), bias=bias)
    projection.load_state_dict(convolution.state_dict())
    images = torch.rand(2, 3, 12, 10)
    torch.testing.assert_close(projection.product(images), convolution(images))
    torch.testing.assert_close(projection(images), convolution(images), rtol=0, atol=0)


def test_the_patch_embedding_keeps_its_weights_and_draws_no_numbers() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    weight, after = plain.patch_embed.proj.weight, torch.rand(1)
    torch.manual_seed(0)
    multiplied = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    multiply_patches(multiplied)
    assert isinstance(multiplied.patch_embed.proj, PatchProjection)
    assert torch.equal(multiplied.patch_embed.proj.weight, weight)
    assert torch.equal(torch.rand(1), after)
    assert list(multiplied.state_dict()) == list(plain.state_dict())
    assert all(parameter.requires_grad for parameter in multiplied.patch_embed.parameters())


def test_an_overlapping_patch_embedding_stays_a_convolution() -> None:
    encoder = build_encoder(SMALL, 48)
    encoder.patch_embed.proj = torch.nn.Conv2d(3, 32, 8, stride=4, padding=2)
    multiply_patches(encoder)
    assert type(encoder.patch_embed.proj) is torch.nn.Conv2d


def test_drop_path_drops_a_sample_by_its_own_numbers() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(SMALL, 48, drop_path=0.5).train()
    images = torch.rand(4, 3, 48, 48)
    uniforms = torch.rand(4, 6)
    set_drop_path(encoder, uniforms)
    together = encoder.forward_features(images)
    for sample in range(4):
        set_drop_path(encoder, uniforms[sample : sample + 1])
        alone = encoder.forward_features(images[sample : sample + 1])
        torch.testing.assert_close(alone[0], together[sample], atol=1e-5, rtol=1e-5)


def test_drop_path_rate_rises_linearly_and_scales_what_is_kept() -> None:
    encoder = build_encoder(SMALL, 48, drop_path=0.5).train()
    rates = [getattr(block.drop_path1, "rate", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5])
    set_drop_path(encoder, torch.tensor([[0.0] * 4 + [0.49, 0.5]]))
    last = encoder.blocks[-1]
    branch = torch.ones(1, 2, 3)
    torch.testing.assert_close(last.drop_path1(branch), 0 * branch)
    torch.testing.assert_close(last.drop_path2(branch), 2 * branch)
    encoder.eval()
    torch.testing.assert_close(last.drop_path1(branch), branch)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "vit_smal"}, "timm has no model 'vit_smal'"),
        ({"name": "resnet18"}, "VisionTransformers"),
        ({"name": "vit_small_patch16_18x2_224"}, "compute several branches at a time"),
        ({"width": 30, "heads": 4}, "width"),
        ({"width": 6, "heads": 2}, "multiple of 4"),
    ],
)
def test_impossible_encoders_are_told_in_one_line(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build_encoder(SMALL.model_copy(update=changes), 48)
    assert "\n" not in str(error.value)


# DeiT III's branches end in float32 factors
@pytest.mark.parametrize("name", [SMALL.name, "deit3_small_patch16_224"])
def test_a_rounded_residual_stream_is_bfloat16_between_the_blocks_under_autocast_alone(name: str) -> None:
    encoder, images = build_encoder(SMALL.model_copy(update={"name": name}), 48), torch.rand(2, 3, 48, 48)
    types: list[torch.dtype] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, given, made: types.extend([given[0].dtype, made.dtype]))
    exact = encoder.forward_features(images)
    round_residuals(encoder)
    assert torch.equal(encoder.forward_features(images), exact)
    assert {*types} == {torch.float32}
    types.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.forward_features(images)
    assert types == [torch.bfloat16] * 2 * len(encoder.blocks)
    # the final LayerNorm is float32, as without
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0)
    assert not torch.equal(rounded, exact)

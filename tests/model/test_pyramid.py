"""The pyramid's maps have the right strides, and an image's maps do not depend on what it is batched with."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from flsl.config.detect import DetectorSettings
from flsl.model.pyramid import ViTPyramid, chosen_blocks
from flsl.runtime.errors import UserError


def encoder(patch: int = 16, depth: int = 4, **more: object) -> timm.models.vision_transformer.VisionTransformer:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", patch_size=patch, img_size=64, embed_dim=32, depth=depth, num_heads=2,
        num_classes=0, dynamic_img_size=True, **{"class_token": False, "global_pool": "avg", "fc_norm": False, **more},
    )  # fmt: skip


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("pyramid", ["fpn", "simple"])
def test_strides_at_any_size(patch: int, pyramid: str) -> None:
    model = ViTPyramid(encoder(patch), DetectorSettings(pyramid=pyramid, channels=24))
    maps = model(torch.randn(2, 3, 70, 97))
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    for level, stride in zip(maps.values(), (4, 8, 16, 32, 64), strict=True):
        assert level.shape == (2, 24, -(-96 // stride), -(-128 // stride))
    sum(level.sum() for level in maps.values()).backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name in trained if dict(model.named_parameters())[name].grad is None] == []


def test_tokens_are_those_of_the_chosen_blocks_on_interpolated_positions() -> None:
    vit = encoder(8, depth=6, class_token=True).eval()
    model = ViTPyramid(vit, DetectorSettings(channels=16)).eval()
    assert model.blocks == [2, 3, 4, 6]
    image = torch.randn(1, 3, 40, 56)
    x = vit.patch_embed.proj(image).flatten(2).transpose(1, 2)
    x = torch.cat([vit.cls_token.expand(1, -1, -1), x], 1)
    x = x + resample_abs_pos_embed(vit.pos_embed, [5, 7], [8, 8], num_prefix_tokens=1)
    expected = []
    for number, block in enumerate(vit.blocks, 1):
        x = block(x)
        if number in (2, 3, 4, 6):
            expected.append(x[:, 1:].transpose(1, 2).reshape(1, 32, 5, 7))
    found = model._tokens(image, [(40, 56)], (8, 8))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[:, :, :5, :7], theirs)
        assert not ours[:, :, 5:].any()
        assert not ours[:, :, :, 7:].any()


def test_tokens_do_not_depend_on_the_batch() -> None:
    model = ViTPyramid(encoder(), DetectorSettings(channels=16)).eval()
    sizes = [(50, 90), (64, 64), (50, 90), (20, 33)]
    batch = torch.zeros(4, 3, 64, 96)
    for index, (height, width) in enumerate(sizes):
        batch[index, :, :height, :width] = torch.randn(3, height, width)
    together = model._tokens(batch, sizes, (4, 6))
    for index, (height, width) in enumerate(sizes):
        alone = model._tokens(batch[index : index + 1, :, :height, :width], [(height, width)], (4, 6))
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[index : index + 1], theirs)


def test_activation_checkpointing_changes_no_gradient() -> None:
    image = torch.randn(1, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        settings = DetectorSettings(channels=16, activation_checkpointing=checkpointing, drop_path=0.0)
        torch.manual_seed(1)
        model = ViTPyramid(encoder(), settings).train()
        model(image)["p2"].square().mean().backward()
        gradients.append(model.encoder.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_frozen_blocks_and_the_embeddings_get_no_gradient() -> None:
    model = ViTPyramid(encoder(class_token=True), DetectorSettings(channels=16, frozen_blocks=3)).train()
    sum(level.square().mean() for level in model(torch.randn(1, 3, 64, 64)).values()).backward()
    learning = {
        name.rsplit(".", 1)[0] for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }
    encoders = {name.split(".")[2] for name in learning if name.startswith("encoder.")}
    assert encoders == {"3"}
    assert "rescale.0.0" in learning
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with pytest.raises(UserError, match=r"frozen_blocks: 5 is more than the encoder's 4 blocks"):
        ViTPyramid(encoder(), DetectorSettings(frozen_blocks=5))


def test_blocks() -> None:
    assert chosen_blocks(DetectorSettings(), 12) == [4, 6, 8, 12]
    assert chosen_blocks(DetectorSettings(pyramid="simple"), 12) == [12] * 4
    with pytest.raises(UserError, match=r"blocks: \[4, 6, 8, 12\], but the encoder's last block is 6"):
        chosen_blocks(DetectorSettings(blocks=[4, 6, 8, 12]), 6)
    with pytest.raises(UserError, match="patch size is 32"):
        ViTPyramid(encoder(32), DetectorSettings())

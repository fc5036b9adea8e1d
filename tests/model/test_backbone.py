"""Backbones: what is exported loads into plain timm, and peers' checkpoints give the same tokens."""

import json
from pathlib import Path

import pytest
import safetensors
import timm
import torch

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.config.pretrain import EncoderSettings
from flsl.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from flsl.model.backbone import load_backbone, save_backbone
from flsl.model.vit import build_encoder, timm_arguments
from flsl.pretrain.export import export, write_baseline
from flsl.runtime.errors import UserError

SETTINGS = EncoderSettings(
    name="vit_tiny_patch16_224", patch_size=8, width=64, depth=3, heads=4, position_strength=0.25
)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    encoder = build_encoder(SETTINGS, 48).eval()
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, encoder, *timm_arguments(SETTINGS, 48), run="base")
    return path, encoder


@pytest.mark.parametrize("size", [48, 32])
def test_plain_timm_loads_the_export(exported: tuple[Path, torch.nn.Module], size: int) -> None:
    path, encoder = exported
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
    model = timm.create_model(
        about["timm_model"], checkpoint_path=str(path), **json.loads(about["timm_arguments"])
    ).eval()
    images = torch.rand(2, 3, size, size)
    assert torch.equal(model.forward_features(images), encoder.forward_features(images))
    # timm's own pooling is the probes': the mean of the normalised tokens
    torch.testing.assert_close(model(images), encoder.forward_features(images).mean(1))


def test_export_is_readable_by_others(exported: tuple[Path, torch.nn.Module]) -> None:
    assert exported[0].stat().st_mode & 0o044


def test_own_backbone_needs_no_model_name(exported: tuple[Path, torch.nn.Module]) -> None:
    path, encoder = exported
    backbone = load_backbone(path)
    assert (backbone.patch_size, backbone.width, backbone.depth) == (8, 64, 3)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(backbone.tokens(images), encoder.forward_features(images))


def test_tokens_of_the_last_blocks_are_normalised(exported: tuple[Path, torch.nn.Module]) -> None:
    path, encoder = exported
    images = torch.rand(2, 3, 48, 48)
    seen = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out))
    encoder.forward_features(images)
    for ours, raw in zip(load_backbone(path).block_tokens(images, 2), seen[-2:], strict=True):
        torch.testing.assert_close(ours, encoder.norm(raw))
    with pytest.raises(UserError, match="the last 4 blocks"):
        load_backbone(path).block_tokens(images, 4)


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone.", ""])
@pytest.mark.parametrize("outer", ["teacher", None])
def test_peers_layouts_give_the_same_tokens(tmp_path: Path, prefix: str, outer: str | None) -> None:
    """DINO's files: a class token, learned positions, 64 wide heads, prefixes, a head beside."""
    peer = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, img_size=64).eval()
    weights = {prefix + key: value for key, value in peer.state_dict().items()}
    weights[f"{prefix.removesuffix('backbone.')}head.last_layer.weight_g"] = torch.ones(4, 1)
    torch.save({outer: weights, "epoch": 1} if outer else weights, tmp_path / "c.pth")
    images = torch.rand(2, 3, 64, 64)
    tokens = load_backbone(tmp_path / "c.pth").tokens(images)
    torch.testing.assert_close(tokens, peer.forward_features(images)[:, 1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", [None, "vit_small_patch16_224"])
def test_the_authors_class_token_without_a_position_is_not_used(tmp_path: Path, model: str | None) -> None:
    """As their code makes it: the class token stays among the parameters, its position is cut off."""
    encoder = build_encoder(EncoderSettings(), 64).eval()
    weights = {**encoder.state_dict(), "cls_token": torch.rand(1, 1, 384)}
    torch.save({"teacher": {f"backbone.{key}": value for key, value in weights.items()}}, tmp_path / "c.pth")
    images = torch.rand(1, 3, 64, 64)
    tokens = load_backbone(tmp_path / "c.pth", model).tokens(images)
    torch.testing.assert_close(tokens, encoder.forward_features(images))


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_timms_class_tokens_without_a_position_are_used(tmp_path: Path, name: str) -> None:
    peer = timm.create_model(name, num_classes=0, img_size=3 * int(name.split("patch")[1][:2]), dynamic_img_size=True)
    torch.save(peer.eval().state_dict(), tmp_path / "c.pth")
    images = torch.rand(1, 3, *peer.patch_embed.img_size)
    tokens = load_backbone(tmp_path / "c.pth", name).tokens(images)
    torch.testing.assert_close(tokens, peer.forward_features(images)[:, peer.num_prefix_tokens :])


def test_student_is_not_taken_where_there_is_a_teacher(tmp_path: Path) -> None:
    teacher, student = (build_encoder(SETTINGS, 48).eval() for _ in range(2))
    state = {
        name: {f"encoder.{k}": v for k, v in net.state_dict().items()}
        for name, net in (("student", student), ("teacher", teacher))
    }
    torch.save(state, tmp_path / "c.pth")
    images = torch.rand(1, 3, 48, 48)
    backbone = load_backbone(tmp_path / "c.pth")
    assert torch.equal(backbone.vit.patch_embed.proj.weight, teacher.patch_embed.proj.weight)
    assert backbone.tokens(images).shape == (1, 36, 64)


def test_fixed_positions_that_are_not_stored_are_made_again(tmp_path: Path) -> None:
    encoder = build_encoder(
        SETTINGS.model_copy(update={"width": 128, "heads": 2, "position_strength": 1.0}), 224
    ).eval()
    weights = {key: value for key, value in encoder.state_dict().items() if key != "pos_embed"}
    torch.save({"teacher": weights}, tmp_path / "c.pth")
    images = torch.rand(1, 3, 48, 48)
    torch.testing.assert_close(load_backbone(tmp_path / "c.pth").tokens(images), encoder.forward_features(images))


def test_named_model_must_fit(exported: tuple[Path, torch.nn.Module]) -> None:
    with pytest.raises(UserError, match="has embed_dim 64, but vit_small_patch16_224 has 384"):
        load_backbone(exported[0], "vit_small_patch16_224")
    with pytest.raises(UserError, match="timm has no model"):
        load_backbone(None, "vit_smoll")
    with pytest.raises(UserError, match="vision transformer"):
        load_backbone(None, "resnet18", pretrained=False)
    with pytest.raises(UserError, match="takes patches of 8 of features, 32 pixels apart"):
        load_backbone(None, "vit_tiny_r_s16_p8_224", pretrained=False)


def test_models_that_normalise_after_pooling_have_their_tokens_normalised_so() -> None:
    backbone = load_backbone(None, "vit_wee_patch16_reg1_gap_256", image_size=32, pretrained=False).eval()
    assert isinstance(backbone.vit.fc_norm, torch.nn.LayerNorm)
    torch.nn.init.uniform_(backbone.vit.fc_norm.weight)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        # the register is no patch
        wanted = backbone.vit.fc_norm(backbone.vit.forward_features(images)[:, 1:])
        torch.testing.assert_close(backbone.tokens(images), wanted)
        torch.testing.assert_close(backbone.block_tokens(images, 2)[-1], wanted)


def test_any_timm_model_gives_patch_tokens() -> None:
    backbone = load_backbone(None, "vit_tiny_patch16_224", image_size=32, pretrained=False)
    assert backbone.tokens(torch.rand(2, 3, 32, 48)).shape == (2, 6, 192)
    with pytest.raises(UserError, match=r"features.crop: 40 is not a multiple of the patch size"):
        backbone.check_size(40, "features.crop")


def test_images_are_normalised_as_a_baselines_model_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the stages have nothing but the file
    made = load_backbone(None, "vit_tiny_patch16_224", image_size=32, pretrained=False)
    assert made.mean == made.std == (0.5, 0.5, 0.5)
    monkeypatch.setattr("flsl.pretrain.export.load_backbone", lambda *_: made)
    baselines = {"peer": {"kind": "timm", "model": "vit_tiny_patch16_224"}}
    write_baseline(check(Experiment, {"project": "p", "baselines": baselines}, "here"), "peer", tmp_path)
    path = tmp_path / "backbone.safetensors"
    for again in (load_backbone(path), load_backbone(path, "vit_tiny_patch16_224")):
        assert (again.mean, again.std) == (made.mean, made.std)
    digest = made.digest()
    made.mean, made.std = IMAGENET_MEAN, IMAGENET_STD
    assert digest != made.digest()  # what was made with these is another encoder's


def test_a_name_with_its_tag_tells_how_images_of_plain_weights_are_normalised(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).state_dict(), tmp_path / "c.pth")
    tagged = load_backbone(tmp_path / "c.pth", "vit_tiny_patch16_224.augreg_in21k")
    assert tagged.mean == tagged.std == (0.5, 0.5, 0.5)
    # DINO's weights, say, have this name too, and ImageNet's mean
    for plain in (load_backbone(tmp_path / "c.pth"), load_backbone(tmp_path / "c.pth", "vit_tiny_patch16_224")):
        assert (plain.mean, plain.std) == (IMAGENET_MEAN, IMAGENET_STD)
    export(tmp_path / "c.pth", tmp_path / "c.safetensors", "vit_tiny_patch16_224.augreg_in21k")
    assert load_backbone(tmp_path / "c.safetensors").mean == tagged.mean

"""Multi-stage pretraining: the earlier encoder's attention and the targets, against their definition in loops."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flsl.config.pretrain import EncoderSettings, HeadSettings, PretrainSettings, PriorSettings, ViewSettings
from flsl.data.views import FLSLViews
from flsl.model.backbone import Backbone, save_backbone
from flsl.model.vit import build_encoder, timm_arguments
from flsl.pretrain.network import FLSLNetwork
from flsl.pretrain.previous import AttentionPrior
from flsl.pretrain.recipe import recipe_of
from flsl.pretrain.schedules import values_at
from flsl.runtime.errors import UserError

# the earlier encoder is wider than the run's own
EARLIER = EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=48, depth=3, heads=2, drop_path=0.0)
SETTINGS = PretrainSettings(
    encoder=EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2),
    views=ViewSettings(teacher_size=48, global_size=32, local_size=16),
    head=HeadSettings(hidden=16, bottleneck=8),
    prototypes=12,
    epochs=4,
    batch_size=3,
)


@pytest.fixture
def earlier() -> Backbone:
    torch.manual_seed(5)
    return Backbone(build_encoder(EARLIER, 48), *timm_arguments(EARLIER, 48))


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None]


def prior_by_definition(queries: Tensor, keys: Tensor, tau: float, sharpness: float) -> Tensor:
    """normalise(sigmoid(sharpness (softmax(tau z K^T) - row mean))), one query (C,) at a time."""
    rows = []
    for query in queries.double():
        weights = [math.exp(tau * float(query @ key)) for key in keys.double()]
        shares = [weight / sum(weights) for weight in weights]
        mean = sum(shares) / len(shares)
        masks = [1 / (1 + math.exp(min(700.0, -sharpness * (share - mean)))) for share in shares]
        rows.append([mask / sum(masks) for mask in masks])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("block", "share"), [(None, 0.0), (2, 0.3), (3, 0.9)])
def test_targets_are_those_of_the_definition(earlier: Backbone, block: int | None, share: float) -> None:
    tau, sharpness, tau_ca = 0.4, 50.0, 0.02
    views = FLSLViews(SETTINGS, depth=2)
    numbers = torch.stack([torch.from_numpy(views.draw(0, 0, index)) for index in range(3)]).numpy()
    batch = views.batch(torch.randint(256, (3, 3, 48, 48), dtype=torch.uint8), numbers)
    teacher_crops, student_crops = views.crops(batch)

    # the earlier encoder's blocks one after the other
    def encode(images: Tensor) -> Tensor:
        vit = earlier.vit
        tokens = vit._pos_embed(vit.patch_embed(normalised(images)))
        for layer in list(vit.blocks)[:block]:
            tokens = layer(tokens)
        return vit.norm(tokens) if block is None else tokens  # type: ignore[no-any-return]

    torch.manual_seed(1)
    network = FLSLNetwork(SETTINGS, 0.0).eval()
    with torch.no_grad():
        keys = network.encoder.forward_features(normalised(teacher_crops))
        earlier_keys = encode(teacher_crops)
        queries, modes = [], []
        for crops, group in zip(student_crops, batch.students, strict=True):
            own, old = network.encoder.forward_features(normalised(crops)), encode(crops)
            queries.append(torch.stack([tokens[index] for tokens, index in zip(own, group.queries, strict=True)]))
            for row, index in enumerate(group.queries):
                image = row % 3  # view by view
                prior = prior_by_definition(old[row][index], earlier_keys[image], tau * math.sqrt(384) / 48, sharpness)
                attention = torch.softmax(tau_ca * own[row][index].double() @ keys[image].double().T, -1)
                mixed = share * attention + (1 - share) * prior
                modes.append((mixed / mixed.sum(-1, keepdim=True)) @ keys[image].double())
        expected = network.head(torch.cat(modes).float())
        prior_settings = PriorSettings(block=block, tau=tau, sharpness=sharpness)
        priors = AttentionPrior(earlier, prior_settings)((teacher_crops, student_crops), batch.students)
        found = network.targets(queries, keys, tau_ca, priors, share)
    assert [tuple(prior.shape) for prior in priors] == [(3, 4, 36), (6, 1, 36)]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_crops_are_the_views_without_their_colours() -> None:
    plain = SETTINGS.model_copy(
        update={"views": ViewSettings(teacher_size=48, global_size=32, local_size=16, jitter=0, grayscale=0)}
    )
    plain = plain.model_copy(
        update={"views": plain.views.model_copy(update={"blur_a": 0.0, "blur_b": 0.0, "solarize": 0.0})}
    )
    views = FLSLViews(plain, depth=2)
    numbers = views.draw(0, 0, 0)[None]
    batch = views.batch(torch.randint(256, (1, 3, 48, 48), dtype=torch.uint8), numbers)
    teacher, students = views(batch)
    crop, crops = views.crops(batch)
    for one, other in zip((teacher, *students), (crop, *crops), strict=True):
        torch.testing.assert_close(one, normalised(other), atol=1e-5, rtol=1e-5)


def test_share_of_the_own_attention_follows_a_cosine() -> None:
    settings = SETTINGS.model_copy(update={"prior": PriorSettings(bias=0.2)})
    shares = [values_at(step, settings, 5).attention_share for step in range(20)]
    assert shares[0] == 0
    assert shares[10] == pytest.approx(0.4)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.8 * (1 + math.cos(math.pi / 20)) / 2)


def test_recipe_knows_the_encoder_by_its_content_and_is_as_ever_without_one(earlier: Backbone, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_backbone(tmp_path / name, earlier.vit, earlier.name, earlier.arguments, run="first", step="10")
    # equal encoders are equal files, whatever order safetensors keeps the metadata in
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    named = SETTINGS.model_copy(update={"previous": "first"})
    assert recipe_of(named, 0, "d", tmp_path / "one") == recipe_of(SETTINGS, 0, "d", tmp_path / "two")
    without = recipe_of(SETTINGS, 0, "d")
    assert "previous" not in without["pretrain"]
    assert without == recipe_of(SETTINGS.model_copy(update={"prior": PriorSettings(bias=0.5)}), 0, "d")
    # the prior counts where there is one
    other = named.model_copy(update={"prior": PriorSettings(bias=0.5)})
    assert recipe_of(other, 0, "d", tmp_path / "one") != recipe_of(named, 0, "d", tmp_path / "one")
    watched = SETTINGS.model_copy(update={"online_knn_every": 3, "online_knn_images": 77})
    assert recipe_of(watched, 0, "d") == without
    with torch.no_grad():
        earlier.vit.norm.bias.add_(1)
    save_backbone(tmp_path / "two", earlier.vit, earlier.name, earlier.arguments, run="first", step="10")
    assert recipe_of(named, 0, "d", tmp_path / "one") != recipe_of(named, 0, "d", tmp_path / "two")


def test_encoders_that_do_not_fit_are_refused(earlier: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, earlier.vit, earlier.name, earlier.arguments)
    device = torch.device("cpu")
    coarse = SETTINGS.model_copy(update={"encoder": SETTINGS.encoder.model_copy(update={"patch_size": 16})})
    with pytest.raises(UserError, match=r"pretrain.previous: .* has patches of 8 pixels, and this run's encoder of 16"):
        AttentionPrior.load(path, coarse, device)
    deep = SETTINGS.model_copy(update={"prior": PriorSettings(block=4)})
    with pytest.raises(UserError, match=r"pretrain.prior.block: 4, but the earlier encoder has 3 blocks"):
        AttentionPrior.load(path, deep, device)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        AttentionPrior.load(path, SETTINGS, device)


def test_earlier_encoder_stays_as_it_is(earlier: Backbone) -> None:
    before = {name: value.clone() for name, value in earlier.state_dict().items()}
    prior = AttentionPrior(earlier, PriorSettings())
    views = FLSLViews(SETTINGS, depth=2)
    batch = views.batch(torch.zeros(1, 3, 48, 48, dtype=torch.uint8), views.draw(0, 0, 0)[None])
    maps = prior(views.crops(batch), batch.students)
    for attention in maps:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:2]))
    assert not any(parameter.requires_grad for parameter in earlier.parameters())
    assert F.mse_loss(earlier.vit.norm.weight, before["vit.norm.weight"]) == 0

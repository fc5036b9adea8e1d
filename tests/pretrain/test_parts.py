"""The small parts of the training step: clipping, moving average, weight decay, and the guards."""

from pathlib import Path

import pytest
import torch
from torch import nn

from flsl.config.pretrain import EncoderSettings, HeadSettings, PretrainSettings, ViewSettings
from flsl.data.views import StudentParameters
from flsl.model.mean_shift import mean_shift
from flsl.pretrain.guard import LossGuard, check_weights
from flsl.pretrain.network import FLSLNetwork
from flsl.pretrain.optimiser import MovingAverage, build_optimiser, clip_by_tensor, set_rates
from flsl.runtime.errors import UserError

SETTINGS = PretrainSettings(
    encoder=EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=2, heads=2),
    views=ViewSettings(teacher_size=32, global_size=32, local_size=16),
    head=HeadSettings(hidden=16, bottleneck=8, batch_norm=True),
    prototypes=8,
)


def test_gradients_are_clipped_tensor_by_tensor_as_dinos() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.rand(3, 4)), nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(2))]
    for parameter, size in zip(parameters, (10.0, 0.1), strict=False):
        parameter.grad = size * torch.rand_like(parameter)
    wanted = []
    for parameter in parameters[:2]:
        factor = 3.0 / (float(parameter.grad.norm(2)) + 1e-6)
        wanted.append(parameter.grad * factor if factor < 1 else parameter.grad.clone())
    clip_by_tensor(parameters, 3.0)
    for parameter, gradient in zip(parameters[:2], wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert parameters[2].grad is None


def test_teacher_starts_equal_and_follows_parameters_and_buffers() -> None:
    torch.manual_seed(0)
    student, teacher = FLSLNetwork(SETTINGS, 0.1), FLSLNetwork(SETTINGS, 0.0)
    average = MovingAverage(teacher, student)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    with torch.no_grad():
        for value in (*student.parameters(), *student.buffers()):
            value += 1
    average.update(0.9)
    buffers = {name for name, _ in teacher.named_buffers()}
    assert buffers
    for name, value in teacher.state_dict().items():
        moved = student.state_dict()[name] if name in buffers else 0.9 * before[name] + 0.1 * student.state_dict()[name]
        torch.testing.assert_close(value, moved)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_only_matrices_decay() -> None:
    network = FLSLNetwork(SETTINGS, 0.0)
    optimiser = build_optimiser(network)
    set_rates(optimiser, 0.5, 0.3)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert {group["lr"] for group in optimiser.param_groups} == {0.5}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name
        else:
            assert name == "encoder.pos_embed"
            assert id(parameter) not in decay


def group_of(views: int, batch: int, tokens: int, count: int) -> StudentParameters:
    queries = torch.stack([torch.randperm(tokens)[:count] for _ in range(views * batch)])
    return StudentParameters(torch.empty(0), None, queries, torch.rand(views * batch, 4))  # type: ignore[arg-type]


def test_targets_shift_each_query_over_its_own_images_teacher_tokens() -> None:
    torch.manual_seed(0)
    network = FLSLNetwork(SETTINGS, 0.0).eval()
    queries = [torch.randn(3, 4, 32), torch.randn(6, 1, 32)]
    keys = torch.randn(3, 16, 32)
    logits = network.targets(queries, keys, 0.4)
    rows = []
    for group in queries:
        for view, query in enumerate(group):
            rows.append(mean_shift(query[None], keys[view % 3][None], 0.4)[0])
    torch.testing.assert_close(logits, network.head(torch.cat(rows)))


def test_weights_that_are_not_finite_are_told() -> None:
    weights = [torch.ones(3), torch.ones(2, 2)]
    check_weights(weights, 5, None)
    weights[1][0, 1] = float("inf")
    with pytest.raises(UserError, match=r"the weights after step 5 are not finite; the last good checkpoint is x\.pth"):
        check_weights(weights, 5, Path("x.pth"))


def test_student_modes_are_of_the_same_view() -> None:
    torch.manual_seed(0)
    network = FLSLNetwork(SETTINGS, 0.0).eval()
    views = [torch.rand(2, 3, 32, 32), torch.rand(4, 3, 16, 16)]
    groups = [group_of(1, 2, 16, 4), group_of(2, 2, 4, 1)]
    output = network(views, groups, 0.3)
    z, modes = [], []
    for images, group in zip(views, groups, strict=True):
        for image, chosen in zip(images, group.queries, strict=True):
            tokens = network.encoder.forward_features(image[None])
            z.append(tokens[0, chosen])
            modes.append(mean_shift(tokens[:, chosen], tokens, 0.3)[0])
    torch.testing.assert_close(output.tokens, torch.cat(z), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.modes, torch.cat(modes), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.logits, network.head(output.modes))


def test_guard_names_the_first_bad_step_and_its_parts() -> None:
    guard = LossGuard(("loss", "inter_view"), torch.device("cpu"))
    for step, value in enumerate((1.0, 2.0, float("nan"), float("inf"))):
        guard.add(step, [torch.tensor(value), torch.tensor(3.0)])
        if step == 1:
            guard.check(None)
            assert guard.means() == {"loss": 1.5, "inter_view": 3.0}
    with pytest.raises(UserError, match=r"step 2 is not finite \(loss nan, inter_view 3\).*no checkpoint yet"):
        guard.check(None)

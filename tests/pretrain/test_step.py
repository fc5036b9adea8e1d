"""The training step against its literal form, and the ways to compute it against each other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from literal_step import LiteralStep, single_views
from live_bytes import LiveBytes

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import EncoderSettings, HeadSettings, PretrainSettings, ViewSettings
from flsl.data.views import Batch
from flsl.pretrain.schedules import StepValues, values_at
from flsl.pretrain.step import TrainingStep

CPU = torch.device("cpu")
SETTINGS = PretrainSettings(
    encoder=EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=32, depth=3, heads=2, drop_path=0.3),
    views=ViewSettings(teacher_size=32, global_size=32, local_size=16),
    head=HeadSettings(hidden=16, bottleneck=8),
    prototypes=12,
    batch_size=4,
    epochs=2,
    learning_rate=0.5,
    momentum=0.9,
    freeze_prototypes_epochs=0.5,
    clip=0.05,
    precision="float32",
)
STEPS_PER_EPOCH = 4


def with_equal_weights(one: TrainingStep, other: TrainingStep | LiteralStep) -> None:
    other.student.load_state_dict(one.student.state_dict())
    other.teacher.load_state_dict(one.teacher.state_dict())


def batch_of(step: TrainingStep, number: int) -> tuple[Batch, StepValues]:
    count = SETTINGS.batch_size
    numbers = np.stack([step.views.draw(0, number, index) for index in range(count)])
    crops = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return step.views.batch(crops, numbers), values_at(number, SETTINGS, STEPS_PER_EPOCH)


def test_whole_trainings_equal_the_literal_one() -> None:
    torch.manual_seed(0)
    ours = TrainingStep(SETTINGS, ComputeSettings(), CPU)
    literal = LiteralStep(SETTINGS, CPU)
    with_equal_weights(ours, literal)
    for number in range(2 * STEPS_PER_EPOCH):
        batch, values = batch_of(ours, number)
        teacher_view, students = ours.views(batch)
        loss = ours.accumulate(batch, values, number)
        ours.update(values)
        wanted = literal.step(teacher_view, single_views(students, batch.students, len(teacher_view)), values)
        assert float(loss) == pytest.approx(wanted, rel=2e-4)
    for network, other in ((ours.student, literal.student), (ours.teacher, literal.teacher)):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], atol=2e-4, rtol=2e-3)


def test_two_micro_batches_make_the_gradients_of_one_batch() -> None:
    # the loss is a mean over images without batch norm and without the volume, which is none
    plain = SETTINGS.model_copy(
        update={"volume_weight": 0.0, "head": SETTINGS.head.model_copy(update={"batch_norm": False})}
    )
    gradients = []
    for parts in (1, 2):
        torch.manual_seed(0)
        step = TrainingStep(plain.model_copy(update={"accumulate": parts}), ComputeSettings(), CPU)
        numbers = np.stack([step.views.draw(0, 0, index) for index in range(4)])
        crops = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        share = 4 // parts
        for part in range(parts):
            rows = slice(share * part, share * (part + 1))
            batch = step.views.batch(crops[rows], numbers[rows])
            step.accumulate(batch, values_at(0, plain, STEPS_PER_EPOCH), 0, last=part == parts - 1)
        gradients.append(torch.cat([p.grad.flatten() for p in step.student.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, atol=2e-6, rtol=1e-4)
    assert gradients[0].norm() > 1e-4


@pytest.mark.parametrize("precision", ["bf16", "bf16-residual"])
def test_bf16_loss_equals_the_literal_one_to_its_precision(precision: str) -> None:
    ours = TrainingStep(SETTINGS.model_copy(update={"precision": precision}), ComputeSettings(), CPU)
    literal = LiteralStep(SETTINGS, CPU)
    with_equal_weights(ours, literal)
    batch, values = batch_of(ours, 0)
    teacher_view, students = ours.views(batch)
    wanted = literal.step(teacher_view, single_views(students, batch.students, len(teacher_view)), values)
    assert float(ours.accumulate(batch, values, 0)) == pytest.approx(wanted, rel=2e-2)


def test_a_rounded_residual_stream_saves_memory_and_has_the_gradients_of_the_other() -> None:
    deep = SETTINGS.model_copy(update={"encoder": SETTINGS.encoder.model_copy(update={"depth": 8})})
    gradients, peaks = [], []
    for precision in ("float32", "bf16", "bf16-residual"):
        torch.manual_seed(0)
        step = TrainingStep(deep.model_copy(update={"precision": precision}), ComputeSettings(), CPU)
        batch, values = batch_of(step, 3)
        with LiveBytes() as live:
            step.accumulate(batch, values, 3)
        gradients.append(torch.cat([p.grad.flatten() for p in step.student.parameters() if p.grad is not None]))
        peaks.append(live.peak)
    exact, *rounded = gradients
    for found in rounded:
        assert torch.cosine_similarity(found, exact, dim=0) > 0.999
    assert not torch.equal(*rounded)
    assert peaks[2] < 0.95 * peaks[1]


@pytest.mark.parametrize("precision", ["float32", "bf16-residual"])
def test_recomputing_activations_changes_nothing_but_memory(precision: str) -> None:
    encoder = SETTINGS.encoder.model_copy(update={"depth": 8})
    deep = SETTINGS.model_copy(update={"encoder": encoder, "precision": precision})
    gradients, peaks = [], []
    for recomputed in (False, True):
        torch.manual_seed(0)
        step = TrainingStep(deep, ComputeSettings(activation_checkpointing=recomputed), CPU)
        batch, values = batch_of(step, 3)
        with LiveBytes() as live:
            loss = step.accumulate(batch, values, 3)
        gradients.append([loss, *(p.grad for p in step.student.parameters() if p.requires_grad)])
        peaks.append(live.peak)
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_in_a_step_waits_for_the_gpu(compiled: bool) -> None:
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    step = TrainingStep(settings, ComputeSettings(compile=compiled), torch.device("cuda"))
    for number in range(3):
        batch, values = batch_of(step, number)
        batch = batch.pin_memory()
        # the first steps make what is kept on the device, and compile
        torch.cuda.set_sync_debug_mode("error" if number == 2 else "default")
        try:
            step.accumulate(batch, values, number)
            step.update(values)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16-residual"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_steps_compiled_for_a_gpu_equal_the_plain_ones(mode: str, precision: str) -> None:
    settings = SETTINGS.model_copy(update={"accumulate": 2, "precision": precision})
    compute = ComputeSettings.model_validate({"compile": True, "compile_mode": mode})
    steps = [TrainingStep(settings, how, torch.device("cuda")) for how in (ComputeSettings(), compute)]
    with_equal_weights(*steps)
    for number in range(5):  # graphs warm up, are recorded, and replay
        batches = [batch_of(steps[0], 2 * number + micro)[0] for micro in range(2)]
        values = values_at(number, settings, STEPS_PER_EPOCH)
        for batch in batches:
            losses = [float(step.accumulate(batch, values, number)) for step in steps]
            assert losses[0] == pytest.approx(losses[1], rel=1e-3 if precision == "float32" else 1e-2)
        for step in steps:
            step.update(values)


@pytest.mark.parametrize(
    ("compute", "encoder", "precision"),
    [
        ({}, ["forward"] * 2 * 3, "float32"),
        ({}, ["forward"] * 2 * 3, "bf16-residual"),
        ({"compile_mode": "reduce-overhead"}, ["forward_features"] * 2, "float32"),
        ({"compile_mode": "reduce-overhead"}, ["forward_features"] * 2, "bf16-residual"),
        ({"activation_checkpointing": True}, ["forward"] * 2 * 3, "float32"),
        ({"compile_mode": "reduce-overhead", "activation_checkpointing": True}, ["forward"] * 2 * 3, "float32"),
    ],
)
def test_compiled_step_equals_the_plain_one(
    compute: dict[str, object], encoder: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_, compiled = torch.compile, []

    def compile_quickly(function: Callable[..., object], **options: object) -> Callable[..., object]:
        # the default backend takes minutes to make machine code; this one shows that everything can be compiled
        def called(*given: object) -> object:
            ran.add(function.__name__)
            return quick(*given)

        compiled.append(function.__name__)
        quick = compile_(function, backend="aot_eager")
        return called

    ran: set[str] = set()
    monkeypatch.setattr(torch, "compile", compile_quickly)
    chosen = ComputeSettings.model_validate({"compile": True, **compute})
    settings = SETTINGS.model_copy(update={"precision": precision})
    steps = [TrainingStep(settings, how, CPU) for how in (ComputeSettings(), chosen)]
    with_equal_weights(*steps)
    for number in range(2):
        batch, values = batch_of(steps[0], number)
        losses = [float(step.accumulate(batch, values, number)) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5 if precision == "float32" else 1e-3)
        for step in steps:
            step.update(values)
    assert [name for name in compiled if name.startswith("forward")] == encoder
    assert ran == {*compiled}

"""A training step: from a batch of crops to moved weights, with nothing in it that waits for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flsl.config.compute import ComputeSettings
from flsl.config.pretrain import PretrainSettings
from flsl.data.fused_views import FusedOperations
from flsl.data.views import Batch, FLSLViews
from flsl.model.mean_shift import absolute_temperature
from flsl.model.vit import compile_blocks, recompute_activations, round_residuals, use_plain_attention
from flsl.pretrain import assignments
from flsl.pretrain.guard import LossGuard, check_weights
from flsl.pretrain.health import Health
from flsl.pretrain.network import FLSLNetwork
from flsl.pretrain.objective import FLSLObjective
from flsl.pretrain.optimiser import MovingAverage, build_optimiser, clip_by_tensor, set_rates
from flsl.pretrain.previous import AttentionPrior
from flsl.pretrain.schedules import StepValues
from flsl.runtime.distributed import sum_over_ranks, world_size

LOSSES = ("loss", "intra_view", "inter_view", "volume")

# torch 2.14 renamed the argument
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
# the head's batch norm keeps its own statistics equal on all ranks
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class TrainingStep:
    """Student, teacher, losses and optimiser, and what happens to them in a step.

    Weights are drawn from the process's generator, so that ranks with equal seeds start from equal ones.

    Args:
        settings: the recipe.
        compute: how it is computed.
        device: where.
        previous: the encoder of an earlier run, where this one is a later stage of it.

    Attributes:
        student, teacher: the networks, which start equal.
        views: makes the views of a batch.
        health: what is watched.
        guard: sums of the losses.
        optimiser: of the student.
    """

    def __init__(
        self, settings: PretrainSettings, compute: ComputeSettings, device: torch.device, previous: Path | None = None
    ) -> None:
        self._settings, self._device = settings, device
        self.student = FLSLNetwork(settings, settings.encoder.drop_path).to(device).train()
        self.teacher = FLSLNetwork(settings, drop_path=0.0).to(device).train()
        if settings.precision == "bf16-residual":
            for network in (self.student, self.teacher):
                round_residuals(network.encoder)
        self._average = MovingAverage(self.teacher, self.student)
        self.optimiser = build_optimiser(self.student)
        self._trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.views = FLSLViews(settings, depth=len(self.student.encoder.blocks))
        self._fused = FusedOperations.compiled() if compute.compile else None
        blocks = assignments.Blocks.compiled() if compute.compile else assignments.PLAIN
        self._objective = FLSLObjective(
            settings.prototypes,
            inter_weight=settings.inter_weight,
            volume_weight=settings.volume_weight,
            student_temperature=settings.student_temperature,
            center_momentum=settings.center_momentum if settings.centering else None,
            blocks=blocks,
        ).to(device)
        grid = settings.views.global_size // settings.encoder.patch_size
        self.health = Health(settings.prototypes, grid * grid, blocks).to(device)
        self.guard = LossGuard(LOSSES, device)
        self._prior = AttentionPrior.load(previous, settings, device) if previous is not None else None
        self._parts: dict[str, nn.Module] = {
            "student": self.student,
            "teacher": self.teacher,
            "objective": self._objective,
        }
        self._choose_how(compute)
        self._model: nn.Module = self.student
        if world_size() > 1:
            self._model = DistributedDataParallel(self.student, gradient_as_bucket_view=True, **_OWN_BUFFERS)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision != "float32")

    def _choose_how(self, compute: ComputeSettings) -> None:
        """Change how the networks are computed, but not what."""
        if self._device.type == "cpu" and self._settings.precision != "float32":
            use_plain_attention(self.student.encoder)
        # what is recomputed must be compiled block by block
        whole = compute.compile and not compute.activation_checkpointing
        self._graphs = whole and compute.compile_mode == "reduce-overhead"
        may_fuse = whole and not self._graphs and self._settings.precision != "float32"
        stream = torch.bfloat16 if self._settings.precision == "bf16-residual" else torch.float32
        for network in (self.student, self.teacher):
            if self._graphs:
                network.replay_encoder()
            elif compute.compile and not (may_fuse and network.fuse_encoder(stream)):
                compile_blocks(network.encoder)
        self._begin_step()
        if compute.activation_checkpointing:
            recompute_activations(self.student.encoder)

    def accumulate(self, batch: Batch, values: StepValues, number: int, last: bool = True) -> Tensor:
        """Add the gradients of a micro-batch; return its loss, a scalar on the device.

        Args:
            batch: on any device.
            values: of this step.
            number: of this step.
            last: whether this is the step's last micro-batch, after which ranks share their gradients.
        """
        if self._device.type == "cuda" and batch.crops.device.type == "cpu":
            batch = batch.pin_memory()
        batch = batch.to(self._device)
        width = self.student.encoder.embed_dim
        tau_sa, tau_ca = (absolute_temperature(tau, width) for tau in (values.tau_sa, values.tau_ca))
        teacher_view, student_views = self.views(batch, self._fused)
        unsynchronised = isinstance(self._model, DistributedDataParallel) and not last
        with self._model.no_sync() if unsynchronised else contextlib.nullcontext():  # type: ignore[operator]
            with self._autocast:
                with torch.no_grad():
                    (keys,) = self.teacher.encode([teacher_view], None)
                    priors = None
                    if self._prior is not None:
                        priors = self._prior(self.views.crops(batch), batch.students)
                output = self._model(student_views, batch.students, tau_sa)
                teacher_logits = self.teacher.targets(output.queries, keys, tau_ca, priors, values.attention_share)
            # the one that these targets have: it moves on with them
            center = self._objective.center.clone() if self._settings.centering else None
            loss, losses = self._objective(
                output.tokens,
                output.modes,
                output.logits,
                teacher_logits,
                values.teacher_temperature,
                values.intra_weight,
            )
            (loss / self._settings.accumulate).backward()
        self.guard.add(number, [loss, *(losses[name] for name in LOSSES[1:])])
        self.health.update(
            output.tokens,
            output.logits.detach(),
            teacher_logits,
            values.teacher_temperature,
            batch.students[0].queries,
            center,
        )
        found: Tensor = loss.detach()
        return found

    def update(self, values: StepValues) -> None:
        """Move the student by its gradients, and the teacher after it."""
        if values.prototypes_frozen:
            self.student.head.prototypes.grad = None
        clip_by_tensor(self._trained, self._settings.clip)
        set_rates(self.optimiser, values.learning_rate, values.weight_decay)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._average.update(values.momentum)
        self._begin_step()

    def check_weights(self, done: int, checkpoint: Path | None) -> None:
        """Stop a training whose weights after ``done`` steps are not finite, see the guard's function."""
        check_weights(self._trained, done, checkpoint)

    def watched(self) -> dict[str, Tensor]:
        """Return the sums of what is watched, over all ranks, which all ask for them."""
        return {name: sum_over_ranks(values) for name, values in self._watched().items()}

    def _watched(self) -> dict[str, Tensor]:
        return {"losses": self.guard.sums, **dict(self.health.named_buffers())}

    def state(self, watched: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return all that the next step depends on; ``watched`` is kept with it."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        return {**parts, "optimiser": self.optimiser.state_dict(), "watched": dict(watched)}

    def kept(self) -> dict[str, Any]:
        """Return what is looked at of an epoch afterwards: the teacher, and the centre of its assignments."""
        return {name: self._parts[name].state_dict() for name in ("teacher", "objective")}

    def load_state(self, state: Mapping[str, Any], first: bool) -> None:
        """Go on from what :meth:`state` returned; the ``first`` rank alone takes over what all have watched."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])
        if first:
            for name, values in self._watched().items():
                values.copy_(state["watched"][name])

    def _begin_step(self) -> None:
        """Let CUDA graphs overwrite from here on what they gave before."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

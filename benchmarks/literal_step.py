"""FLSL's training step as one would first write it down: the baseline of speed, and the reference of the losses.

Views one by one, attention matrices multiplied out, plain losses, a loop over the parameters for clipping, AdamW and
the moving average, and the loss fetched in every step. Only the modules (encoder, head) are the package's, so that
weights can be equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flsl.config.pretrain import PretrainSettings
from flsl.data.views import StudentParameters
from flsl.model.vit import set_drop_path
from flsl.pretrain.network import FLSLNetwork
from flsl.pretrain.schedules import StepValues


@dataclass(frozen=True)
class View:
    """One student view of a batch.

    Attributes:
        images: (batch, 3, S, S).
        queries: (batch, M) sampled tokens.
        drop_path: (batch, 2 × depth) numbers for stochastic depth.
    """

    images: Tensor
    queries: Tensor
    drop_path: Tensor


def single_views(groups: list[Tensor], parameters: list[StudentParameters], batch: int) -> list[View]:
    """Cut groups of views (views × batch, …) into views."""
    return [
        View(*parts)
        for images, group in zip(groups, parameters, strict=True)
        for parts in zip(images.split(batch), group.queries.split(batch), group.drop_path.split(batch), strict=True)
    ]


class LiteralStep:
    """A training step.

    Args:
        settings: the recipe; no batch norm in the head, no centring.
        device: where to compute.
        half: whether to use float16 with a scaled loss instead of float32.
        fused_attention: whether the encoder's blocks use the fused kernel.
    """

    def __init__(
        self, settings: PretrainSettings, device: torch.device, half: bool = False, fused_attention: bool = False
    ) -> None:
        self.settings, self.device, self.half = settings, device, half
        self.student = FLSLNetwork(settings, settings.encoder.drop_path).to(device).train()
        self.teacher = FLSLNetwork(settings, 0.0).to(device).train()
        self.teacher.load_state_dict(self.student.state_dict())
        for network in (self.student, self.teacher):
            for block in network.encoder.blocks:
                block.attn.fused_attn = fused_attention
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        trained = [p for p in self.student.parameters() if p.requires_grad]
        groups = [{"params": [p for p in trained if p.ndim > 1]}, {"params": [p for p in trained if p.ndim <= 1]}]
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, foreach=False, fused=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)

    def mean_shift(self, queries: Tensor, keys: Tensor, relative: float) -> Tensor:
        tau = relative * math.sqrt(384) / keys.shape[-1]
        with torch.autocast(self.device.type, enabled=False):
            queries, keys = queries.float(), keys.float()
            attention = torch.softmax(tau * queries @ keys.transpose(1, 2), dim=-1)
            return attention @ keys

    def loss(self, teacher_view: Tensor, views: list[View], values: StepValues) -> Tensor:
        settings = self.settings
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            with torch.no_grad():
                keys = self.teacher.encoder.forward_features(teacher_view)
            tokens, modes, student_logits, teacher_logits = [], [], [], []
            for view in views:
                set_drop_path(self.student.encoder, view.drop_path)
                found = self.student.encoder.forward_features(view.images)
                z = torch.stack([rows[chosen] for rows, chosen in zip(found, view.queries, strict=True)])
                z_hat = self.mean_shift(z, found, values.tau_sa)
                tokens.append(z.flatten(0, 1))
                modes.append(z_hat.flatten(0, 1))
                student_logits.append(self.student.head(z_hat.flatten(0, 1)))
                with torch.no_grad():
                    z_plus = self.mean_shift(z, keys, values.tau_ca)
                    teacher_logits.append(self.teacher.head(z_plus.flatten(0, 1)))
        z, z_hat = torch.cat(tokens).float(), torch.cat(modes).float()
        s = torch.softmax(torch.cat(student_logits).float() / settings.student_temperature, dim=-1)
        t = torch.softmax(torch.cat(teacher_logits).float() / values.teacher_temperature, dim=-1)
        intra = (2 - 2 * F.cosine_similarity(z, z_hat, dim=-1)).mean()
        inter = -(t * torch.log(s)).sum(-1).mean()
        mean = s.mean(0)
        volume = (mean * torch.log(mean)).sum() + math.log(settings.prototypes)
        return values.intra_weight * intra + settings.inter_weight * inter + settings.volume_weight * volume

    def step(self, teacher_view: Tensor, views: list[View], values: StepValues) -> float:
        """Move student and teacher; return the loss."""
        loss = self.loss(teacher_view, views, values)
        if not math.isfinite(loss.item()):
            raise ValueError("the loss is not finite")
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        if values.prototypes_frozen:
            self.student.head.prototypes.grad = None
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                factor = self.settings.clip / (parameter.grad.norm(2) + 1e-6)
                if factor < 1:
                    parameter.grad.mul_(factor)
        for group, decay in zip(self.optimiser.param_groups, (values.weight_decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = values.learning_rate, decay
        self.scaler.step(self.optimiser)
        self.scaler.update()
        with torch.no_grad():
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.mul_(values.momentum).add_((1 - values.momentum) * ours.detach())
        return loss.item()

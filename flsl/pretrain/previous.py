"""Multi-stage pretraining: an earlier run's frozen encoder as a prior of the cross-attention."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flsl.config.pretrain import PretrainSettings, PriorSettings
from flsl.data.views import StudentParameters
from flsl.model.backbone import Backbone, load_backbone
from flsl.model.mean_shift import absolute_temperature, sharp_attention_map
from flsl.runtime.errors import UserError


class AttentionPrior:
    """Where the sampled queries of a step lie in the teacher's view, as the earlier encoder sees it.

    It looks at the crops without their changes of colour: normalise(σ(sharpness · (softmax(τ z′ K′ᵀ) - row mean))).

    Args:
        backbone: the earlier encoder.
        settings: where it is cut, and how its attention is sharpened.
    """

    def __init__(self, backbone: Backbone, settings: PriorSettings) -> None:
        self._backbone = backbone.eval().requires_grad_(False)
        self._block, self._sharpness = settings.block, settings.sharpness
        self._tau = absolute_temperature(settings.tau, backbone.width)
        if settings.block is not None:
            if settings.block > backbone.depth:
                raise UserError(
                    f"pretrain.prior.block: {settings.block}, but the earlier encoder has {backbone.depth} blocks"
                )
            backbone.vit.blocks = backbone.vit.blocks[: settings.block]
        mean_and_std = torch.tensor([backbone.mean, backbone.std], device=next(backbone.parameters()).device)
        self._mean, self._std = mean_and_std[..., None, None]

    @classmethod
    def load(cls, path: Path, settings: PretrainSettings, device: torch.device) -> AttentionPrior:
        """Read the earlier encoder.

        Raises:
            UserError: when it cannot be read, has patches of another size, or fewer blocks than it is to be cut after.
        """
        backbone = load_backbone(path).to(device)
        if backbone.patch_size != settings.encoder.patch_size:
            raise UserError(
                f"pretrain.previous: {path} has patches of {backbone.patch_size} pixels, and this run's encoder of "
                f"{settings.encoder.patch_size} (pretrain.encoder.patch_size); they must be equal"
            )
        return cls(backbone, settings.prior)

    @torch.no_grad()
    def __call__(self, crops: tuple[Tensor, list[Tensor]], parameters: list[StudentParameters]) -> list[Tensor]:
        """Return the attention (views × batch, M, N) of each group of student views, view by view; rows sum to 1.

        Args:
            crops: the teacher's views and the groups of student views, from :meth:`flsl.data.views.FLSLViews.crops`.
            parameters: of each group; the queries are read.
        """
        teacher, students = crops
        keys = self._tokens(teacher)
        maps = []
        for images, group in zip(students, parameters, strict=True):
            tokens = self._tokens(images)
            queries = tokens.gather(1, group.queries[..., None].expand(-1, -1, tokens.shape[-1]))
            shared = keys.repeat(len(images) // len(teacher), 1, 1)
            maps.append(sharp_attention_map(queries, shared, self._tau, self._sharpness))
        return maps

    def _tokens(self, images: Tensor) -> Tensor:
        normalised = (images - self._mean) / self._std
        if self._block is None:
            return self._backbone.tokens(normalised)
        vit = self._backbone.vit
        tokens: Tensor = vit.forward_intermediates(
            normalised, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
        )[0]
        return tokens

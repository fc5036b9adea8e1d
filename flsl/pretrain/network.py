"""Encoder and head as one module, and the student's and the teacher's part of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flsl.config.pretrain import PretrainSettings
from flsl.data.views import StudentParameters
from flsl.model.fused_vit import FusedEncoder, can_fuse
from flsl.model.head import ProjectionHead
from flsl.model.mean_shift import mean_shift
from flsl.model.vit import build_encoder, set_drop_path


class StudentOutput(NamedTuple):
    """What the student makes of its views.

    Attributes:
        queries: of each group of views, the sampled tokens (views × batch, M, C).
        tokens: all of them, (tokens, C).
        modes: their modes within their own view, (tokens, C).
        logits: the modes' similarities to the prototypes, (tokens, K).
    """

    queries: list[Tensor]
    tokens: Tensor
    modes: Tensor
    logits: Tensor


class FLSLNetwork(nn.Module):
    """A ViT and its projection head; the student and the teacher are one each.

    Args:
        settings: of the pretraining.
        drop_path: stochastic depth (the student's setting; 0 in the teacher).

    Attributes:
        encoder: the ViT.
        head: what follows it.
        encode: gives the encoder's tokens (views × batch, N, C) in training, however they are computed, of each group
            of views (views × batch, 3, S, S), with its numbers for stochastic depth (None: no branch is dropped).
    """

    def __init__(self, settings: PretrainSettings, drop_path: float) -> None:
        super().__init__()
        self.encoder = build_encoder(settings.encoder, settings.views.teacher_size, drop_path)
        self.head = ProjectionHead.from_settings(self.encoder.embed_dim, settings.prototypes, settings.head)
        self.encode: Callable[[list[Tensor], list[Tensor] | None], list[Tensor]] = self._encode_each
        self._features: Callable[[Tensor], Tensor] = self.encoder.forward_features

    def fuse_encoder(self, stream: torch.dtype) -> bool:
        """Compute the encoder in training by fused kernels where they fit it; return whether they do.

        Args:
            stream: type of the residual stream.
        """
        if fits := can_fuse(self.encoder):
            self.encode = FusedEncoder(self.encoder, stream)
        return fits

    def replay_encoder(self) -> None:
        """Compile the encoder as a whole and replay it in training as CUDA graphs, one for each size of views.

        So a small batch does not wait for the launches of thousands of kernels; but the gradients are there all at
        once, so that ranks cannot send some of them while others are computed.
        """
        self._features = torch.compile(self.encoder.forward_features, dynamic=False, mode="reduce-overhead")

    def _encode_each(self, views: list[Tensor], uniforms: list[Tensor] | None) -> list[Tensor]:
        tokens = []
        for number, images in enumerate(views):
            if uniforms is not None:
                set_drop_path(self.encoder, uniforms[number])
            tokens.append(self._features(images))
        return tokens

    def forward(self, views: list[Tensor], parameters: list[StudentParameters], tau_sa: float) -> StudentOutput:
        """Run the student: encode the views, sample queries, shift them to their modes, project.

        Args:
            views: a tensor (views × batch, 3, S, S) for each size.
            parameters: of each, the query indices and the numbers for stochastic depth.
            tau_sa: τ of self-attention, absolute.
        """
        queries, modes = [], []
        encoded = self.encode(views, [group.drop_path for group in parameters])
        for tokens, group in zip(encoded, parameters, strict=True):
            sampled = tokens.gather(1, group.queries[..., None].expand(-1, -1, tokens.shape[-1]))
            queries.append(sampled)
            modes.append(mean_shift(sampled, tokens, tau_sa))
        flat_modes = torch.cat([mode.flatten(0, 1) for mode in modes])
        flat_tokens = torch.cat([query.flatten(0, 1) for query in queries])
        return StudentOutput(queries, flat_tokens, flat_modes, self.head(flat_modes))

    @torch.no_grad()
    def targets(
        self,
        queries: list[Tensor],
        teacher_tokens: Tensor,
        tau_ca: float,
        priors: list[Tensor] | None = None,
        share: float = 1.0,
    ) -> Tensor:
        """Run the teacher's half: shift the student's queries to their modes in the teacher's view, project.

        Args:
            queries: of each group, (views × batch, M, C), view by view.
            teacher_tokens: (batch, N, C), the keys.
            tau_ca: τ of cross-attention, absolute.
            priors: of each group, an earlier encoder's attention (views × batch, M, N), or None.
            share: of the attention that is this network's own, where there are priors.

        Returns:
            The similarities to the prototypes, (tokens, K), in the order of :attr:`StudentOutput.tokens`.
        """
        batch, _, width = teacher_tokens.shape
        modes = []
        for number, group in enumerate(queries):
            views, count = len(group) // batch, group.shape[1]
            prior = None if priors is None else _by_image(priors[number], batch)
            found = mean_shift(_by_image(group.detach(), batch), teacher_tokens, tau_ca, prior, share)
            modes.append(found.reshape(batch, views, count, width).transpose(0, 1).reshape(-1, width))
        logits: Tensor = self.head(torch.cat(modes))
        return logits


def _by_image(group: Tensor, batch: int) -> Tensor:
    """Turn rows of views (views × batch, M, D), view by view, into rows of images (batch, views × M, D).

    All views of an image share its keys, so that they are one row of queries: no copy of the keys a view.
    """
    _, count, width = group.shape
    return group.reshape(-1, batch, count, width).transpose(0, 1).reshape(batch, -1, width)

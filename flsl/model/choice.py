"""Which encoder the command line names for a stage, and how it is loaded; to name one needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flsl.config.experiment import Experiment
from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import sha256_file, sha256_json

if TYPE_CHECKING:
    from flsl.model.backbone import Backbone


@dataclass(frozen=True)
class EncoderChoice:
    """What the command line says about the encoder.

    Attributes:
        backbone: our ``backbone.safetensors``, or another checkpoint whose shapes tell what it is.
        model: a timm model name.
        checkpoint: weights for ``model``; without, timm's own are fetched.
        random: leave ``model``, or with none the experiment's encoder, untrained.
    """

    backbone: Path | None = None
    model: str | None = None
    checkpoint: Path | None = None
    random: bool = False

    @property
    def given(self) -> bool:
        """Whether an encoder is named at all."""
        return self.random or any(part is not None for part in (self.backbone, self.model, self.checkpoint))

    @property
    def file(self) -> Path | None:
        """The file that the weights come from, if they do."""
        return self.backbone or self.checkpoint

    @property
    def inputs(self) -> list[Path]:
        """The files to be hashed into a record."""
        return [self.file] if self.file is not None else []

    @property
    def name(self) -> str:
        """A name for the record of an encoder that is no run of the experiment."""
        if self.random:
            return "untrained" if self.model is None else f"{self.model}-untrained"
        return self.model or "base"

    def digest(self, experiment: Experiment) -> str:
        """Return a text that differs where the weights do; the experiment's seed is left to whom it concerns.

        Raises:
            UserError: when the choice names no encoder, contradicts itself or names a file that is not there.
        """
        self._check()
        if self.random and self.model is None:
            made = sha256_json([experiment.pretrain.encoder.plain(), experiment.pretrain.views.teacher_size])
        else:
            made = sha256_file(self.file) if self.file is not None else ""
        return f"{self.model}:{self.random}:{made}"

    def load(self, experiment: Experiment) -> Backbone:
        """Load or make the encoder, on the CPU.

        Raises:
            UserError: when the choice names none or contradicts itself, or the encoder cannot be loaded.
        """
        from flsl.model.backbone import load_backbone

        self._check()
        return self._random(experiment) if self.random else load_backbone(self.file, self.model)

    def _check(self) -> None:
        if not self.given:
            raise UserError("--backbone: name the encoder: --backbone FILE, --model NAME or --random-init")
        if self.random and self.file is not None:
            raise UserError(f"--random-init: an untrained encoder has no weights to load from {self.file}; drop one")
        if self.backbone is not None and self.checkpoint is not None:
            raise UserError("--backbone: give either --backbone or --checkpoint; both name a file of weights")
        if self.file is not None:
            require_file(self.file, "an encoder's weights")

    def _random(self, experiment: Experiment) -> Backbone:
        import torch

        from flsl.model.backbone import Backbone, load_backbone
        from flsl.model.vit import build_encoder, timm_arguments

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.seed)
            if self.model is not None:
                return load_backbone(None, self.model, pretrained=False)
            settings, size = experiment.pretrain.encoder, experiment.pretrain.views.teacher_size
            return Backbone(build_encoder(settings, size), *timm_arguments(settings, size))

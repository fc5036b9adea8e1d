"""The encoder that a detector starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from flsl.config.experiment import Experiment
from flsl.model.backbone import Backbone, load_backbone
from flsl.model.vit import build_encoder, timm_arguments
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import sha256_file


@dataclass(frozen=True)
class EncoderChoice:
    """What the command line says about the encoder.

    Attributes:
        file: weights: our ``backbone.safetensors`` or any checkpoint that :func:`flsl.model.backbone.load_backbone`
            reads.
        model: timm model; with no ``file``, its own weights are fetched.
        random: leave ``model``, or with none the experiment's encoder, untrained.
    """

    file: Path | None = None
    model: str | None = None
    random: bool = False

    @property
    def inputs(self) -> list[Path]:
        """The files to be hashed into a record."""
        return [self.file] if self.file is not None else []

    @property
    def digest(self) -> str:
        """A text that differs where the weights do."""
        return f"{self.model}:{self.random}:{sha256_file(self.file) if self.file is not None else ''}"

    def load(self, experiment: Experiment) -> Backbone:
        """Load or make the encoder.

        Raises:
            UserError: when the choice names none or contradicts itself, or the encoder cannot be loaded.
        """
        if self.random and self.file is not None:
            raise UserError(f"--random-init: an untrained encoder has no weights to load from {self.file}; drop one")
        if not self.random:
            if self.file is None and self.model is None:
                raise UserError("--backbone: name the encoder: --backbone FILE, --model NAME or --random-init")
            return load_backbone(self.file, self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.seed)
            if self.model is not None:
                return load_backbone(None, self.model, pretrained=False)
            settings, size = experiment.pretrain.encoder, experiment.pretrain.views.teacher_size
            return Backbone(build_encoder(settings, size), *timm_arguments(settings, size))

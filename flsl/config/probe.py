"""Settings of the frozen-feature probes: the protocols of DINO, DINOv2 and the FLSL paper (arXiv 2306.06203)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flsl.config.base import Count, NonNegative, Positive, Settings


class FeatureSettings(Settings):
    """How images are turned into frozen features, once a run for all probes."""

    resize: Count = Field(256, description="Short side that images are resized to (bicubic), in pixels.")
    crop: Count = Field(224, description="Side of the centre crop, in pixels.")
    blocks: Count = Field(
        1, description="Last blocks whose mean patch tokens are stored; k-NN reads the last block's only."
    )
    batch_size: Count = Field(256, description="Images a batch.")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="Autocast of the encoder; `auto` is bf16 on CUDA and float32 on the CPU."
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> FeatureSettings:
        if self.crop > self.resize:
            raise ValueError(f"crop: {self.crop} is larger than the short side after resize ({self.resize})")
        return self


class KnnSettings(Settings):
    """k-NN classification as DINO's."""

    k: Annotated[list[Count], Field(min_length=1)] = Field(
        [10, 20, 100, 200], description="Numbers of neighbours; each gives top-1 and top-5."
    )
    temperature: Positive = Field(0.07, description="Temperature of the vote weights exp(cos / temperature).")
    memory_mb: int = Field(1024, ge=16, description="Memory for the search's chunks, in MiB.")


class LinearSettings(Settings):
    """Linear classification: a grid of probes trained at once on frozen features."""

    learning_rates: Annotated[list[Positive], Field(min_length=1)] = Field(
        [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1],
        description="Learning rates of the grid at batch 256; each scales with batch_size / 256.",
    )
    blocks: Annotated[list[Count], Field(min_length=1)] = Field(
        [1, 4], description="Feature choices of the grid: mean patch tokens of the last n blocks, concatenated."
    )
    epochs: Count = Field(100, description="Epochs of SGD (momentum 0.9, cosine to 0).")
    batch_size: Count = Field(1024, description="Images per step.")
    flip: bool = Field(True, description="Train on random horizontal flips.")
    crop_scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(
        [0.08, 1.0], description="Area range of the training crops, as a share of the image."
    )
    weight_decay: NonNegative = Field(0.0, description="Weight decay of the probes; the protocol has none.")

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> LinearSettings:
        low, high = self.crop_scale
        if not low <= high <= 1:
            raise ValueError(f"crop_scale: a rising range within (0, 1] is needed, not [{low:g}, {high:g}]")
        return self

    @model_validator(mode="after")
    def _choices_differ(self) -> LinearSettings:
        for name in ("learning_rates", "blocks"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {values} names a value twice; each makes probes of its own")
        return self


class AlignedKnnSettings(Settings):
    """bbox-aligned k-NN: nine patches of each image's largest box are classified by their neighbours."""

    k: Annotated[list[Count], Field(min_length=1)] = Field([20], description="Numbers of neighbours.")
    temperature: Positive = Field(0.07, description="Temperature of the vote weights exp(cos / temperature).")
    memory_mb: int = Field(1024, ge=16, description="Memory for the search's chunks, in MiB.")

"""Settings of video object segmentation by label propagation (DINO's protocol on DAVIS 2017)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from flsl.config.base import Count, Positive, Settings, Slug


class DavisSettings(Settings):
    """DINO's protocol on DAVIS 2017; the defaults are the published ones."""

    split: Slug = Field("val", description="List of sequences `ImageSets/<year>/<split>.txt`, e.g. `val`, `test-dev`.")
    context_frames: int = Field(7, ge=0, description="Previous frames that labels come from, besides the first frame.")
    radius: Count = Field(12, description="Half side of the square neighbourhood that keys are taken from, in tokens.")
    top_k: Count = Field(5, description="Best keys kept a query, over the whole context.")
    temperature: Positive = Field(0.1, description="Temperature of the affinity exp(cos / temperature).")
    size: Count = Field(480, description="Short side that frames are resized to, in pixels.")
    multiple: Count = Field(
        64,
        description="The long side is rounded down to a multiple of this, in pixels; of the patch size alone where "
        "that does not divide it.",
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="Autocast of the encoder; `auto` is bf16 on CUDA and float32 on the CPU."
    )
    batch_size: Count = Field(4, description="Frames that the encoder takes at once.")
    sequences_per_job: Count = Field(1, description="Sequences that one job of the workflow propagates.")

    def protocol(self) -> dict[str, Any]:
        """Return the settings that masks depend on: all but those that choose sequences or only change speed."""
        return self.model_dump(mode="json", exclude={"split", "batch_size", "sequences_per_job"})

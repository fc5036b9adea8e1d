"""Settings of video object segmentation by label propagation (METHOD, section 3: DAVIS 2017)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flsl.config.base import Count, Positive, Settings


class DavisSettings(Settings):
    """DINO's protocol on DAVIS 2017; the defaults are the published ones."""

    split: Literal["train", "val", "test-dev"] = Field("val", description="List of sequences below `ImageSets/<year>`.")
    year: Literal["2016", "2017"] = Field("2017", description="Folder below `ImageSets`.")
    context_frames: int = Field(7, ge=0, description="Previous frames that labels come from, besides the first frame.")
    radius: Count = Field(12, description="Half side of the square neighbourhood that keys are taken from, in tokens.")
    top_k: Count = Field(5, description="Best keys kept a query, over the whole context.")
    temperature: Positive = Field(0.1, description="Temperature of the affinity exp(cos / temperature).")
    size: Count = Field(480, description="Short side that frames are resized to, in pixels.")

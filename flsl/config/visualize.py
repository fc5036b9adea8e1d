"""Settings of the pictures of what an encoder has learnt."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flsl.config.base import Count, Settings


class VisualizeSettings(Settings):
    """Pictures of attention, features and prototypes (`flsl visualize`)."""

    split: Literal["train", "val"] = Field("val", description="Split of the data set that images are taken from.")
    images: Count = Field(6, description="Images that are shown, evenly spaced over the split.")
    size: Count | None = Field(
        None,
        description="Side of the central square that is looked at, in pixels, a multiple of the patch size; "
        "null: the teacher's view, as the first checkpoint tells it.",
    )
    queries: int = Field(2, ge=1, le=5, description="Queries per image whose attention is shown.")
    counted: Count = Field(1000, description="Images over which the use of prototypes is counted, evenly spaced.")
    prototypes: Count = Field(12, description="Most used prototypes whose nearest patches are shown.")
    patches: Count = Field(10, description="Nearest patches of each, no two of one image.")
    batch_size: Count = Field(32, description="Images that the encoder takes at once.")

"""Whether a batch can be taken from a data set and shared by ranks; known without torch, before a job is submitted."""

from __future__ import annotations

from flsl.runtime.errors import UserError


def check_batch(batch_size: int, accumulate: int, ranks: int, images: int, setting: str) -> None:
    """Refuse a batch that is larger than the data set or cannot be shared equally.

    Args:
        batch_size: images per step, over all ranks and micro-batches.
        accumulate: micro-batches per step.
        ranks: processes that train together.
        images: of the data set.
        setting: the batch size's dotted name, for the message.

    Raises:
        UserError: naming the setting, and what would fit.
    """
    shares = accumulate * ranks
    if batch_size % shares:
        raise UserError(
            f"{setting}: {batch_size} images cannot be shared by {ranks} ranks x {accumulate} micro-batches; "
            f"take a multiple of {shares}"
        )
    if batch_size > images:
        raise UserError(f"{setting}: {batch_size} is more than the {images} training images; take at most {images}")

"""All that a pretraining's weights depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flsl.config.pretrain import PretrainSettings
from flsl.runtime.errors import UserError, require_file
from flsl.runtime.outputs import sha256_file

_WATCHING = ("online_knn_every", "online_knn_images")


def recipe_of(settings: PretrainSettings, seed: int, data: str, previous: Path | None = None) -> dict[str, Any]:
    """Return the settings, the seed and what was read, as plain data: equal recipes make equal weights.

    Args:
        settings: of the pretraining.
        seed: of weights, order and views.
        data: digest of the training images' content.
        previous: the earlier encoder's file; its content counts, not the name of its run.
    """
    plain = settings.plain()
    for name in _WATCHING:
        del plain[name]
    names = {name: plain.pop(name) for name in ("previous", "prior")}
    if previous is not None:
        plain |= {"previous": sha256_file(previous), "prior": names["prior"]}
    return {"pretrain": plain, "seed": seed, "data": data}


def check_previous(settings: PretrainSettings, previous: Path | None) -> None:
    """Refuse a later stage without the earlier encoder's file.

    Raises:
        UserError: naming the setting or the file.
    """
    if previous is not None:
        require_file(previous, "the earlier run's encoder")
    elif settings.previous is not None:
        raise UserError(f"pretrain.previous: is '{settings.previous}'; name that run's encoder with --previous FILE")

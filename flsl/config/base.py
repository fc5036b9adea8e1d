"""What all settings have in common: frozen, strictly typed, unknown keys refused with the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def expanded(path: str) -> str:
    """Expand ``~`` as a shell does; what is written in another way stays, as it would be another setting, and rerun."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"'{path}' begins with the home folder of no user; write the folder out") from None


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""A name that is safe as a folder, a SLURM job name and an MLflow tag."""
Place = Annotated[str, Field(min_length=1), AfterValidator(expanded)]
"""A path of the machine; ``~`` is the home folder."""
Stage = Literal["knn", "linear", "aligned_knn", "coco", "uavdt", "davis", "visualize"]
"""An evaluation."""


class Settings(BaseModel):
    """Base of every settings model.

    Each field's ``description`` is its line in ``config/README.md``; its constraints are its range there and in the
    workflow's JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain JSON data: what is hashed, stored and passed between processes."""
        return self.model_dump(mode="json")

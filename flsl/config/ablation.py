"""Settings of an ablation: which points it has, and what is measured at them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, model_validator

from flsl.config.base import Settings, Slug, Stage

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class AblationSettings(Settings):
    """A named comparison of runs: a `grid` or `points`, each with every seed, evaluated by `stages`."""

    caption: str = Field("", description="A sentence for the table and the figure: what is varied and why.")
    grid: dict[str, list[Any]] = Field(
        {},
        description="Axes: values by the setting's dotted name, e.g. `{pretrain.prototypes: [1024, 4096]}`; "
        "the points are all combinations.",
    )
    points: list[dict[str, Any]] | dict[Slug, dict[str, Any]] = Field(
        [],
        description="Instead of `grid`, the points themselves, each the settings it changes by dotted name; "
        "a mapping gives them names for tables and figures. `{}` is the base; a point may set its own `seed`.",
    )
    seeds: list[Seed] = Field([], description="Seeds that every point is run with; empty: the experiment's seed.")
    shared: dict[str, Any] = Field(
        {}, description="Settings that all points change, by dotted name, e.g. `{pretrain.epochs: 100}`."
    )
    stages: Annotated[list[Stage], Field(min_length=1)] | None = Field(
        None, description="Evaluations of every point; null: the experiment's `stages`."
    )
    categorical: bool = Field(
        False, description="Draw bars also where the values are numbers; values that are none have bars anyway."
    )

    @model_validator(mode="after")
    def _complete(self) -> AblationSettings:
        if self.grid and self.points:
            raise ValueError("points: give either a grid or points; points can say whatever a grid says")
        if not (self.grid or self.points or self.seeds):
            raise ValueError("grid: the ablation has no points; give it a grid, points or seeds")
        for name, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{name}: the axis is empty; give it values, e.g. [1, 2]")
            if (twice := _first_twice(json.dumps(value, sort_keys=True) for value in values)) is not None:
                raise ValueError(f"grid.{name}: the value {twice} stands there twice; name each once")
        if (twice := _first_twice(str(seed) for seed in self.seeds)) is not None:
            raise ValueError(f"seeds: the seed {twice} stands there twice; name each once")
        for where, changes in self._all_changes():
            if self.seeds and "seed" in changes:
                raise ValueError(f"{where}.seed: give seeds either in `seeds` or here, not in both")
            both = next((name for name in changes if name in self.shared), None)
            if both is not None and where != "shared":
                raise ValueError(f"shared.{both}: is set by {where} as well; a shared setting is equal in all points")
        return self

    def _all_changes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return every part that changes settings, and where it stands."""
        return [("shared", self.shared), ("grid", dict(self.grid)), *self.named_points()]

    def named_points(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the entries of ``points`` and where each stands, e.g. ``points.2``."""
        entries = self.points.items() if isinstance(self.points, dict) else enumerate(self.points)
        return [(f"points.{name}", changes) for name, changes in entries]


def _first_twice(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None

"""Reading a project's results folder, the layout that the stages write, for what shows it: MLflow, tables, figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from flsl.runtime.errors import UserError, require_folder
from flsl.runtime.outputs import read_json

RECORD = "metrics.json"
HISTORY = "history.jsonl"
CONFIG = "config.yaml"
PRETRAIN, FEATURES = "pretrain", "features"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads the same some ten times faster


@dataclass(frozen=True)
class Stage:
    """One stage's folder.

    Attributes:
        name: the folder's name, e.g. ``"knn"``.
        folder: where its files lie.
        record: what its ``metrics.json`` says; ``None`` while the stage is not complete.
    """

    name: str
    folder: Path
    record: Mapping[str, Any] | None = None

    @property
    def figures(self) -> dict[str, float]:
        """The final figures by full name, e.g. ``knn/top1@20`` (the stage's name is put before a name without it)."""
        if self.record is None:
            return {}
        known = (f"{self.name}/", f"{self.record.get('stage', self.name)}/")
        return {
            name if name.startswith(known) else f"{self.name}/{name}": float(value)
            for name, value in self.record["metrics"].items()
            if is_number(value) and math.isfinite(value)
        }

    @property
    def params(self) -> Mapping[str, Any]:
        """The stage's settings."""
        return mapping(mapping(self.record).get("params"))

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the figures come from: commit, packages, host, device, start, seconds."""
        return mapping(mapping(self.record).get("provenance"))

    @property
    def started(self) -> datetime | None:
        """When the stage began."""
        try:
            return datetime.fromisoformat(str(self.provenance.get("started")))
        except ValueError:
            return None

    @property
    def seconds(self) -> float:
        """How long it ran."""
        value = self.provenance.get("seconds")
        return float(value) if isinstance(value, int | float) else 0.0


@dataclass(frozen=True)
class Run:
    """One pretraining variant, or a baseline, and the stages that have begun.

    Attributes:
        name: the folder's name below ``runs``.
        folder: where its files lie.
        config: the resolved config; empty where there is none.
        stages: by name, pretraining first.
        broken: names of the stages whose ``metrics.json`` cannot be read.
    """

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)
    broken: tuple[str, ...] = ()

    @property
    def baseline(self) -> bool:
        """Whether the encoder was not pretrained here."""
        pretrain = self.stages.get(PRETRAIN)
        if pretrain is not None and pretrain.record is not None:
            return pretrain.record.get("stage") == "baseline"
        runs, baselines = mapping(self.config.get("runs")), mapping(self.config.get("baselines"))
        return self.name in baselines and self.name not in runs

    @property
    def seed(self) -> int | None:
        """The seed, where it is known."""
        pretrain = self.stages.get(PRETRAIN)
        seed = self.config.get("seed", pretrain.params.get("seed") if pretrain is not None else None)
        return seed if isinstance(seed, int) else None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes this run another one, nested: ``pretrain``, ``seed``, what it changes of its evaluations, or what
        a baseline is made from."""
        pretrain = self.stages.get(PRETRAIN)
        recorded = dict(pretrain.params) if pretrain is not None else {}
        recorded.pop("made_from", None)  # other sections' settings, which a baseline names as well
        if self.baseline:
            made = mapping(mapping(self.config.get("baselines")).get(self.name)) or recorded
            settings: dict[str, Any] = {"baseline": {key: value for key, value in made.items() if value is not None}}
            encoder = mapping(mapping(self.config.get(PRETRAIN)).get("encoder"))
            if made.get("kind") == "random" and encoder:
                settings[PRETRAIN] = {"encoder": dict(encoder)}
        else:
            recipe = dict(mapping(self.config.get(PRETRAIN)) or recorded)
            recipe.pop("seed", None)
            settings = {PRETRAIN: recipe} if recipe else {}
            for name, value in mapping(mapping(self.config.get("runs")).get(self.name)).items():
                # what a run changes of its evaluations makes it another one as well
                if name.partition(".")[0] not in (PRETRAIN, "seed"):
                    _set(settings, name.split("."), value)
        if self.seed is not None:
            settings["seed"] = self.seed
        return settings

    @property
    def figures(self) -> dict[str, float]:
        """The final figures of all stages."""
        return {name: value for stage in self.stages.values() for name, value in stage.figures.items()}


@dataclass(frozen=True)
class Project:
    """A results folder as it stands.

    Attributes:
        name: the folder's name.
        folder: ``results/<project>``.
        runs: by name (numbers as numbers), baselines last.
        manifests: what ``data/<set>/manifest.json`` says, by set.
        problems: one line for each file that could not be read and was left out.
    """

    name: str
    folder: Path
    runs: list[Run]
    manifests: dict[str, Mapping[str, Any]]
    problems: list[str]


def is_number(value: object) -> bool:
    """Tell whether ``value`` is an int or a float (a bool is not a number here)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``; lists stay values."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            values.update(flat(value, f"{prefix}{name}."))
        else:
            values[f"{prefix}{name}"] = value
    return values


def read_project(folder: Path | str) -> Project:
    """Read all that stands in a project's results folder.

    A file that is broken is named in ``problems`` and left out, so that it does not hide the others.

    Raises:
        UserError: when there is no such folder.
    """
    folder = require_folder(folder, "a project's results")
    problems: list[str] = []
    runs = [read_run(path, problems) for path in run_folders(folder)]
    manifests: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("data/*/manifest.json")):
        try:
            manifests[path.parent.name] = _object(read_json(path, "a data set's manifest"), path)
        except UserError as error:
            problems.append(str(error))
    runs.sort(key=lambda run: (run.baseline, _natural(run.name)))
    return Project(project_name(folder), folder, runs, manifests, problems)


def project_name(folder: Path) -> str:
    """Return the name of the project in ``results/<project>``, which may be a link to where there is more room."""
    folder = folder.absolute()  # it may be `.`
    return (folder.resolve() if folder.name == ".." else folder).name


def run_folders(project_folder: Path) -> list[Path]:
    """Return the folders of a project's runs that hold a config or a stage, by name."""
    found = (path for path in (project_folder / "runs").glob("*") if path.is_dir() and path.name[0] != ".")
    return sorted(path for path in found if (path / CONFIG).is_file() or any(stage_folders(path)))


def stage_folders(run_folder: Path) -> Iterator[Path]:
    """Yield the folders of the stages that have begun: pretraining, then by name."""
    for path in sorted(run_folder.iterdir(), key=lambda path: (path.name != PRETRAIN, path.name)):
        if (path / RECORD).is_file() or (path / HISTORY).is_file():
            yield path


def read_run(folder: Path, problems: list[str]) -> Run:
    """Read a run's folder; lines about files that cannot be read are added to ``problems``."""
    stages: dict[str, Stage] = {}
    broken: list[str] = []
    for path in stage_folders(folder):
        try:
            stages[path.name] = read_stage(path)
        except UserError as error:
            broken.append(path.name)
            problems.append(str(error))
    return Run(folder.name, folder, read_config(folder / CONFIG, problems), stages, tuple(broken))


def read_stage(folder: Path, name: str | None = None) -> Stage:
    """Read a stage's ``metrics.json``, where there is one yet.

    Raises:
        UserError: when the file is not what a stage writes.
    """
    path = folder / RECORD
    if not path.is_file():
        return Stage(name or folder.name, folder)
    record = _object(read_json(path, "a stage's figures"), path)
    if not isinstance(record.get("metrics"), Mapping):
        raise UserError(f"{path}: has no 'metrics', a mapping of figures by name; run the stage again")
    return Stage(name or folder.name, folder, record)


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts ``seed_2`` before ``seed_10``."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def read_config(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """Read a run's resolved config as plain data; empty, with a line in ``problems``, where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 -- a safe loader, by name
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:120]}); left out")
        return {}
    if not isinstance(config, dict):
        problems.append(f"{path}: is not a mapping of settings; left out")
        return {}
    return config


def _set(settings: dict[str, Any], names: list[str], value: Any) -> None:
    """Set ``settings[a][b][c] = value`` for the names a, b, c."""
    *parents, last = names
    for name in parents:
        settings = settings.setdefault(name, {})
    settings[last] = value


def _object(value: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: holds {type(value).__name__}, not a JSON object; make it again")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a part of a file that somebody may have changed, where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}

"""From YAML files and command-line overrides to a checked :class:`Experiment`, with one-line errors."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from flsl.config.base import Settings
from flsl.config.experiment import Experiment
from flsl.runtime.errors import UserError, nearest

Model = TypeVar("Model", bound=Settings)
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read a YAML file, the files it extends, and apply overrides.

    Args:
        path: the YAML file. Its key ``extends`` may name another file, relative to itself, that it changes.
        overrides: ``dotted.name=value`` strings, the value in YAML; they win over the files.

    Raises:
        UserError: one line naming the file and the setting.
    """
    path = Path(path)
    names = [text.partition("=")[0] for text in overrides]
    experiment = check(Experiment, set_overrides(read_yaml(path), overrides), str(path), names)
    for run in experiment.runs:
        run_experiment(experiment, run)
    return experiment


def set_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply ``dotted.name=value`` strings, the value in YAML, to plain data and return it.

    Raises:
        UserError: when a string has another form.
    """
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UserError(f"{text}: an override is written as setting=value, e.g. pretrain.epochs=10")
        set_dotted(data, name, parse_yaml(value, f"the value of {name}"), "the command line")
    return data


def run_experiment(experiment: Experiment, run: str) -> Experiment:
    """Return the experiment with the changes of the run named ``run`` applied (its resolved config).

    Raises:
        UserError: when there is no such run, or when its changes do not fit.
    """
    if run not in experiment.runs:
        raise UserError(
            f"runs.{run}: no such run{nearest(run, experiment.runs)}; there are {', '.join(experiment.runs)}"
        )
    data = experiment.plain()
    for name, value in experiment.runs[run].items():
        if name.split(".")[0] not in ("pretrain", "seed", "features", "davis"):
            raise UserError(
                f"runs.{run}: '{name}' cannot differ between runs; only seed, pretrain.* and evaluations can"
            )
        set_dotted(data, name, value, f"runs.{run}")
    return check(Experiment, data, f"runs.{run}")


def require_data(experiment: Experiment) -> None:
    """Refuse an experiment whose stages need data sets that it does not name.

    Raises:
        UserError: naming the stage and the setting.
    """
    needs = {
        "knn": "images",
        "linear": "images",
        "aligned_knn": "images",
        "coco": "coco",
        "uavdt": "uavdt",
        "davis": "davis",
    }
    if experiment.data.images is None:
        raise UserError("data.images: pretraining needs an image folder; name its root there")
    for stage in experiment.stages:
        if getattr(experiment.data, needs[stage]) is None:
            raise UserError(f"stages: {stage} needs data.{needs[stage]}, which is null; name it or leave the stage out")
    if "aligned_knn" in experiment.stages and experiment.data.images.boxes is None:
        raise UserError("stages: aligned_knn needs data.images.boxes, which is null; name it or leave the stage out")


def read_yaml(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML mapping and merge it over the file that its ``extends`` names.

    Raises:
        UserError: when a file is missing, is not YAML or not a mapping, or extends itself.
    """
    if path.resolve() in chain:
        raise UserError(f"{path}: extends itself through {' -> '.join(p.name for p in chain)}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{nearest(path.name, _siblings(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a YAML text file ({error})") from None
    data = parse_yaml(text, str(path))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: a config is a mapping of settings, not {_kind(data)}")
    return compose(data, path, (*chain, path.resolve()))


def compose(data: Mapping[str, Any], path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge ``data`` (read from ``path``) over the file that its ``extends`` names."""
    data = dict(data)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f"{path}: extends names one YAML file, not {_kind(base)}")
    return merge(read_yaml(path.parent / base, chain), data)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid over it: mappings merge key by key, anything else is replaced.

    ``runs``, ``baselines`` and ``ablations`` are lists of names, so that they are replaced as a whole.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        named = key in ("runs", "baselines", "ablations")
        merged[key] = (
            merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) and not named else value
        )
    return merged


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML, reading ``1e-3`` as a number (YAML 1.2) where PyYAML leaves a string.

    Raises:
        UserError: naming ``source`` and the line.
    """
    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def set_dotted(data: dict[str, Any], name: str, value: Any, source: str) -> None:
    """Set ``data[a][b][c] = value`` for the dotted ``name`` ``a.b.c``, making the mappings on the way.

    Raises:
        UserError: when the way leads through something that is no mapping.
    """
    *parents, last = name.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        if not isinstance(data[parent], dict):
            raise UserError(f"{source}: {name}: '{parent}' is a single value and has no settings below it")
        data = data[parent]
    data[last] = value


def check(model: type[Model], data: Mapping[str, Any], source: str, overridden: Iterable[str] = ()) -> Model:
    """Validate plain data strictly against a settings model.

    Args:
        model: the settings model.
        data: plain data.
        source: where the data come from, for the error.
        overridden: dotted names that the command line set; a mistake there is said to be the command line's.

    Raises:
        UserError: for the first mistake: ``source``, the setting's dotted name, what is wrong and what would be right.
    """
    try:
        # through JSON, so that strict types hold but a list may stand for a tuple, as YAML has no other sequence
        return model.model_validate_json(json.dumps(_numbers(dict(data))))
    except ValidationError as error:
        where, what = _explain(error, model)
        said = next((name for name in overridden if where == name or where.startswith(f"{name}.")), None)
        raise UserError(
            f"{source if said is None else 'the command line'}: {where}: {what}".replace(": : ", ": ")
        ) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {error}; settings are numbers, strings, lists and mappings") from None


def _explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Return the dotted name of the first mistake, and what is wrong with it."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    if isinstance(first.get("input"), dict):
        # a setting of several forms reports each form's mistakes: where a mapping was given, the mapping's are meant
        first = max(mistakes, key=lambda mistake: (len(mistake["loc"]), mistake["type"] == "extra_forbidden"))
    owner, names = _owner(model, first["loc"], first["type"] == "extra_forbidden")
    where = ".".join(names)
    if first["type"] == "extra_forbidden":
        return where, f"unknown setting{nearest(names[-1], owner.model_fields)}"
    if first["type"] == "missing":
        return where, f"this setting is needed ({_description(owner, names[-1])})"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        # a model's own check names the field below it first
        name, separator, reason = message.partition(": ")
        return (f"{where}.{name}".lstrip("."), reason) if separator else (where, message)
    message = first["msg"][0].lower() + first["msg"][1:]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return where, f"{message.partition(' after validation')[0]}, not {_shown(first.get('input'))}"


_WORDS = {
    "valid array": "list",
    "an object": "a mapping",
    "dictionary should": "mapping should",
    "string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'": "a name takes letters, digits, '.', '_' and '-'",
}


def _owner(model: type[BaseModel], location: tuple[int | str, ...], unknown: bool) -> tuple[type[BaseModel], list[str]]:
    """Return the innermost model on the way to ``location``, and the names on the way without pydantic's own tags.

    Where the last name is ``unknown``, it is the user's and no tag.
    """
    names: list[str] = []
    owner: type[BaseModel] = model
    kinds: list[Any] = [model]
    for place, part in enumerate(location):
        if part == "[key]":
            continue
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        field = next((m.model_fields[str(part)] for m in models if str(part) in m.model_fields), None)
        items = [get_args(kind)[-1] for kind in kinds if get_origin(kind) in (list, dict)]
        if field is not None:
            owner = next(m for m in models if str(part) in m.model_fields)
            kinds = _forms(field.annotation)
        elif items:
            kinds = [form for item in items for form in _forms(item)]
        elif not (unknown and place == len(location) - 1) and (len(kinds) > 1 or not models):
            continue
        elif models:
            owner = models[-1]
        names.append(str(part))
    return owner, names


def _forms(annotation: Any) -> list[Any]:
    """Return the forms that a setting may take, without what is wrapped around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _forms(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [form for part in get_args(annotation) for form in _forms(part)]
    return [annotation]


def _description(owner: type[BaseModel], name: str) -> str:
    field = owner.model_fields.get(name)
    return (field.description or name).rstrip(".") if field is not None else name


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(
        type(value), "a mapping" if isinstance(value, Mapping) else "nothing" if value is None else str(value)
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []

"""From YAML files and command-line overrides to a checked :class:`Experiment`, with one-line errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from flsl.config.base import Settings
from flsl.config.experiment import Experiment
from flsl.runtime.errors import UserError, nearest

Model = TypeVar("Model", bound=Settings)
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def load_experiment(path: Path | str, overrides: Iterable[str] = ()) -> Experiment:
    """Read a YAML file, the files it extends, and apply overrides.

    Args:
        path: the YAML file. Its key ``extends`` may name another file, relative to itself, that it changes.
        overrides: ``dotted.name=value`` strings, the value in YAML; they win over the files.

    Raises:
        UserError: one line naming the file and the setting.
    """
    path = Path(path)
    return check(Experiment, set_overrides(read_yaml(path), overrides), str(path))


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


def check(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """Validate plain data strictly against a settings model.

    Raises:
        UserError: for the first mistake: ``source``, the setting's dotted name, what is wrong and what would be right.
    """
    try:
        # through JSON, so that strict types hold but a list may stand for a tuple, as YAML has no other sequence
        return model.model_validate_json(json.dumps(_numbers(dict(data))))
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, model)}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {error}; settings are numbers, strings, lists and mappings") from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    mistakes = error.errors(include_url=False)
    # a setting that may take several forms reports one mistake a form: the most telling one is the nested one
    first = max(mistakes, key=lambda mistake: (mistake["type"] == "extra_forbidden", 0))
    owner, names = _owner(model, first["loc"])
    where = ".".join(names)
    given = first.get("input")
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown setting{nearest(names[-1], owner.model_fields)}"
    if first["type"] == "missing":
        return f"{where}: this setting is needed ({_description(owner, names[-1])})"
    message = str(first.get("ctx", {}).get("error", first["msg"]))
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{where}.{message}" if where else message
    return f"{where}: {message}, not {_shown(given)}"


def _owner(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[type[BaseModel], list[str]]:
    """Return the innermost model on the way to ``location``, and the setting's name without pydantic's union tags."""
    names: list[str] = []
    owner = model
    for part in location:
        field = owner.model_fields.get(str(part)) if not names or owner is not None else None
        if field is None and names and not isinstance(part, int) and not _plain_key(owner, names):
            if part is location[-1]:
                tag = any(sign in str(part) for sign in ("[", "Schedule")) or str(part) in (
                    "float",
                    "int",
                    "str",
                    "bool",
                )
                if not tag:
                    names.append(str(part))
            continue
        names.append(str(part))
        if field is not None:
            for inner in (field.annotation, *get_args(field.annotation)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    owner = inner
    return owner, names


def _plain_key(owner: type[BaseModel], names: list[str]) -> bool:
    return names[-1] in ("runs", "baselines", "ablations")


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

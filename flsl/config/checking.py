"""Plain data against a settings model, with one-line errors, and setting plain data by dotted names."""

from __future__ import annotations

import datetime
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from flsl.config.base import Settings
from flsl.runtime.errors import UserError, nearest

Model = TypeVar("Model", bound=Settings)
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def numbers(value: Any) -> Any:
    """Return plain data with ``1e-3`` as a number (YAML 1.2) where PyYAML leaves a string."""
    if isinstance(value, dict):
        return {str(key): numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    if isinstance(value, datetime.date):  # what YAML takes for a date is a name to us
        return value.isoformat()
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
        return model.model_validate_json(json.dumps(numbers(dict(data))))
    except ValidationError as error:
        where, what = _explain(error, model)
        # an unknown section stands above the setting that was named
        said = any(f"{name}.".startswith(f"{where}.") or where.startswith(f"{name}.") for name in overridden)
        raise UserError(f"{'the command line' if said else source}: {where}: {what}".replace(": : ", ": ")) from None
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
        if part == "[key]" or (len(kinds) > 1 and str(part).startswith(("list[", "dict["))):
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


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

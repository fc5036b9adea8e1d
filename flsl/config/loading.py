"""From YAML files and command-line overrides to a checked :class:`Experiment`, with one-line errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flsl.config.base import expanded
from flsl.config.checking import check, numbers, set_dotted
from flsl.config.experiment import Experiment
from flsl.config.sweep import plan, resolve
from flsl.runtime.errors import UserError, nearest


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
    plan(experiment)
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

    Args:
        experiment: the whole experiment.
        run: an entry of ``runs``, or the run of an ablation's point.

    Raises:
        UserError: when there is no such run, or when its changes do not fit.
    """
    if run in experiment.runs:
        return resolve(experiment, experiment.runs[run], f"runs.{run}")
    runs = plan(experiment).runs
    if run not in runs:
        raise UserError(f"runs.{run}: no such run{nearest(run, runs)}; there are {', '.join(runs)}")
    return runs[run].settings


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
        "visualize": "images",
    }
    if experiment.data.images is None:
        raise UserError("data.images: pretraining needs an image folder; name its root there")
    wanted = [("stages", stage) for stage in experiment.stages]
    wanted += [
        (f"ablations.{name}.stages", stage) for name, one in experiment.ablations.items() for stage in one.stages or ()
    ]
    for where, stage in wanted:
        if getattr(experiment.data, needs[stage]) is None:
            raise UserError(
                f"{where}: {stage} needs data.{needs[stage]}, which is null; name it or leave the stage out"
            )
        if stage in ("knn", "linear", "aligned_knn") and experiment.data.images.val is None:
            raise UserError(f"{where}: {stage} needs data.images.val, which is null; name it or leave the stage out")
        if stage == "aligned_knn" and experiment.data.images.boxes is None:
            raise UserError(
                f"{where}: aligned_knn needs data.images.boxes, which is null; name it or leave the stage out"
            )


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
    try:
        extended = path.parent / expanded(base)
    except ValueError as error:
        raise UserError(f"{path}: extends: {error}") from None
    return merge(read_yaml(extended, chain), data)


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
        return numbers(yaml.load(text, Loader=_Loader))  # noqa: S506 -- a safe loader
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: it is nested too deep, or contains itself") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:  # what looks like a date but is none
        raise UserError(f"{source}: not valid YAML: {error}; write what is no date in quotes") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which takes the last of two equal keys and drops the first without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that stands twice, in the file's own words: merged keys (``<<``) may be overridden.

        Refuse one that is read as another word, too: ``on`` is true to YAML, and a run would be called ``True``.
        """
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _mistake(key, f"'{key.value}' stands twice; put both into one")
                if key.tag != _MERGE and (read := str(self.construct_object(key))) != key.value:
                    raise _mistake(key, f"the name {key.value} is read as {read}; write it in quotes, '{key.value}'")
                seen.add(key.value)
        return node


_MERGE = "tag:yaml.org,2002:merge"


def _mistake(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, what, node.start_mark)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(
        type(value), "a mapping" if isinstance(value, Mapping) else "nothing" if value is None else str(value)
    )


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []

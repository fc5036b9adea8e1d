"""How the project's names and settings are spelled in MLflow."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from flsl.runtime.outputs import sha256_json
from flsl.runtime.results import flat

_LONGEST_NAME = 250
_LONGEST_VALUE = 500  # of a param, in every version of MLflow
_SPELLED = {"@": "_at_", "&": "_and_", "%": "percent", "+": "_plus_"}
_REFUSED = re.compile(r"[^\w\-. :/]")
_KINDS = {"step": "train", "epoch": "epoch"}
_SYSTEM = re.compile(r"(images_per_second|data_wait_percent|seconds|(cpu|gpu|memory|disk|network|power)(_.*)?)")
_CURVES = ("train/", "epoch/", "system/", "history/")


def mlflow_name(name: str) -> str:
    """Spell the name of a figure or a setting as MLflow allows.

    MLflow takes letters, digits and ``_ - . space : /``. ``@`` becomes ``_at_`` and ``&`` becomes ``_and_``
    (``knn/top1@20`` is ``knn/top1_at_20``, ``davis/J&F-Mean`` is ``davis/J_and_F-Mean``), ``%`` ``percent``, ``+``
    ``_plus_``, any other sign ``_``; empty parts between slashes go. A name that is longer than 250 characters is cut
    and ends in a digest of the whole.
    """
    spelled = _REFUSED.sub("_", "".join(_SPELLED.get(sign, sign) for sign in name))
    spelled = "/".join(part for part in spelled.split("/") if part not in ("", ".", "..")) or "_"
    return _cut(spelled, _LONGEST_NAME)


@lru_cache(4096)
def curve_name(kind: str, key: str) -> str:
    """Spell the name of a curve: a key of the lines of one kind in ``history.jsonl``.

    Lines of kind ``step`` give ``train/<key>``, ``epoch`` ``epoch/<key>``, others ``history/<kind>/<key>``; figures of
    the machine (throughput, memory, …) ``system/<key>``, which MLflow shows on a tab of their own. No final figure
    has such a name, as those begin with their stage's.
    """
    head = _KINDS.get(kind, f"history/{mlflow_name(kind)}")
    if kind == "system" or key.startswith("system/") or _SYSTEM.fullmatch(key):
        head, key = "system", key.removeprefix("system/")
    # the key by itself, which may be nothing but slashes: a part must be left of it
    return mlflow_name(f"{head}/{mlflow_name(key)}")


def is_curve(name: str) -> bool:
    """Tell whether an MLflow metric is a curve, by its name."""
    return name.startswith(_CURVES)


def mlflow_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested settings to MLflow's params: dotted names, values as JSON (strings without quotes).

    A value longer than MLflow's 500 characters is cut and ends in a digest of the whole, so that two long values that
    differ stay different.
    """
    return {
        mlflow_name(name): _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        for name, value in flat(settings).items()
    }


def config_hash(settings: Mapping[str, Any]) -> str:
    """Return a short digest of settings: equal settings, equal digest."""
    return sha256_json(settings)[:16]


def _cut(text: str, longest: int = _LONGEST_VALUE) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

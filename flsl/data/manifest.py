"""``manifest.json``: what a data set holds; the checks write it, and all that reads the data set names it.

Nothing here imports torch, pandas or numpy: what waits for a job on a cluster reads manifests, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flsl.runtime.errors import UserError
from flsl.runtime.outputs import read_json

if TYPE_CHECKING:
    from flsl.config.experiment import Experiment

MANIFEST = "manifest.json"
_OF_THE_CHECK = ("decode", "watch")


def load_manifest(folder: Path | str) -> dict[str, Any]:
    """Read the ``manifest.json`` in ``folder``.

    Raises:
        UserError: when it is missing or is no manifest.
    """
    path = Path(folder) / MANIFEST
    manifest = read_json(path, "the manifest that `flsl data check` writes")
    needed = {"kind", "root", "splits", "revision", "content_sha256", "files"}
    if not isinstance(manifest, dict) or not needed <= manifest.keys():
        raise UserError(f"{path}: not a manifest; run `flsl data check` again")
    return manifest


def checked(experiment: Experiment, kind: Literal["coco", "uavdt", "davis"]) -> list[Path]:
    """Return the manifest that the experiment's project has of a data set, for the record of what reads it.

    It is empty where the data set was not checked, or other files of its kind were.
    """
    folder = Path(experiment.results) / experiment.project / "data" / kind
    settings = getattr(experiment.data, kind)
    with suppress(UserError):
        manifest = load_manifest(folder)
        if settings is not None and Path(manifest["root"]) == Path(settings.root):
            wanted = settings.model_dump(mode="json", exclude={"root", *_OF_THE_CHECK})
            # a manifest of an earlier version may lack some
            known = {**wanted, **manifest.get("settings", {})}
            return [folder / MANIFEST] if all(known[name] == value for name, value in wanted.items()) else []
    return []


def trained_on(manifest: Mapping[str, Any]) -> str:
    """Return the digest of the usable training images' content: what weights depend on, whatever lies beside them."""
    # (a manifest of an earlier version has but that of all files)
    return str(manifest["splits"].get("train", {}).get("content_sha256", manifest["content_sha256"]))


def content(manifests: Iterable[Path]) -> list[str]:
    """Return the digests of the data sets' content: what a checkpoint depends on, whatever their files' times.

    Raises:
        UserError: when one is missing or is no manifest.
    """
    return [str(load_manifest(path.parent)["content_sha256"]) for path in manifests]

"""What has changed since a run was made: code, packages, machine, data, settings, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flsl.config.checking import check
from flsl.config.data import DataSettings
from flsl.data.manifest import load_manifest, trained_on
from flsl.data.revision import revision
from flsl.reproduce.script import files_read, maker, pretrained
from flsl.runtime.environment import LOCK, installed, machine, read_lock
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import git_revision, package_versions, sha256_file
from flsl.runtime.results import PRETRAIN, Run, flat

_SHOWN = 8


def differences(run: Run) -> list[str]:
    """Return a line for each thing that is not as it was when the run was made; none where all is."""
    facts = pretrained(run).provenance
    return [
        *_code(facts),
        *_packages(run, facts),
        *_machine(facts),
        *_data(run, facts),
        *_settings(run),
        *_inputs(run),
        *_weights(run),
    ]


def _code(facts: Mapping[str, Any]) -> Iterator[str]:
    then, now = facts.get("git"), git_revision()
    if not then:
        yield "commit: none was recorded"
        return
    if str(then).endswith("-dirty"):
        yield f"commit: {then}: the code had changes that no commit holds; the commit alone may give other results"
    if now is None:
        yield "commit: the package does not run from a git checkout now"
    elif str(now).removesuffix("-dirty") != str(then).removesuffix("-dirty"):
        yield f"commit: {then} then, {now} now"
    elif str(now).endswith("-dirty"):
        yield "commit: the same, but files of the checkout are changed now"


def _packages(run: Run, facts: Mapping[str, Any]) -> Iterator[str]:
    lock = maker(run).folder / PRETRAIN / LOCK
    if facts.get("lock_sha256") is None:
        then, now = dict(facts.get("packages", {})), package_versions()
        for names in (then, now):
            names.pop("flsl", None)
    elif not lock.is_file():
        yield f"packages: {lock} is missing"
        return
    else:
        if sha256_file(lock) != facts["lock_sha256"]:
            yield f"packages: {lock} was changed since the run was made"
        then, now = read_lock(lock), installed()
    changed = [
        f"{name} {version} then, {now[name]} now" if name in now else f"{name} {version} then, not installed now"
        for name, version in then.items()
        if now.get(name) != version
    ]
    if changed:
        more = f", and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        yield f"packages: {'; '.join(changed[:_SHOWN])}{more}"
    new = [name for name in now if name not in then]
    if new:
        yield f"packages: new since then: {', '.join(new[:_SHOWN])}{', …' if len(new) > _SHOWN else ''}"


def _machine(facts: Mapping[str, Any]) -> Iterator[str]:
    now = machine()
    for name in ("python", "processor", "gpu", "cuda", "cudnn"):
        if name in facts and facts[name] != now[name]:
            yield f"{name}: {facts[name]} then, {now[name]} now"


def _data(run: Run, facts: Mapping[str, Any]) -> Iterator[str]:
    if run.baseline:
        return
    then = facts.get("data_sha256")
    folder = run.folder.parent.parent / "data" / "images"
    try:
        manifest = load_manifest(folder)
        settings = check(
            DataSettings, {"images": {"root": manifest["root"], **manifest["settings"]}}, str(folder)
        ).images
    except UserError as error:
        yield f"data: {error}"
        return
    now = trained_on(manifest)
    if then is not None and now != then:
        yield f"data: training images of content {str(then)[:16]}… then, {now[:16]}… now"
    assert settings is not None
    if not Path(settings.root).is_dir():
        yield f"data: {settings.root} is not there now"
    elif revision(settings, folder) != manifest["revision"]:
        yield f"data: files below {settings.root} were changed since they were checked"


def _settings(run: Run) -> Iterator[str]:
    if run.baseline:
        return
    config = run.config.get(PRETRAIN)
    if not isinstance(config, Mapping):
        return
    then, now = dict(pretrained(run).params), {"seed": run.config.get("seed"), **config}
    old, new = flat(then), flat(now)
    changed = [f"{name}: {old.get(name)} then, {new.get(name)} now" for name in old if old[name] != new.get(name)]
    changed += [f"{name}: is a setting only now" for name in new if name not in old]
    if changed:
        more = f", and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        yield f"settings: {run.folder / 'config.yaml'}: {'; '.join(changed[:_SHOWN])}{more}"


def _inputs(run: Run) -> Iterator[str]:
    for path, digest in files_read(run).items():
        if not path.is_file():
            yield f"input: {path}, which was read, is missing"
        elif sha256_file(path) != digest:
            yield f"input: {path} is not what was read"


def _weights(run: Run) -> Iterator[str]:
    for name, digest in (pretrained(run).record or {}).get("weights", {}).items():
        path = run.folder / PRETRAIN / name
        if not path.is_file():
            yield f"weights: {path} is missing"
        elif sha256_file(path) != digest:
            yield f"weights: {path} is not what the run wrote"

"""The commands that make a run again: a script for a POSIX shell, which checks what it makes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from flsl.config.checking import set_dotted
from flsl.data.manifest import MANIFEST, load_manifest
from flsl.runtime.attempts import read_attempts
from flsl.runtime.environment import LOCK, read_lock
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import sha256_file
from flsl.runtime.results import PRETRAIN, Run, Stage, mapping, read_run

_CHECKOUT = "flsl-again"
_PROBES = ("knn", "linear", "aligned_knn", "visualize")


def script(run: Run, out: Path, here: bool, origin: str | None) -> str:
    """Return the script.

    Args:
        run: a complete run or baseline of a project.
        out: folder that the script writes into.
        here: leave out the checkout and the installation: what is installed is used.
        origin: where the code can be cloned from; None leaves the checkout to the reader.

    Raises:
        UserError: when the run's records do not tell how it was made.
    """
    stages = _chain(maker(run))
    lines = [*_head(run), "set -eu", ""]
    if not here:
        lines += [*_environment(run, origin), ""]
    if any(not one.baseline for one in stages) or len(run.stages) > 1:
        lines += [*_data(run, out), ""]
    for one in stages:
        lines += [*_pretraining(one, out), ""]
    lines += _evaluations(run, out, own_config=run.name not in [one.name for one in stages])
    return "\n".join(lines).rstrip() + "\n"


def maker(run: Run) -> Run:
    """Return the run whose pretraining this one has: itself, or the one that it shares the pretraining of."""
    name = (pretrained(run).record or {}).get("shared_from")
    folder = run.folder.parent / str(name)
    return read_run(folder, []) if name is not None and (folder / PRETRAIN / "metrics.json").is_file() else run


def pretrained(run: Run) -> Stage:
    """Return the run's pretraining, or a baseline's record."""
    return run.stages[PRETRAIN]


def _head(run: Run) -> Iterator[str]:
    facts = pretrained(run).provenance
    yield comment(f"{'baseline' if run.baseline else 'run'} {run.name} of {run.folder.parent.parent}")
    made = f"made {facts.get('started')} on {facts.get('host')} ({facts.get('device')}) in {facts.get('seconds')} s"
    yield comment(made)
    for name in ("processor", "gpu", "cuda", "threads", "world_size"):
        if facts.get(name) is not None:
            yield comment(f"{name}: {facts[name]}")


def _environment(run: Run, origin: str | None) -> Iterator[str]:
    facts = pretrained(run).provenance
    commit = str(facts.get("git") or "").removesuffix("-dirty")
    lock = maker(run).folder / PRETRAIN / LOCK
    python = facts.get("python") or facts.get("packages", {}).get("python")
    yield comment(f"the code and its environment: Python {python}")
    if commit:
        if origin is not None:
            yield f"git clone {shlex.quote(origin)} {_CHECKOUT}"
        else:
            yield f"# first clone the code into {_CHECKOUT}: where from is not known here"
        yield f"git -C {_CHECKOUT} checkout {shlex.quote(commit)}"
    else:
        yield "# the commit was not recorded, as the package did not run from a git checkout:"
        yield f"# first put its code into {_CHECKOUT}"
    # the working folder stays: paths of data are relative to it
    yield f"python -m venv {_CHECKOUT}/.venv"
    yield f". {_CHECKOUT}/.venv/bin/activate"
    if lock.is_file():
        file = shlex.quote(str(lock.absolute()))
        commits = [f"{name} @ {version}" for name, version in read_lock(lock).items() if "://" in version]
        yield f"grep -v ' @ ' {file} | pip install -r /dev/stdin" if commits else f"pip install -r {file}"
        for commit in commits:
            # what is built may need what was installed just now, as detectron2 needs torch
            yield _command("pip", "install", "--no-build-isolation", "--no-deps", commit)
        yield f"pip install --no-deps -e {_CHECKOUT}"
    else:
        yield comment(f"{lock} is not there: the versions are those of constraints.txt")
        yield f"pip install -c {_CHECKOUT}/constraints.txt -e {_CHECKOUT}"


def _data(run: Run, out: Path) -> Iterator[str]:
    folder = run.folder.parent.parent / "data"
    scenes = run.config.get("data", {}).get("scenes") if isinstance(run.config.get("data"), Mapping) else None
    manifests = {path.parent.name: load_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
    wanted = {"images", *({"coco", "uavdt", "davis"} & run.stages.keys())}
    if isinstance(scenes, Mapping):
        yield "# the made data"
        settings = [f"data.scenes.{name}={json.dumps(value)}" for name, value in scenes.items()]
        yield _command("flsl", "data", "scenes", *settings, "--out", str(scenes["root"]))
    for name in sorted(wanted & manifests.keys()):
        manifest, target = manifests[name], out / "data" / name
        yield comment(f"the data set {name}: {manifest['files']} files")
        settings = [f"data.{name}={json.dumps({'root': manifest['root'], **manifest['settings']}, sort_keys=True)}"]
        yield _command("flsl", "data", "check", name, *settings, "--out", str(target))
        digest = manifest["content_sha256"]
        if name == "images":  # what the run was trained on, whatever is there now
            digest = pretrained(run).provenance.get("data_sha256", digest)
        yield (
            f"grep -qF -e {shlex.quote(str(digest))} {shlex.quote(str(target / MANIFEST))} || "
            f"{{ echo '{name}: the files differ from those of the run' >&2; exit 1; }}"
        )


def _pretraining(run: Run, out: Path) -> Iterator[str]:
    stage = pretrained(run)
    facts = stage.provenance
    config, target = out / "runs" / run.name / "config.yaml", out / "runs" / run.name / PRETRAIN
    yield comment(f"{'the baseline' if run.baseline else 'pretraining'} {run.name}")
    yield from _config_file(run, config)
    common = ["--config", str(config), "--name", run.name, "--out", str(target)]
    if run.baseline:
        for path, digest in files_read(run).items():
            yield _checked(digest, path)
        yield _command("flsl", "baseline", *common)
        return
    previous = _previous(run)
    if previous is not None:
        earlier = _earlier(run, previous)
        again = out / "runs" / earlier.name / PRETRAIN / previous.name if earlier is not None else previous
        common += ["--previous", str(again)]
        if earlier is None:
            yield "# the earlier encoder, which no run of this project has now"
            yield _checked(files_read(run)[previous], again)
    launcher, shape = _launched(run)
    yield _command(*launcher, "pretrain", "--images", str(out / "data" / "images"), *common, *shape)
    for name, digest in (stage.record or {}).get("weights", {}).items():
        yield _checked(digest, target / name)
    if facts.get("gpu") is not None:
        yield "# on a GPU the last digits may differ: then the checksum does, too"


def _launched(run: Run) -> tuple[list[str], list[str]]:
    """Return what starts as many processes on as many nodes as a run's pretraining had, and further settings for it."""
    facts = pretrained(run).provenance
    ranks = int(facts.get("world_size", 1))
    attempts = read_attempts(maker(run).folder / PRETRAIN)
    nodes = len(attempts[-1].get("nodes", [])) if attempts else 1
    if nodes > 1:
        # one machine may have too few GPUs for all
        each = ranks // nodes
        gpus = each if facts.get("gpu") is not None else 0
        shape = {"nodes": nodes, "tasks_per_node": each, "gpus_per_node": gpus}
        return ["flsl", "submit"], [f"cluster.{name}={number}" for name, number in shape.items()]
    if ranks > 1:
        return ["torchrun", "--standalone", f"--nproc-per-node={ranks}", "-m", "flsl"], []
    return ["flsl"], []


def _config_file(run: Run, path: Path) -> Iterator[str]:
    yield f"mkdir -p {shlex.quote(str(path.parent))}"
    yield f"cat > {shlex.quote(str(path))} <<'END-OF-CONFIG'"
    yield yaml.safe_dump(_config(run), sort_keys=False, allow_unicode=True).rstrip()
    yield "END-OF-CONFIG"


def _config(run: Run) -> dict[str, Any]:
    """Return the run's whole settings, as they were when it was made."""
    config = json.loads(json.dumps(dict(run.config))) or {"project": "again"}
    recorded = dict(pretrained(run).params)
    config["seed"] = recorded.pop("seed", config.get("seed", 0))
    if run.baseline:
        for name, value in recorded.pop("made_from", {}).items():
            set_dotted(config, name, value, str(run.folder))
        config["baselines"] = {run.name: recorded}
    else:
        config["pretrain"] = recorded
        config["runs"] = {run.name: {}}
        facts = pretrained(run).provenance
        compute = config.setdefault("compute", {})
        compute |= {"threads": facts.get("threads", 0), "compile": facts.get("compile", False)}
        compute["device"] = "cuda" if str(facts.get("device")).startswith("cuda") else "cpu"
    config.pop("ablations", None)
    # sent by itself to a server, it would take the place of the project's run; and an address may hold a password
    config["tracking"] = {"live": False}
    for name in (*_PROBES, "features", "davis"):
        stage, section = run.stages.get(name), config.get(name)
        if stage is not None and isinstance(section, dict):
            section |= {key: value for key, value in stage.params.items() if key in section}
    return config


def _previous(run: Run) -> Path | None:
    """Return the earlier encoder that a later stage of multi-stage pretraining read."""
    return None if run.baseline else next(iter(files_read(run)), None)


def files_read(run: Run) -> dict[Path, str]:
    """Return the digests of the files that an encoder was made from besides the images, as they were then.

    They are the earlier encoder of multi-stage pretraining, or a baseline's checkpoint.
    """
    inputs = mapping(pretrained(run).provenance.get("inputs"))
    return {Path(path): str(digest) for path, digest in inputs.items() if Path(path).name != MANIFEST}


def _earlier(run: Run, previous: Path) -> Run | None:
    """Return the run of the same project that has the encoder that the run read, where one has it still."""
    folder = run.folder.parent / previous.parent.parent.name
    if previous.parent.name != PRETRAIN or not (folder / PRETRAIN / "metrics.json").is_file():
        return None
    # it may have been another project's, or have been pretrained again since
    file = folder / PRETRAIN / previous.name
    if file.is_file() and sha256_file(file) != files_read(run)[previous]:
        return None
    return read_run(folder, [])


def _chain(run: Run) -> list[Run]:
    """Return the runs that have to be made, the earliest first."""
    chain = [run]
    while (previous := _previous(chain[0])) is not None:
        earlier = _earlier(chain[0], previous)
        if earlier is None:
            break
        if earlier.name in [one.name for one in chain]:
            raise UserError(f"{earlier.folder}: goes on from itself; its records are not to be followed")
        chain.insert(0, earlier)
    return chain


def _evaluations(run: Run, out: Path, own_config: bool) -> Iterator[str]:
    """Yield the commands of the run's other stages, whose settings may still have to be written."""
    folder = out / "runs" / run.name
    config, images = str(folder / "config.yaml"), str(out / "data" / "images")
    pretrain = out / "runs" / maker(run).name / PRETRAIN
    backbone, checkpoint = str(pretrain / "backbone.safetensors"), str(pretrain / "checkpoint.pth")
    encoder = ["--backbone", backbone, "--images", images]
    made: dict[str, list[list[str]]] = {
        "features": [["features", *encoder]],
        "knn": [["knn", "--features", str(folder / "features")]],
        "linear": [["linear", *encoder]],
        "aligned_knn": [["aligned-knn", *encoder]],
        "visualize": [
            ["visualize", "--encoder", backbone if run.baseline else checkpoint, "--epochs", "--images", images]
        ],
    }
    for name in ("coco", "uavdt"):
        made[name] = [["detect", "train", "--stage", name, "--backbone", backbone, *_detector(run, name)]]
    present = [name for name in made if name in run.stages]
    if "davis" in run.stages:
        present.append("davis")
    if present:
        yield "# evaluations"
        if own_config:
            yield from _config_file(run, folder / "config.yaml")
    for name in present:
        target, common = str(folder / name), ["--config", config, "--name", run.name]
        if name == "davis":
            root = str(mapping(mapping(run.config.get("data")).get("davis")).get("root", "DAVIS"))
            masks = str(folder / name / "masks")
            yield _command(
                "flsl", "davis", "propagate", *common, "--backbone", backbone, "--davis", root, "--out", masks
            )
            record = str(folder / name / "metrics.json")
            where = ["--davis", root, "--masks", masks, "--where-annotated", "--out", record]
            yield _command("flsl", "davis", "evaluate", *common, *where)
            continue
        for arguments in made[name]:
            yield _command("flsl", *arguments, *common, "--out", target)


def _detector(run: Run, name: str) -> list[str]:
    """Return how a detector was trained, as arguments, where the run's config says otherwise now."""
    then = run.stages[name].params if name in run.stages else {}
    now = mapping(run.config.get("detection"))
    settings = {"engine": then.get("engine"), "model": then.get("model"), name: then.get("recipe")}
    return [
        f"detection.{key}={json.dumps(value, sort_keys=True)}"
        for key, value in settings.items()
        if value is not None and value != now.get(key)
    ]


def _checked(digest: str, path: Path) -> str:
    """Return a command that fails where a file's digest is another."""
    return f"echo {shlex.quote(f'{digest}  {path}')} | sha256sum -c -"


def _command(*words: str) -> str:
    return shlex.join(words)


def comment(text: str, indent: int = 1) -> str:
    """Return a line of the script that nothing runs."""
    # records are files, which others may have written: a line break would end the comment
    return f"#{' ' * indent}{' '.join(text.split())}"

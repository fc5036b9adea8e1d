# From config to params, inputs and places: the one room where rules look up settings.
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

from flsl.config.checking import check
from flsl.config.experiment import Experiment
from flsl.config.loading import compose, parse_yaml
from flsl.config.sweep import record, resolve
from flsl.config.whole import check_whole
from flsl.data.pack import named_pack
from flsl.data.revision import revision
from flsl.data.scenes.davis import splits as made_splits
from flsl.launch.request import processes
from flsl.launch.work import for_detection
from flsl.runtime.ablations import ablation_names
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import sha256_json, sha256_of_input, without_secrets, write_text
from flsl.runtime.planned import PLANNED, Planned
from flsl.runtime.results import flat, run_folders
from flsl.video.sequences import sequence_names

# settings of --config change the demo; a --configfile would be laid over it, and must not inherit from it
if not workflow.configfiles and "extends" not in config:

    configfile: "config/demo.yaml"


# a snakemake that is called by its path finds the flsl that was installed beside it
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

SOURCE = Path(workflow.configfiles[-1]) if workflow.configfiles else Path("config/demo.yaml")


def typed(value):
    """Return a setting of --config with its numbers as numbers: snakemake hands nested ones over as strings."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    number, word = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", r"(?i:true|false|null)|~"
    plain = isinstance(value, str) and re.fullmatch(f"{number}|{word}", value)
    return yaml.safe_load(value) if plain else value


# a number in quotes in a file is a string, and stays one
update_config(config, typed(dict(workflow.config_settings.config)))

try:
    for path in map(Path, workflow.configfiles):
        # snakemake's reader drops the first of two equal keys without a word
        parse_yaml(path.read_text(encoding="utf-8"), str(path))
    said = flat(dict(workflow.config_settings.config))
    EXPERIMENT = check(Experiment, compose(config, SOURCE), str(SOURCE), said)
    PLAN = check_whole(EXPERIMENT)
    RESOLVED = {name: run.settings for name, run in PLAN.runs.items()}
    RESOLVED |= dict.fromkeys(EXPERIMENT.baselines, resolve(EXPERIMENT, {}, "baselines"))
except UserError as error:
    raise WorkflowError(str(error))

RUNS = list(PLAN.runs)
BASELINES = list(EXPERIMENT.baselines)


def project(path):
    """Return a path below results/<project>."""
    # without a leading ./, which snakemake warns of
    return f"{Path(EXPERIMENT.results, EXPERIMENT.project)}/{path}"


def log_of(stage, run="{run}"):
    """Return where a stage's log is written."""
    return project(f"logs/{run}/{stage}.log")


def config_of_run(wildcards):
    """Return the run's whole settings, for the stages to read.

    The file is no input: it changes with any setting, and the rules' params say what concerns them.
    """
    return project(f"runs/{wildcards.run}/config.yaml")


def write_configs():
    """Write every run's resolved settings, what the ablations consist of and what is planned, before any job starts."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    texts = {
        project(f"runs/{run}/config.yaml"): yaml.dump(
            settings.plain(), Dumper=dumper, sort_keys=False, allow_unicode=True
        )
        for run, settings in RESOLVED.items()
    }
    texts |= {
        project(f"ablations/{name}/ablation.json"): json.dumps(record(PLAN, name), indent=2, ensure_ascii=False)
        for name in PLAN.ablations
    }
    planned = Planned(RUNS, BASELINES, list(PLAN.ablations))
    texts[project(PLANNED)] = json.dumps(planned.plain(), indent=2, ensure_ascii=False)
    for path, text in texts.items():
        if not Path(path).exists() or Path(path).read_text(encoding="utf-8") != text:
            write_text(path, text)


def settings_of(*sections):
    """Return a params function: those sections of the run's settings as JSON, so that no others trigger a rerun."""

    def of_run(wildcards):
        plain = RESOLVED[wildcards.run].plain()
        return json.dumps({name: plain[name] for name in sections}, sort_keys=True)

    return of_run


def previous_stage(wildcards):
    """Return the encoder that a run's cross-attention has as its prior, where the run is a later stage of another."""
    run = RESOLVED[wildcards.run].pretrain.previous
    return {} if run is None else {"previous": project(f"runs/{run}/pretrain/backbone.safetensors")}


def as_arguments(settings, prefix=""):
    """Return plain settings as the `setting=value` arguments of the flsl command."""
    return [f"{prefix}{name}={json.dumps(value, sort_keys=True)}" for name, value in settings.items()]


def larger(amount):
    """Return a resources function that asks for more on each retry."""
    return lambda wildcards, attempt: amount * attempt


def site_resource(name):
    """Return what the profile sets for all jobs, e.g. the partition, or None."""
    found = (workflow.resource_settings.default_resources or {}).get(name)
    # snakemake keeps the profile's words, which may be in quotes, for evaluation within each rule
    words = getattr(found, "raw", found)
    return None if words is None else str(words).strip("'\"")


# How pretraining runs: in its rule's own job, or as a job that the rule submits and waits for.
SUBMITS = EXPERIMENT.cluster.kind
if SUBMITS == "auto":
    SUBMITS = site_resource("submit_to") or "none"
# detection does so only where it asks for several processes
SUBMITS_DETECTION = SUBMITS if processes(for_detection(EXPERIMENT)) > 1 else "none"

# what a GPU is asked for with
GPU = 0 if EXPERIMENT.compute.device == "cpu" else 1


def pretrain_command(wildcards, attempt):
    """Return how pretraining is started and what it asks a cluster for.

    It is a resource, so that it reruns nothing: settings of the cluster change no result.
    """
    if SUBMITS == "none":
        return "pretrain"
    shape = as_arguments(EXPERIMENT.cluster.on_attempt(attempt), "cluster.")
    return shlex.join(["submit", "pretrain", *site_arguments(SUBMITS), *shape])


def detect_command(wildcards, attempt):
    """Return how a detector's training is started; see `pretrain_command`."""
    if SUBMITS_DETECTION == "none":
        return "detect train"
    shape = as_arguments(EXPERIMENT.cluster.detection.on_attempt(attempt), "cluster.detection.")
    return shlex.join(["submit", "detect", *site_arguments(SUBMITS_DETECTION), *shape])


def site_arguments(kind):
    """Return where a job is submitted to: what the profile says for all jobs, unless the experiment says otherwise."""
    asked = EXPERIMENT.cluster
    site = {
        "partition": site_resource("slurm_partition"),
        "account": site_resource("slurm_account"),
        "qos": site_resource("qos"),
        "constraint": site_resource("constraint"),
    }
    request = {name: str(value) for name, value in site.items() if value and getattr(asked, name) is None}
    return as_arguments({"kind": kind, **request}, "cluster.")


def alternatives(names):
    """Return a wildcard constraint that admits just these names."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def scenes_record(wildcards=None):
    """Return the made data's record, where the experiment makes its data."""
    scenes = EXPERIMENT.data.scenes
    return [f"{scenes.root}/scenes.json"] if scenes is not None else []


def dataset_settings(wildcards):
    """Return the data set's settings as arguments; how it is watched and stored changes nothing."""
    settings = getattr(EXPERIMENT.data, wildcards.dataset).plain()
    content = {name: value for name, value in settings.items() if name not in ("watch", "pack")}
    return as_arguments({wildcards.dataset: content}, "data.")


def pack_setting(wildcards):
    """Return the setting of the packed copy as an argument: a resource, so that it reruns nothing."""
    pack = getattr(getattr(EXPERIMENT.data, wildcards.dataset), "pack", None)
    return "" if pack is None else shlex.join(as_arguments({"images.pack": pack}, "data."))


def tell_missing_pack():
    """Say how to make a packed copy that was asked for after the check: that reruns nothing."""
    images, folder = EXPERIMENT.data.images, Path(project("data/images"))
    if images is None or images.pack is None or not (folder / "manifest.json").exists():
        return
    try:
        named = named_pack(folder)
    except UserError:
        named = None
    if named is None or named != Path(images.pack):
        command = shlex.join(["flsl", "data", "pack", "--images", str(folder), "--out", images.pack])
        print(
            f"data.images.pack: not made yet, images are read from {named or 'their folder'}; {command}",
            file=sys.stderr,
        )


@cache
def dataset_revision(dataset):
    """Return a value that changes when the data set's content changes, not when its files are only touched."""
    return revision(getattr(EXPERIMENT.data, dataset), project(f"data/{dataset}"))


@cache
def made_from(baseline):
    """Return what a baseline's encoder depends on besides its own settings: of a checkpoint the content, not the time."""
    settings = EXPERIMENT.baselines[baseline]
    depends = EXPERIMENT.made_from(settings)
    if settings.checkpoint is not None:
        record = project(f"runs/{baseline}/pretrain/metrics.json")
        depends |= {"checkpoint": sha256_of_input(Path(settings.checkpoint), record)}
    return json.dumps(depends)


def metrics_of(runs):
    """Return the figure files of some runs and baselines."""
    return [
        project(f"runs/{run}/{stage}/metrics.json") for run in runs for stage in ("pretrain", *RESOLVED[run].stages)
    ]


def all_metrics(wildcards=None):
    """Return every figure file of the project."""
    return metrics_of(RUNS + BASELINES)


def runs_shown(wildcards):
    """Return the names of all runs that what is gathered shows: those without a place in the config, too.

    Planned ones have their folders by then. A folder that is removed, or that another config has added, changes it.
    """
    return sorted({*RUNS, *BASELINES, *(folder.name for folder in run_folders(Path(project(""))))})


def ablations_shown(wildcards):
    """Return the names of all ablations, as `runs_shown` does."""
    return sorted({*PLAN.ablations, *ablation_names(Path(project("")))})


def detection_params(stage):
    """Return a params function: what the stage's figures depend on, as JSON, so that no other setting reruns it."""

    def of_run(wildcards):
        experiment = RESOLVED[wildcards.run]
        detection = experiment.detection.plain()
        chosen = {name: detection[name] for name in ("engine", "model", stage)}
        return json.dumps({"seed": experiment.seed, **chosen}, sort_keys=True)

    return of_run


@cache
def davis_parts(run):
    """Return the sequences of each job by the job's name; one job takes the whole split while its list is not there."""
    settings, data = RESOLVED[run].davis, EXPERIMENT.data
    if data.davis is None:
        return {}
    if data.scenes is not None and Path(data.davis.root) == Path(data.scenes.root) / "davis":
        # known before they are made
        names = made_splits(data.scenes).get(settings.split, [])
    else:
        try:
            names = sequence_names(data.davis, settings.split)
        except UserError:
            names = []
    size = settings.sequences_per_job
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    return {davis_part(part): part for part in parts} or {settings.split: []}


def davis_part(names):
    """Return the name of the job that takes these sequences."""
    return names[0] + (f"+{len(names) - 1}" if len(names) > 1 else "")


def davis_protocol(wildcards):
    """Return the settings that the run's masks depend on, as JSON."""
    chosen = {**RESOLVED[wildcards.run].davis.protocol(), "resolution": EXPERIMENT.data.davis.resolution}
    return json.dumps(chosen, sort_keys=True)


def davis_evaluated(wildcards):
    """Return the settings that say which sequences the run's figures are of, as JSON."""
    data = EXPERIMENT.data.davis
    chosen = {"split": RESOLVED[wildcards.run].davis.split, "year": data.year, "resolution": data.resolution}
    return json.dumps(chosen, sort_keys=True)


def davis_sequences(wildcards):
    """Return the arguments that choose a job's sequences."""
    names = davis_parts(wildcards.run)[wildcards.part]
    return ["--sequences", *names] if names else []


def pictures(*names):
    """Return outputs that the report shows, each under its own name."""
    return {
        name: report(
            project(f"runs/{{run}}/visualize/{name}.png"),
            category="Pictures",
            labels={"run": "{run}", "picture": name},
            caption="../report/visualize.rst",
        )
        for name in names
    }


def forget_failed_sync():
    """Remove what a sync that reached no MLflow has left, which is empty, so that the next call syncs again."""
    for path in [Path(project("tracked.txt")), *Path(project("ablations")).glob("*/tracked.txt")]:
        if path.exists() and not path.stat().st_size:
            path.unlink()


def track_arguments():
    """Return the arguments of `flsl track sync`; a store that is down is a warning there, not an error.

    The store is read from a config: its address may hold a password, and commands are shown, logged and kept.
    """
    config_file = project(f"runs/{next(iter(RESOLVED))}/config.yaml")
    return ["--best-effort", "--config", config_file, "--project-folder", project("").rstrip("/")]


def tracked_in():
    """Return a digest of the place that results are sent to: another one is sent to as well."""
    return sha256_json([without_secrets(EXPERIMENT.tracking.uri or ""), EXPERIMENT.tracking.experiment])


wildcard_constraints:
    run=alternatives(RUNS + BASELINES),
    dataset="images|coco|uavdt|davis",


# the report's texts name them; `extends` may bring them in
config.update(project=EXPERIMENT.project, results=EXPERIMENT.results)


onstart:
    write_configs()
    tell_missing_pack()


onsuccess:
    forget_failed_sync()

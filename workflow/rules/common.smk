# From config to params, inputs and places: the one room where rules look up settings.
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from flsl.config.experiment import Experiment
from flsl.config.loading import check, compose, require_data, run_experiment
from flsl.data.manifest import revision
from flsl.runtime.errors import UserError

# a --configfile is laid over the default one by snakemake; a whole experiment must not inherit from the demo
if "project" not in config and "extends" not in config:

    configfile: "config/demo.yaml"


# a snakemake that is called by its path finds the flsl that was installed beside it
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

SOURCE = Path(workflow.configfiles[-1]) if workflow.configfiles else Path("config/demo.yaml")

try:
    EXPERIMENT = check(Experiment, compose(config, SOURCE), str(SOURCE))
    require_data(EXPERIMENT)
    RESOLVED = {run: run_experiment(EXPERIMENT, run) for run in EXPERIMENT.runs}
except UserError as error:
    raise WorkflowError(str(error))

RUNS = list(EXPERIMENT.runs)
BASELINES = list(EXPERIMENT.baselines)


def project(path):
    """Return a path below results/<project>."""
    return f"{EXPERIMENT.results}/{EXPERIMENT.project}/{path}"


def log_of(stage, run="{run}"):
    """Return where a stage's log is written."""
    return project(f"logs/{run}/{stage}.log")


def settings_of(*sections):
    """Return a params function: those sections of the run's settings as JSON, so that no others trigger a rerun."""

    def of_run(wildcards):
        plain = RESOLVED.get(wildcards.run, EXPERIMENT).plain()
        return json.dumps({name: plain[name] for name in sections}, sort_keys=True)

    return of_run


def as_arguments(settings, prefix=""):
    """Return plain settings as the `setting=value` arguments of the flsl command."""
    return [f"{prefix}{name}={json.dumps(value, sort_keys=True)}" for name, value in settings.items()]


def larger(amount):
    """Return a resources function that asks for more on each retry."""
    return lambda wildcards, attempt: amount * attempt


def alternatives(names):
    """Return a wildcard constraint that admits just these names."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def scenes_record(wildcards=None):
    """Return the made data's record, where the experiment makes its data."""
    scenes = EXPERIMENT.data.scenes
    return [f"{scenes.root}/scenes.json"] if scenes is not None else []


def dataset_settings(wildcards):
    """Return the data set's settings as arguments."""
    return as_arguments(
        {wildcards.dataset: getattr(EXPERIMENT.data, wildcards.dataset).plain()},
        "data.",
    )


@cache
def dataset_revision(dataset):
    """Return a value that changes when the data set's content changes, not when its files are only touched."""
    return revision(getattr(EXPERIMENT.data, dataset), project(f"data/{dataset}"))


def all_metrics(wildcards=None):
    """Return every figure file of the project."""
    return [
        project(f"runs/{run}/{stage}/metrics.json")
        for run in RUNS + BASELINES
        for stage in ("pretrain", *EXPERIMENT.stages)
    ]


def track_arguments():
    """Return the arguments of `flsl track sync`; a store that is down is a warning there, not an error."""
    uri = EXPERIMENT.tracking.uri
    return [
        "--best-effort",
        "--project-folder",
        project("").rstrip("/"),
        *([] if uri is None else ["--uri", uri]),
    ]


wildcard_constraints:
    run=alternatives(RUNS + BASELINES),
    dataset="images|coco|uavdt|davis",

# From config to params, inputs and places: the one room where rules look up settings.
import json
import re
import shlex
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from flsl.config.experiment import Experiment
from flsl.config.loading import check, compose, run_experiment
from flsl.data.manifest import revision
from flsl.runtime.errors import UserError

# a --configfile is laid over the default one by snakemake; a whole experiment must not inherit from the demo
if "project" not in config and "extends" not in config:

    configfile: "config/demo.yaml"


FLSL = f"{shlex.quote(sys.executable)} -m flsl"
SOURCE = (
    Path(workflow.configfiles[-1]) if workflow.configfiles else Path("config/demo.yaml")
)

try:
    EXPERIMENT = check(Experiment, compose(config, SOURCE), str(SOURCE))
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
    return [
        f"{prefix}{name}={json.dumps(value, sort_keys=True)}"
        for name, value in settings.items()
    ]


def larger(amount):
    """Return a resources function that asks for more on each retry."""
    return lambda wildcards, attempt: amount * attempt


def alternatives(names):
    """Return a wildcard constraint that admits just these names."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


wildcard_constraints:
    run=alternatives(RUNS + BASELINES),
    dataset="images|coco|uavdt|davis",


# A run's whole settings, for the stages to read. The stages take this file as `ancient`: it changes with any setting,
# and their params, not its time, say what concerns them.
rule run_config:
    output:
        project("runs/{run}/config.yaml"),
    log:
        log_of("config"),
    localrule: True
    params:
        settings=lambda wildcards: as_arguments(
            RESOLVED.get(wildcards.run, EXPERIMENT).plain()
        ),
    message:
        "Settings of {wildcards.run}"
    shell:
        "{FLSL} config {params.settings:q} --out {output:q} > {log:q} 2>&1"

# What the rules ask of the plan: which runs make a stage, which share it, and what an ablation's table is made from.
from flsl.runtime.sharing import SHARED_FILES


def sharers(stage):
    """Return the runs that take a stage from another run, which makes it with the very settings that concern it."""
    return [name for name, run in PLAN.runs.items() if stage in run.shares]


def makers(stage):
    """Return a wildcard constraint: the runs and baselines that make a stage themselves."""
    return alternatives(set(RUNS + BASELINES) - set(sharers(stage)))


def files_of_ablation(name):
    """Return the tables and the figure of an ablation."""
    return [project(f"ablations/{name}/{file}") for file in ("table.csv", "table.md", "figure.png")]


def metrics_of_points(wildcards):
    """Return the figure files that an ablation's table shows."""
    ablation = PLAN.ablations[wildcards.ablation]
    return [
        project(f"runs/{point.run}/{stage}/metrics.json")
        for point in ablation.points
        for stage in ("pretrain", *ablation.stages)
    ]


def checkpoint_of_run(wildcards):
    """Return the checkpoint of a run's pretraining, in the folder of the run that makes it."""
    maker = PLAN.runs[wildcards.run].shares.get("pretrain", wildcards.run)
    return project(f"runs/{maker}/pretrain/checkpoint.pth")


def shared_files(stage):
    """Return an input function: a stage's files of the run that makes it."""

    def of_run(wildcards):
        owner = PLAN.runs[wildcards.run].shares[stage]
        return [project(f"runs/{owner}/{stage}/{file}") for file in SHARED_FILES[stage]]

    return of_run


def requested(rule):
    """Return the jobs of a rule that were asked for, whether or not they could run."""
    return [job for job in workflow.dag.jobs if job.rule.name == rule]


def tabulate_what_there_is():
    """Make the tables of the ablations that were asked for, though points have failed."""
    for job in requested("tabulate_ablation"):
        arguments = [job.wildcards.ablation, "--project-folder", project("").rstrip("/")]
        subprocess.run(["flsl", "ablation", "table", *arguments])

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
    return [project(f"ablations/{name}/{file}") for file in ("table.csv", "table.md", "table.html", "figure.png")]


def metrics_of_points(name):
    """Return the figure files of an ablation's points."""
    ablation = PLAN.ablations[name]
    return [
        project(f"runs/{point.run}/{stage}/metrics.json")
        for point in ablation.points
        for stage in ("pretrain", *ablation.stages)
    ]


def metrics_beside_points(name):
    """Return the figure files of the untrained encoder, which stands below an ablation's points."""
    stages = [stage for stage in PLAN.ablations[name].stages if stage in EXPERIMENT.stages]
    untrained = [name for name, baseline in EXPERIMENT.baselines.items() if baseline.kind == "random"]
    return [project(f"runs/{baseline}/{stage}/metrics.json") for baseline in untrained for stage in stages]


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


def make_what_there_is():
    """Make what is gathered from all runs of the runs that there are, as far as it was asked for.

    After a failure these jobs cannot start, as some of their inputs will not come; what they run shows that as missing.
    """
    for job in workflow.dag.jobs:
        if job.rule.name in ("tabulate_ablation", "summary", "curves", "bars"):
            for log in job.log:
                Path(log).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["bash", "-c", job.shellcmd])
            for path in filter(os.path.exists, job.output):
                # snakemake did not make them: an old time lets it make them again, whatever changes until then
                now = os.stat(path).st_mtime
                os.utime(path, (now, now - 1e9))

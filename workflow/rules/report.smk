# What people look at: the summary, figures, and MLflow brought to what the files say.


def all_metrics(wildcards=None):
    """Return every figure file of the project."""
    return [
        project(f"runs/{run}/{stage}/metrics.json")
        for run in RUNS + BASELINES
        for stage in ("pretrain", *EXPERIMENT.stages)
    ]


rule summary:
    input:
        all_metrics,
    output:
        markdown=report(
            project("summary.md"), category="Summary", caption="../report/summary.rst"
        ),
        csv=report(
            project("summary.csv"), category="Summary", caption="../report/summary.rst"
        ),
    log:
        project("logs/summary.log"),
    localrule: True
    params:
        folder=subpath(output.csv, parent=True),
    message:
        "Summary of all runs"
    shell:
        "{FLSL} report summary --project-folder {params.folder:q} --out-md {output.markdown:q} "
        "--out-csv {output.csv:q} > {log:q} 2>&1"


rule curves:
    input:
        expand(project("runs/{run}/pretrain/metrics.json"), run=RUNS),
    output:
        report(
            project("curves.png"),
            category="Pretraining",
            caption="../report/curves.rst",
        ),
    log:
        project("logs/curves.log"),
    localrule: True
    params:
        folder=subpath(output[0], parent=True),
    message:
        "Training curves"
    shell:
        "{FLSL} report curves --project-folder {params.folder:q} --out {output:q} > {log:q} 2>&1"


rule bars:
    input:
        all_metrics,
    output:
        report(project("bars.png"), category="Summary", caption="../report/summary.rst"),
    log:
        project("logs/bars.log"),
    localrule: True
    params:
        folder=subpath(output[0], parent=True),
    message:
        "Chart of all runs"
    shell:
        "{FLSL} report bars --project-folder {params.folder:q} --out {output:q} > {log:q} 2>&1"


TRACK = f"{FLSL} track sync --best-effort --project-folder {shlex.quote(project('').rstrip('/'))}"
if EXPERIMENT.tracking.uri is not None:
    TRACK += f" --uri {shlex.quote(EXPERIMENT.tracking.uri)}"


rule track:
    input:
        all_metrics,
        project("curves.png"),
    output:
        project("tracked.txt"),
    localrule: True
    message:
        "Bringing MLflow to what the files say"
    shell:
        "{TRACK} 2>&1 | tee {output:q}"


onerror:
    # what did succeed is to be seen as well
    shell("{TRACK} || true")

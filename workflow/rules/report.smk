# What people look at: the summary, figures, and MLflow brought to what the files say.


rule summary:
    input:
        all_metrics,
    output:
        markdown=project("summary.md"),
        html=report(
            project("summary.html"),
            category="Summary",
            labels={"what": "1. What ran, on what data, and what came out"},
            caption="../report/summary.rst",
        ),
        csv=report(
            project("summary.csv"),
            category="Summary",
            labels={"what": "3. All runs × all figures (CSV)"},
            caption="../report/table.rst",
        ),
        pages=report(
            directory(project("pages")),
            patterns=["{run}.html"],
            category="Runs",
            labels={"run": "{run}", "stage": "all, on one page"},
            caption="../report/run.rst",
        ),
    log:
        project("logs/summary.log"),
    localrule: True
    conda:
        "../../envs/flsl.yaml"
    params:
        folder=subpath(output.csv, parent=True),
        runs=runs_shown,
        ablations=ablations_shown,
        # it names their points
        points=sha256_json([record(PLAN, name) for name in PLAN.ablations]),
    message:
        "Summary of all runs"
    shell:
        "flsl report summary --project-folder {params.folder:q} --out-md {output.markdown:q} "
        "--out-html {output.html:q} --out-csv {output.csv:q} --out-pages {output.pages:q} > {log:q} 2>&1"


rule curves:
    input:
        expand(project("runs/{run}/pretrain/metrics.json"), run=RUNS),
    output:
        report(
            project("curves.png"),
            category="Summary",
            labels={"what": "4. Training curves"},
            caption="../report/curves.rst",
        ),
    log:
        project("logs/curves.log"),
    localrule: True
    conda:
        "../../envs/flsl.yaml"
    params:
        folder=subpath(output[0], parent=True),
        runs=runs_shown,
    message:
        "Training curves"
    shell:
        "flsl report curves --project-folder {params.folder:q} --out {output:q} > {log:q} 2>&1"


rule bars:
    input:
        all_metrics,
    output:
        report(
            project("bars.png"),
            category="Summary",
            labels={"what": "2. Headline figures of all runs"},
            caption="../report/bars.rst",
        ),
    log:
        project("logs/bars.log"),
    localrule: True
    conda:
        "../../envs/flsl.yaml"
    params:
        folder=subpath(output[0], parent=True),
        runs=runs_shown,
    message:
        "Chart of all runs"
    shell:
        "flsl report bars --project-folder {params.folder:q} --out {output:q} > {log:q} 2>&1"


rule track:
    input:
        all_metrics,
        project("curves.png"),
        [files_of_ablation(name) for name in PLAN.ablations],
    output:
        project("tracked.txt"),
    log:
        project("logs/track.log"),
    localrule: True
    conda:
        "../../envs/flsl.yaml"
    params:
        arguments=track_arguments(),
        place=tracked_in(),
        runs=runs_shown,
        ablations=ablations_shown,
    message:
        "Bringing MLflow to what the files say"
    # a server that is down is seen on the console and in the log, and leaves no words in the output
    shell:
        "{{ flsl track sync {params.arguments:q} 2>&1 >&3 | tee {log:q} >&2; }} 3>&1 | tee {output:q}"


onerror:
    # what did succeed is to be seen as well
    make_what_there_is()
    subprocess.run(["flsl", "track", "sync", *track_arguments()])
    forget_failed_sync()

# Ablations: their tables and figures, a target for each, and what runs share instead of computing it again.


# A run that differs from another one only in what does not concern a stage takes the stage from it: links to the large
# files, and the record under its own name.
for STAGE in SHARED_FILES:
    if sharers(STAGE):

        rule:
            name:
                f"share_{STAGE}"
            input:
                shared_files(STAGE),
            output:
                [project(f"runs/{{run}}/{STAGE}/{file}") for file in SHARED_FILES[STAGE]],
            log:
                log_of(STAGE),
            wildcard_constraints:
                run=alternatives(sharers(STAGE)),
            localrule: True
            conda:
                "../../envs/flsl.yaml"
            params:
                source=subpath(input[0], parent=True),
                folder=subpath(output[0], parent=True),
            message:
                "{wildcards.run} shares {params.source}"
            shell:
                "flsl ablation share --stage-folder {params.source:q} --name {wildcards.run:q} "
                "--out {params.folder:q} > {log:q} 2>&1"


# When points fail, this job cannot start: `onerror` then runs its command, which shows the failed points as missing.
rule tabulate_ablation:
    input:
        lambda wildcards: metrics_of_points(wildcards.ablation),
        lambda wildcards: metrics_beside_points(wildcards.ablation),
    output:
        csv=report(
            project("ablations/{ablation}/table.csv"),
            category="Ablations",
            labels={"ablation": "{ablation}", "shown as": "table (CSV)"},
            caption="../report/ablation.rst",
        ),
        markdown=project("ablations/{ablation}/table.md"),
        html=report(
            project("ablations/{ablation}/table.html"),
            category="Ablations",
            labels={"ablation": "{ablation}", "shown as": "table"},
            caption="../report/ablation.rst",
        ),
        figure=report(
            project("ablations/{ablation}/figure.png"),
            category="Ablations",
            labels={"ablation": "{ablation}", "shown as": "figure"},
            caption="../report/ablation.rst",
        ),
    log:
        project("logs/ablations/{ablation}.log"),
    wildcard_constraints:
        ablation=alternatives(PLAN.ablations),
    localrule: True
    conda:
        "../../envs/flsl.yaml"
    params:
        # the command reads them from ablation.json, which is written before any job starts
        ablation=lambda wildcards: json.dumps(record(PLAN, wildcards.ablation), sort_keys=True),
        folder=subpath(output.csv, ancestor=3),
    message:
        "Tables and figure of the ablation {wildcards.ablation}"
    shell:
        "flsl ablation table {wildcards.ablation:q} --project-folder {params.folder:q} > {log:q} 2>&1"


rule track_ablation:
    input:
        files_of_ablation("{ablation}"),
    output:
        project("ablations/{ablation}/tracked.txt"),
    log:
        project("logs/ablations/{ablation}_track.log"),
    wildcard_constraints:
        ablation=alternatives(PLAN.ablations),
    localrule: True
    conda:
        "../../envs/flsl.yaml"
    params:
        arguments=track_arguments(),
        place=tracked_in(),
    message:
        "Bringing MLflow to what the files say, after the ablation {wildcards.ablation}"
    # a server that is down is seen on the console and in the log, and leaves no words in the output
    shell:
        "{{ flsl track sync {params.arguments:q} 2>&1 >&3 | tee {log:q} >&2; }} 3>&1 | tee {output:q}"


for NAME in PLAN.ablations:

    rule:
        name:
            f"ablation_{NAME}"
        input:
            # each point's figures by name, so that deleted ones are missed and made again
            metrics_of_points(NAME),
            files_of_ablation(NAME),
            project(f"ablations/{NAME}/tracked.txt"),


rule all_ablations:
    input:
        [metrics_of_points(name) for name in PLAN.ablations],
        [files_of_ablation(name) for name in PLAN.ablations],
        [project(f"ablations/{name}/tracked.txt") for name in PLAN.ablations],

# Video object segmentation: labels propagated through DAVIS' sequences, a job for one or a few of them, then J and F.


# What a job has made stays when it fails or is started again, and is not made twice: the folders are no outputs.
rule davis_propagate:
    input:
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        davis=project("data/davis/manifest.json"),
    output:
        touch(project("runs/{run}/davis/parts/{part}.done")),
    log:
        project("logs/{run}/davis/{part}.log"),
    benchmark:
        project("benchmarks/{run}/davis/{part}.tsv")
    wildcard_constraints:
        run=makers("davis"),
        part=alternatives({part for run in RUNS + BASELINES for part in davis_parts(run)}),
    # a job that failed for a passing reason goes on with the sequences that it has not made yet
    retries: 1
    conda:
        "../../envs/flsl.yaml"
    threads: 4
    resources:
        mem_mb=larger(8000),
        runtime=larger(120),
        gpu=GPU,
    params:
        config=config_of_run,
        settings=davis_protocol,
        root=lambda wildcards: EXPERIMENT.data.davis.root,
        folder=project("runs/{run}/davis"),
        sequences=davis_sequences,
    message:
        "Propagating labels of {wildcards.run}: {wildcards.part}"
    shell:
        "flsl davis propagate --config {params.config:q} --name {wildcards.run:q} --backbone {input.backbone:q} "
        "--davis {params.root:q} --out {params.folder:q}/masks --previews {params.folder:q}/previews "
        "{params.sequences:q} > {log:q} 2>&1"


rule davis_evaluate:
    input:
        lambda wildcards: [
            project(f"runs/{wildcards.run}/davis/parts/{part}.done") for part in davis_parts(wildcards.run)
        ],
        davis=project("data/davis/manifest.json"),
    output:
        metrics=report(
            project("runs/{run}/davis/metrics.json"),
            category="Runs",
            labels={"run": "{run}", "stage": "davis"},
            caption="../report/davis.rst",
        ),
        sheets=report(
            directory(project("runs/{run}/davis/sheets")),
            patterns=["{sequence}.jpg"],
            category="Videos",
            labels={"run": "{run}", "sequence": "{sequence}"},
            caption="../report/davis.rst",
        ),
    log:
        log_of("davis"),
    benchmark:
        project("benchmarks/{run}/davis.tsv")
    wildcard_constraints:
        run=makers("davis"),
    conda:
        "../../envs/flsl.yaml"
    threads: 8
    resources:
        mem_mb=larger(4000),
        runtime=larger(30),
    params:
        config=config_of_run,
        settings=davis_evaluated,
        root=lambda wildcards: EXPERIMENT.data.davis.root,
        folder=subpath(output.metrics, parent=True),
    message:
        "J and F of {wildcards.run}"
    shell:
        "flsl davis evaluate --config {params.config:q} --name {wildcards.run:q} --davis {params.root:q} "
        "--masks {params.folder:q}/masks --previews {params.folder:q}/previews --sheets {output.sheets:q} "
        "--where-annotated --out {output.metrics:q} --jobs {threads} > {log:q} 2>&1"

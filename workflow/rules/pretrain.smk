# FLSL pretraining, and the baselines that are evaluated beside it.


# The newest checkpoints and history.jsonl are no outputs: snakemake removes outputs before it starts a job, and a job
# that starts again goes on from them. On a cluster this is a local rule, which submits a job of several nodes and waits
# for it.
rule pretrain:
    input:
        unpack(previous_stage),
        images=project("data/images/manifest.json"),
    output:
        checkpoint=project("runs/{run}/pretrain/checkpoint.pth"),
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        metrics=report(
            project("runs/{run}/pretrain/metrics.json"),
            category="Runs",
            labels={"run": "{run}", "stage": "pretrain"},
            caption="../report/pretrain.rst",
        ),
    log:
        log_of("pretrain"),
    benchmark:
        project("benchmarks/{run}/pretrain.tsv")
    wildcard_constraints:
        run=alternatives(set(RUNS) - set(sharers("pretrain"))),
    localrule: SUBMITS != "none"
    conda:
        "../../envs/flsl.yaml"
    threads: 1 if SUBMITS == "slurm" else 8
    resources:
        mem_mb=larger(16000),
        runtime=larger(2880),
        gpu=GPU,
        command=pretrain_command,
    params:
        config=config_of_run,
        settings=settings_of("seed", "pretrain"),
        previous=lambda wildcards, input: ["--previous", input.previous] if "previous" in input.keys() else [],
        images=subpath(input.images, parent=True),
        folder=subpath(output.metrics, parent=True),
    message:
        "Pretraining {wildcards.run}; its progress is in {log}"
    shell:
        "flsl {resources.command} --config {params.config:q} --name {wildcards.run:q} --images {params.images:q} "
        "{params.previous:q} --out {params.folder:q} 2>&1 | tee -i {log:q}"


# A checkpoint is no input: its content counts and not its time, and one that is gone later restarts nothing.
rule baseline:
    output:
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        metrics=project("runs/{run}/pretrain/metrics.json"),
    log:
        log_of("baseline"),
    wildcard_constraints:
        run=alternatives(BASELINES),
    conda:
        "../../envs/flsl.yaml"
    resources:
        mem_mb=larger(4000),
        runtime=larger(30),
    params:
        config=config_of_run,
        baseline=lambda wildcards: EXPERIMENT.baselines[wildcards.run].model_dump_json(),
        made_from=lambda wildcards: made_from(wildcards.run),
        folder=subpath(output.metrics, parent=True),
    message:
        "Baseline {wildcards.run}"
    shell:
        "flsl baseline --config {params.config:q} --name {wildcards.run:q} --out {params.folder:q} > {log:q} 2>&1"

# Pictures of what is learnt: attention, features and, where there is a projection head, prototypes.


rule visualize:
    input:
        encoder=checkpoint_of_run,
        images=project("data/images/manifest.json"),
    output:
        **pictures("segments", "pca", "attention", "prototypes", "usage"),
        metrics=project("runs/{run}/visualize/metrics.json"),
    log:
        log_of("visualize"),
    benchmark:
        project("benchmarks/{run}/visualize.tsv")
    wildcard_constraints:
        run=alternatives(set(RUNS) - set(sharers("visualize"))),
    conda:
        "../../envs/flsl.yaml"
    threads: max(8, EXPERIMENT.compute.workers)
    resources:
        mem_mb=larger(8000),
        runtime=larger(60),
        gpu=GPU,
    params:
        config=config_of_run,
        settings=settings_of("visualize"),
        images=subpath(input.images, parent=True),
        folder=subpath(output.metrics, parent=True),
    message:
        "Pictures of what {wildcards.run} has learnt"
    shell:
        "flsl visualize --config {params.config:q} --name {wildcards.run:q} --encoder {input.encoder:q} --epochs "
        "--images {params.images:q} --out {params.folder:q} > {log:q} 2>&1"


# an encoder alone has no prototypes
use rule visualize as visualize_baseline with:
    input:
        encoder=project("runs/{run}/pretrain/backbone.safetensors"),
        images=project("data/images/manifest.json"),
    output:
        **pictures("pca", "attention"),
        metrics=project("runs/{run}/visualize/metrics.json"),
    wildcard_constraints:
        run=alternatives(BASELINES),
    params:
        # what a checkpoint of ours tells itself
        defaults=lambda wildcards: json.dumps(
            [
                EXPERIMENT.seed,
                EXPERIMENT.pretrain.views.teacher_size,
                *(EXPERIMENT.pretrain.plain()[tau] for tau in ("tau_sa", "tau_ca")),
            ]
        ),
    message:
        "Pictures of the baseline {wildcards.run}"

# Probes of the frozen encoder: features once a run, k-NN on them, a grid of linear probes, bbox-aligned k-NN.


rule features:
    input:
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        images=project("data/images/manifest.json"),
    output:
        train=project("runs/{run}/features/train.safetensors"),
        val=project("runs/{run}/features/val.safetensors"),
        metrics=project("runs/{run}/features/metrics.json"),
    log:
        log_of("features"),
    benchmark:
        project("benchmarks/{run}/features.tsv")
    wildcard_constraints:
        run=makers("features"),
    conda:
        "../../envs/flsl.yaml"
    threads: max(8, EXPERIMENT.compute.workers)
    resources:
        mem_mb=larger(8000),
        runtime=larger(120),
        gpu=GPU,
    params:
        config=config_of_run,
        settings=settings_of("features"),
        images=subpath(input.images, parent=True),
        folder=subpath(output.metrics, parent=True),
    message:
        "Features of {wildcards.run}"
    shell:
        "flsl features --config {params.config:q} --name {wildcards.run:q} --backbone {input.backbone:q} "
        "--images {params.images:q} --out {params.folder:q} > {log:q} 2>&1"


rule knn:
    input:
        train=project("runs/{run}/features/train.safetensors"),
        val=project("runs/{run}/features/val.safetensors"),
    output:
        metrics=report(
            project("runs/{run}/knn/metrics.json"),
            category="Runs",
            labels={"run": "{run}", "stage": "knn"},
            caption="../report/knn.rst",
        ),
    log:
        log_of("knn"),
    benchmark:
        project("benchmarks/{run}/knn.tsv")
    wildcard_constraints:
        run=makers("knn"),
    conda:
        "../../envs/flsl.yaml"
    threads: max(8, EXPERIMENT.compute.workers)
    resources:
        mem_mb=larger(8000),
        runtime=larger(60),
        gpu=GPU,
    params:
        config=config_of_run,
        settings=settings_of("knn"),
        features=subpath(input.train, parent=True),
        folder=subpath(output.metrics, parent=True),
    message:
        "k-NN of {wildcards.run}"
    shell:
        "flsl knn --config {params.config:q} --name {wildcards.run:q} --features {params.features:q} "
        "--out {params.folder:q} > {log:q} 2>&1"


rule linear:
    input:
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        images=project("data/images/manifest.json"),
    output:
        metrics=report(
            project("runs/{run}/linear/metrics.json"),
            category="Runs",
            labels={"run": "{run}", "stage": "linear"},
            caption="../report/linear.rst",
        ),
    log:
        log_of("linear"),
    benchmark:
        project("benchmarks/{run}/linear.tsv")
    wildcard_constraints:
        run=makers("linear"),
    conda:
        "../../envs/flsl.yaml"
    threads: max(8, EXPERIMENT.compute.workers)
    resources:
        mem_mb=larger(8000),
        runtime=larger(1440),
        gpu=GPU,
    params:
        config=config_of_run,
        settings=settings_of("seed", "features", "linear"),
        images=subpath(input.images, parent=True),
        folder=subpath(output.metrics, parent=True),
    message:
        "Linear probes of {wildcards.run}"
    shell:
        "flsl linear --config {params.config:q} --name {wildcards.run:q} --backbone {input.backbone:q} "
        "--images {params.images:q} --out {params.folder:q} > {log:q} 2>&1"


rule aligned_knn:
    input:
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        images=project("data/images/manifest.json"),
    output:
        metrics=report(
            project("runs/{run}/aligned_knn/metrics.json"),
            category="Runs",
            labels={"run": "{run}", "stage": "aligned_knn"},
            caption="../report/aligned_knn.rst",
        ),
    log:
        log_of("aligned_knn"),
    benchmark:
        project("benchmarks/{run}/aligned_knn.tsv")
    wildcard_constraints:
        run=makers("aligned_knn"),
    conda:
        "../../envs/flsl.yaml"
    threads: max(8, EXPERIMENT.compute.workers)
    resources:
        mem_mb=larger(8000),
        runtime=larger(120),
        gpu=GPU,
    params:
        config=config_of_run,
        settings=settings_of("features", "aligned_knn"),
        images=subpath(input.images, parent=True),
        folder=subpath(output.metrics, parent=True),
    message:
        "bbox-aligned k-NN of {wildcards.run}"
    shell:
        "flsl aligned-knn --config {params.config:q} --name {wildcards.run:q} --backbone {input.backbone:q} "
        "--images {params.images:q} --out {params.folder:q} > {log:q} 2>&1"

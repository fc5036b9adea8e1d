# Detection: Mask R-CNN on COCO and Faster R-CNN on UAVDT, fine-tuned from a run's or a baseline's encoder.
DETECTION_ENV = "../../envs/detectron2.yaml" if EXPERIMENT.detection.engine == "detectron2" else "../../envs/flsl.yaml"


# history.jsonl and the checkpoints are no outputs: snakemake removes outputs before it starts a job, and a fine-tuning
# that starts again goes on from them. Where it asks for several processes, it is a local rule on a cluster, as
# pretraining is.
rule coco:
    input:
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        images=project("data/coco/manifest.json"),
    output:
        model=project("runs/{run}/coco/model.pth"),
        detections=project("runs/{run}/coco/detections.json"),
        metrics=report(
            project("runs/{run}/coco/metrics.json"),
            category="Runs",
            labels={"run": "{run}", "stage": "coco"},
            caption="../report/coco.rst",
        ),
    log:
        log_of("coco"),
    benchmark:
        project("benchmarks/{run}/coco.tsv")
    wildcard_constraints:
        run=makers("coco"),
    localrule: SUBMITS_DETECTION != "none"
    conda:
        DETECTION_ENV
    threads: 1 if SUBMITS_DETECTION == "slurm" else 8
    resources:
        mem_mb=larger(32000),
        runtime=larger(2880),
        gpu=GPU,
        command=detect_command,
    params:
        config=config_of_run,
        settings=detection_params("coco"),
        folder=subpath(output.metrics, parent=True),
    message:
        "Mask R-CNN on COCO from {wildcards.run}; its progress is in {log}"
    shell:
        "flsl {resources.command} --stage coco --config {params.config:q} --name {wildcards.run:q} "
        "--backbone {input.backbone:q} --out {params.folder:q} 2>&1 | tee -i {log:q}"


rule uavdt:
    input:
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        images=project("data/uavdt/manifest.json"),
    output:
        model=project("runs/{run}/uavdt/model.pth"),
        detections=project("runs/{run}/uavdt/detections.json"),
        truth=project("runs/{run}/uavdt/test.json"),
        metrics=report(
            project("runs/{run}/uavdt/metrics.json"),
            category="Runs",
            labels={"run": "{run}", "stage": "uavdt"},
            caption="../report/uavdt.rst",
        ),
    log:
        log_of("uavdt"),
    benchmark:
        project("benchmarks/{run}/uavdt.tsv")
    wildcard_constraints:
        run=makers("uavdt"),
    localrule: SUBMITS_DETECTION != "none"
    conda:
        DETECTION_ENV
    threads: 1 if SUBMITS_DETECTION == "slurm" else 8
    resources:
        mem_mb=larger(32000),
        runtime=larger(2880),
        gpu=GPU,
        command=detect_command,
    params:
        config=config_of_run,
        settings=detection_params("uavdt"),
        folder=subpath(output.metrics, parent=True),
    message:
        "Faster R-CNN on UAVDT from {wildcards.run}; its progress is in {log}"
    shell:
        "flsl {resources.command} --stage uavdt --config {params.config:q} --name {wildcards.run:q} "
        "--backbone {input.backbone:q} --out {params.folder:q} 2>&1 | tee -i {log:q}"

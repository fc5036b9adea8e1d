# Video object segmentation: labels propagated through DAVIS' sequences, a job for one or a few of them, then J and F.
from flsl.data.scenes.davis import splits as made_splits
from flsl.video.sequences import sequence_names


@cache
def davis_parts(run):
    """Return the sequences of each job by the job's name; one job takes the whole split while its list is not there."""
    settings, data = RESOLVED.get(run, EXPERIMENT).davis, EXPERIMENT.data
    if data.davis is None:
        return {}
    root = Path(data.davis.root)
    if data.scenes is not None and root == Path(data.scenes.root) / "davis":
        # known before they are made
        names = made_splits(data.scenes).get(settings.split, [])
    else:
        try:
            names = sequence_names(root, settings)
        except UserError:
            names = []
    size = settings.sequences_per_job
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    return {davis_part(part): part for part in parts} or {settings.split: []}


def davis_part(names):
    """Return the name of the job that takes these sequences."""
    return names[0] + (f"+{len(names) - 1}" if len(names) > 1 else "")


def davis_protocol(*names):
    """Return a params function: the run's protocol as JSON, or only the settings of it with these names."""

    def of_run(wildcards):
        protocol = RESOLVED.get(wildcards.run, EXPERIMENT).davis.protocol()
        chosen = {name: protocol[name] for name in names} if names else protocol
        return json.dumps(chosen, sort_keys=True)

    return of_run


def davis_sequences(wildcards):
    """Return the arguments that choose a job's sequences."""
    names = davis_parts(wildcards.run)[wildcards.part]
    return ["--sequences", *names] if names else []


# What a job has made stays when it fails or is started again, and is not made twice: the folders are no outputs.
rule davis_propagate:
    input:
        config=ancient(project("runs/{run}/config.yaml")),
        backbone=project("runs/{run}/pretrain/backbone.safetensors"),
        davis=project("data/davis/manifest.json"),
    output:
        touch(project("runs/{run}/davis/parts/{part}.done")),
    log:
        project("logs/{run}/davis/{part}.log"),
    benchmark:
        project("benchmarks/{run}/davis/{part}.tsv")
    wildcard_constraints:
        part=alternatives({part for run in RUNS + BASELINES for part in davis_parts(run)}),
    # a job that failed for a passing reason goes on with the sequences that it has not made yet
    retries: 1
    conda:
        "../../envs/flsl.yaml"
    threads: 4
    resources:
        mem_mb=larger(8000),
        runtime=larger(120),
        gpu=1,
    params:
        settings=davis_protocol(),
        root=lambda wildcards: EXPERIMENT.data.davis.root,
        folder=project("runs/{run}/davis"),
        sequences=davis_sequences,
    message:
        "Propagating labels of {wildcards.run}: {wildcards.part}"
    shell:
        "flsl davis propagate --config {input.config:q} --name {wildcards.run:q} --backbone {input.backbone:q} "
        "--davis {params.root:q} --out {params.folder:q}/masks --previews {params.folder:q}/previews "
        "{params.sequences:q} > {log:q} 2>&1"


rule davis_evaluate:
    input:
        lambda wildcards: [
            project(f"runs/{wildcards.run}/davis/parts/{part}.done") for part in davis_parts(wildcards.run)
        ],
        config=ancient(project("runs/{run}/config.yaml")),
        davis=project("data/davis/manifest.json"),
    output:
        metrics=report(
            project("runs/{run}/davis/metrics.json"),
            category="Video object segmentation",
            labels={"run": "{run}", "sequence": "figures"},
            caption="../report/davis.rst",
        ),
        sheets=report(
            directory(project("runs/{run}/davis/sheets")),
            patterns=["{sequence}.jpg"],
            category="Video object segmentation",
            labels={"run": "{run}", "sequence": "{sequence}"},
            caption="../report/davis.rst",
        ),
    log:
        log_of("davis"),
    benchmark:
        project("benchmarks/{run}/davis.tsv")
    conda:
        "../../envs/flsl.yaml"
    threads: 8
    resources:
        mem_mb=larger(4000),
        runtime=larger(30),
    params:
        settings=davis_protocol("split", "year", "resolution"),
        root=lambda wildcards: EXPERIMENT.data.davis.root,
        folder=subpath(output.metrics, parent=True),
    message:
        "J and F of {wildcards.run}"
    shell:
        "flsl davis evaluate --config {input.config:q} --name {wildcards.run:q} --davis {params.root:q} "
        "--masks {params.folder:q}/masks --previews {params.folder:q}/previews --sheets {output.sheets:q} "
        "--where-annotated --out {output.metrics:q} --jobs {threads} > {log:q} 2>&1"

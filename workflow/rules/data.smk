# Made data for the demo, and the manifests on which everything downstream depends.


def scenes_record(wildcards=None):
    """Return the made data's record, where the experiment makes its data."""
    scenes = EXPERIMENT.data.scenes
    return [f"{scenes.root}/scenes.json"] if scenes is not None else []


def dataset_settings(wildcards):
    """Return the data set's settings as arguments."""
    return as_arguments(
        {wildcards.dataset: getattr(EXPERIMENT.data, wildcards.dataset).plain()},
        "data.",
    )


@cache
def dataset_revision(dataset):
    """Return a value that changes when the data set's content changes, not when its files are only touched."""
    return revision(getattr(EXPERIMENT.data, dataset), project(f"data/{dataset}"))


if EXPERIMENT.data.scenes is not None:

    rule scenes:
        output:
            scenes_record(),
        log:
            project("logs/scenes.log"),
        benchmark:
            project("benchmarks/scenes.tsv")
        threads: 8
        resources:
            mem_mb=larger(2000),
            runtime=larger(30),
        params:
            settings=as_arguments({"scenes": EXPERIMENT.data.scenes.plain()}, "data."),
            root=EXPERIMENT.data.scenes.root,
        message:
            "Making the demo's data in {params.root}"
        shell:
            "{FLSL} data scenes {params.settings:q} --out {params.root:q} --jobs {threads} > {log:q} 2>&1"


rule data_check:
    input:
        scenes_record,
    output:
        report(
            project("data/{dataset}/manifest.json"),
            category="Data",
            labels={"data set": "{dataset}"},
            caption="../report/manifest.rst",
        ),
    log:
        project("logs/data_{dataset}.log"),
    benchmark:
        project("benchmarks/data_{dataset}.tsv")
    threads: 8
    resources:
        mem_mb=larger(4000),
        runtime=larger(240),
    params:
        settings=dataset_settings,
        revision=lambda wildcards: dataset_revision(wildcards.dataset),
        folder=subpath(output[0], parent=True),
    message:
        "Checking the data set {wildcards.dataset}"
    shell:
        "{FLSL} data check {wildcards.dataset} {params.settings:q} --revision {params.revision:q} "
        "--out {params.folder:q} --jobs {threads} > {log:q} 2>&1"

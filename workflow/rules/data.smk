# Made data for the demo, and the manifests on which everything downstream depends.


if EXPERIMENT.data.scenes is not None:

    rule scenes:
        output:
            scenes_record(),
        log:
            project("logs/scenes.log"),
        benchmark:
            project("benchmarks/scenes.tsv")
        conda:
            "../../envs/flsl.yaml"
        threads: 8
        resources:
            mem_mb=larger(2000),
            runtime=larger(30),
        params:
            settings=as_arguments({"scenes": EXPERIMENT.data.scenes.plain()}, "data."),
            root=subpath(output[0], parent=True),
        message:
            "Making the demo's data in {params.root}"
        shell:
            "flsl data scenes {params.settings:q} --out {params.root:q} --jobs {threads} > {log:q} 2>&1"


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
    conda:
        "../../envs/flsl.yaml"
    threads: 8
    resources:
        mem_mb=larger(4000),
        runtime=larger(240),
        pack=pack_setting,
    params:
        settings=dataset_settings,
        revision=lambda wildcards: dataset_revision(wildcards.dataset),
        folder=subpath(output[0], parent=True),
    message:
        "Checking the data set {wildcards.dataset}"
    shell:
        "flsl data check {wildcards.dataset} {params.settings:q} {resources.pack} --revision {params.revision:q} "
        "--out {params.folder:q} --jobs {threads} > {log:q} 2>&1"

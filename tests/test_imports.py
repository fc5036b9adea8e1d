"""What may be imported where: training needs no orchestration, help and submitting need no torch."""

import subprocess
import sys

import pytest

ORCHESTRATION = ("mlflow", "snakemake", "submitit", "detectron2")


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "module",
    ["flsl.pretrain.trainer", "flsl.probe.linear", "flsl.video.propagate", "flsl.data.views", "flsl.model.backbone"],
)
def test_what_computes_needs_no_orchestration(module: str) -> None:
    assert not loaded(f"import {module}") & set(ORCHESTRATION)


def test_training_works_where_orchestration_is_not_installed() -> None:
    block = "; ".join(f"sys.modules[{name!r}] = None" for name in (*ORCHESTRATION, "matplotlib"))
    loaded(f"{block}\nimport flsl.pretrain.trainer, flsl.probe.features, flsl.cli\nflsl.cli.build_parser()")


@pytest.mark.parametrize(
    "statement",
    [
        "import flsl.cli; flsl.cli.build_parser()",
        "import flsl.config.loading",
        "import flsl.data.manifest",
    ],
)
def test_help_settings_and_manifests_need_no_torch(statement: str) -> None:
    assert not loaded(statement) & {"torch", "pandas", "mlflow", "snakemake"}


def test_what_computes_does_not_hang_on_the_made_data() -> None:
    stages = ("pretrain.stage", "probe.linear", "probe.aligned", "video.stage", "video.figures", "detect.stage")
    found = loaded("import " + ", ".join(f"flsl.{stage}" for stage in (*stages, "visualize.stage")))
    assert not [name for name in found if name.startswith("flsl.data.scenes")]

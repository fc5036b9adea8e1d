"""What the workflow reads its settings from, and what it refuses before anything runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_workflow import ROOT, changed, snakemake


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"knn": {"k": [0]}}, "knn.k.0: input should be greater than or equal to 1"),
        ({"runs": {"untrained": {}}}, "runs.untrained: baselines has that name, too"),
        ({"pretrian": {}}, "pretrian: unknown setting (did you mean 'pretrain'?)"),
        ({"data": {"images": None}}, "data.images: pretraining needs an image folder"),
        ({"runs": {"x": {"pretrain.lr": 1}}}, "runs.x: pretrain.lr: unknown setting"),
        (
            {"runs": {"a": {"pretrain.previous": "b"}, "b": {"pretrain.previous": "a"}}},
            "runs.b: pretrain.previous: leads back to where it started, a -> b -> a; one of them must start from",
        ),
        (
            {"runs": {"base": {}, "later": {"pretrain.previous": "bsae"}}},
            "runs.later: pretrain.previous: no run or baseline 'bsae' (did you mean 'base'?)",
        ),
    ],
)
def test_bad_config_is_told_before_anything_runs(tmp_path: Path, sections: dict[str, object], words: str) -> None:
    result = snakemake(tmp_path, config=changed(**sections))
    assert result.returncode == 1
    assert words in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / "results").exists()


def test_a_file_without_a_project_is_not_laid_over_the_demo(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    shutil.copy(ROOT / "config/demo.yaml", tmp_path / "config")
    result = snakemake(tmp_path, "--dry-run", config={"data": {"images": {"root": "mine"}}})
    assert result.returncode == 1
    assert "config.yaml: project: this setting is needed" in result.stdout + result.stderr


def test_the_demo_may_be_run_as_another_project(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    shutil.copy(ROOT / "config/demo.yaml", tmp_path / "config")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--directory", str(tmp_path), "--dry-run", "--config", "project=another"]
    result = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "results/another/summary.md" in result.stdout


def test_numbers_in_quotes_are_strings(tmp_path: Path) -> None:
    config = changed(project="2024", cluster={"account": "1234"})
    result = snakemake(tmp_path, "--dry-run", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "results/2024/summary.md" in result.stdout + result.stderr


def test_settings_of_the_command_line_keep_their_types(tmp_path: Path) -> None:
    words = ("linear={flip: False}", "tracking={live: false, uri: ~}", "visualize={size: Null}")
    result = snakemake(tmp_path, "--dry-run", "--config", "knn={k: [2, 4], temperature: 0.1}", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Job stats:" in result.stdout + result.stderr
    result = snakemake(tmp_path, "--dry-run", "--config", "knn={temprature: 0.1}")
    wrong = "the command line: knn.temprature: unknown setting (did you mean 'temperature'?)"
    assert wrong in result.stdout + result.stderr


def test_the_password_of_a_server_is_in_no_command(tmp_path: Path) -> None:
    # commands are seen in the list of processes, and snakemake prints, logs and keeps them
    config = changed(tracking={"uri": "http://me:secret@host:5000"})
    dry = snakemake(tmp_path, "--dry-run", "--printshellcmds", config=config)
    assert "flsl track sync" in dry.stdout + dry.stderr
    assert "secret" not in dry.stdout + dry.stderr

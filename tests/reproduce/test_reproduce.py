"""`flsl reproduce`: its commands really make a run again, bit for bit, and it tells what has changed."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from commands import flsl
from PIL import Image
from tiny import COMPUTE, PRETRAIN, write_images

from flsl.runtime.attempts import note_attempt
from flsl.runtime.environment import installed, read_lock
from flsl.runtime.outputs import git_origin, sha256_file

CONFIG = {
    "project": "tiny",
    "seed": 3,
    "data": {"images": {"root": "images"}},
    "pretrain": PRETRAIN,
    "runs": {"first": {}, "later": {"pretrain.previous": "first", "pretrain.tau_sa": {"start": 0.2, "end": 0.1}}},
    "features": {"resize": 32, "crop": 32, "batch_size": 4},
    "knn": {"k": [1, 3]},
    "compute": COMPUTE,
    "tracking": {"live": False},
}
RUNS = Path("results/tiny/runs")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two runs, the second a later stage of the first, with a k-NN of the second."""
    place = tmp_path_factory.mktemp("reproduce")
    write_images(place / "images", val=4)
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    manifest = "results/tiny/data/images"
    flsl(place, "data", "check", "images", "--config", "config.yaml", "--out", manifest)
    for run in ("first", "later"):
        flsl(place, "config", "--config", "config.yaml", "--run", run, "--out", RUNS / run / "config.yaml")
        earlier = ["--previous", RUNS / "first/pretrain/backbone.safetensors"] if run == "later" else []
        common = ["--config", RUNS / run / "config.yaml", "--name", run]
        flsl(place, "pretrain", *common, "--images", manifest, *earlier, "--out", RUNS / run / "pretrain")
    flsl(
        place,
        *("features", *common, "--backbone", RUNS / "later/pretrain/backbone.safetensors", "--images", manifest),
        *("--out", RUNS / "later/features"),
    )
    flsl(place, "knn", *common, "--features", RUNS / "later/features", "--out", RUNS / "later/knn")
    return place


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """A copy, whose times are kept, to change things in."""
    return Path(shutil.copytree(project, tmp_path / "copy"))


def told(place: Path, *arguments: object) -> list[str]:
    """The lines that say what differs now, but for those of the checkout that the tests run from."""
    lines = flsl(place, "reproduce", "later", *arguments).stdout.splitlines()
    return [line[4:] for line in lines if line.startswith("#   ") and not line.startswith("#   commit:")]


def test_commands_make_the_run_and_those_before_it_again_bit_for_bit(project: Path) -> None:
    text = flsl(project, "reproduce", "later", "--here").stdout
    (project / "again.sh").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["sh", "again.sh"], cwd=project, text=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("backbone.safetensors: OK") == 2
    for run in ("first", "later"):
        name = f"runs/{run}/pretrain/backbone.safetensors"
        assert (project / "again" / name).read_bytes() == (project / "results/tiny" / name).read_bytes()
    figures = [
        json.loads((folder / "runs/later/knn/metrics.json").read_text())["metrics"]
        for folder in (project / "again", project / "results/tiny")
    ]
    assert figures[0] == figures[1]


def test_a_baseline_is_made_again_from_the_settings_that_it_was_made_from(copied: Path) -> None:
    folder = copied / RUNS / "untrained"
    flsl(copied, "config", "--config", "config.yaml", "--run", "first", "--out", folder / "config.yaml")
    flsl(copied, "baseline", "--config", folder / "config.yaml", "--name", "untrained", "--out", folder / "pretrain")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["seed"] = 4
    config["pretrain"]["encoder"]["width"] *= 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    text = flsl(copied, "reproduce", "untrained", "--here").stdout
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["sh", "-c", text], cwd=copied, check=True, capture_output=True, env={**os.environ, "PATH": path})
    name = "runs/untrained/pretrain/backbone.safetensors"
    assert (copied / "again" / name).read_bytes() == (copied / "results/tiny" / name).read_bytes()


def test_script_stops_where_the_images_are_others(copied: Path) -> None:
    text = flsl(copied, "reproduce", "first", "--here", "--into", "elsewhere").stdout
    Image.new("RGB", (40, 36), "red").save(copied / "images/train/a/0.png")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["sh", "-c", text], cwd=copied, text=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    assert result.returncode == 1
    assert "images: the files differ from those of the run" in result.stderr
    assert not (copied / "elsewhere/runs").exists()


def test_lock_holds_every_package_and_the_record_refers_to_it(project: Path) -> None:
    lock = project / RUNS / "first/pretrain/requirements.lock"
    facts = json.loads((project / RUNS / "first/pretrain/metrics.json").read_text())["provenance"]
    assert facts["lock_sha256"] == sha256_file(lock)
    assert read_lock(lock) == installed()
    assert read_lock(lock)["torch"] == metadata.version("torch")
    assert "flsl" not in read_lock(lock)
    text = lock.read_text()
    assert f"# python: {sys.version.split()[0]}" in text
    assert facts["threads"] == 1


def test_whole_script_names_commit_environment_and_lock(project: Path) -> None:
    text = flsl(project, "reproduce", "first").stdout
    facts = json.loads((project / RUNS / "first/pretrain/metrics.json").read_text())["provenance"]
    assert f"git -C flsl-again checkout {facts['git'].removesuffix('-dirty')}\n" in text
    assert f"pip install -r {project / RUNS}/first/pretrain/requirements.lock\n" in text
    assert facts["data_sha256"] in text
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_records_of_others_run_nothing_of_their_own(copied: Path) -> None:
    path = copied / RUNS / "first/pretrain/metrics.json"
    record = json.loads(path.read_text())
    names = ("host", "device", "python", "git", "data_sha256", "processor")
    record["provenance"] |= dict.fromkeys(names, "x\ntouch ran; $(touch ran)")
    path.write_text(json.dumps(record))
    text = flsl(copied, "reproduce", "first").stdout
    stubs = "".join(
        f"{name}() {{ :; }}\n" for name in ("git", "python", "pip", "flsl", "torchrun", "sha256sum", "grep")
    )
    subprocess.run(["sh", "-c", stubs + text.replace(". flsl-again", ": flsl-again")], cwd=copied, check=True)
    assert not (copied / "ran").exists()


def test_nothing_but_the_checkout_differs_right_away(project: Path) -> None:
    assert told(project) == []


def test_what_changed_is_told(copied: Path) -> None:
    lock = copied / RUNS / "later/pretrain/requirements.lock"
    lock.write_text(lock.read_text().replace("torch==", "torch==0.").replace("numpy==", "no-such-package=="))
    Image.new("RGB", (40, 36), "red").save(copied / "images/train/a/0.png")
    config = copied / RUNS / "later/config.yaml"
    config.write_text(config.read_text().replace("prototypes: 8\n", "prototypes: 16\n", 1))
    (copied / RUNS / "later/pretrain/backbone.safetensors").write_bytes(b"other")
    version = metadata.version("torch")
    text = "\n".join(told(copied))
    assert "requirements.lock was changed since the run was made" in text
    assert f"torch 0.{version} then, {version} now" in text
    assert "then, not installed now" in text
    assert "packages: new since then: numpy" in text
    assert "data: files below images were changed since they were checked" in text
    assert "prototypes: 8 then, 16 now" in text
    assert "backbone.safetensors is not what the run wrote" in text
    # the commands are those of the run as it was
    assert "prototypes: 8\n" in flsl(copied, "reproduce", "later").stdout


def test_bad_names_are_one_line(project: Path, tmp_path: Path) -> None:
    (tmp_path / "results/x/runs/begun/pretrain").mkdir(parents=True)
    (tmp_path / "results/x/runs/begun/config.yaml").write_text("project: x\n")
    for place, arguments, words in (
        (project, ["latter"], "no run 'latter' (did you mean 'later'?); there are first, later"),
        (project, ["later", "--project-folder", "nowhere"], "nowhere: no such folder"),
        (tmp_path, ["begun"], "results/x/runs/begun/pretrain: holds no finished pretraining"),
        (tmp_path / "results", ["begun"], "there is no project in ./results"),
    ):
        result = flsl(place, "reproduce", *arguments, check=False)
        assert result.returncode == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_origin_shows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "https://name:token@example.org/flsl.git\n", "")

    monkeypatch.setattr(subprocess, "run", answer)
    assert git_origin() == "https://example.org/flsl.git"


def test_a_run_that_is_made_again_is_not_sent_in_place_of_the_projects(copied: Path) -> None:
    path = copied / RUNS / "later/config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["tracking"] |= {"live": True, "uri": "http://me:secret@host:5000"}
    path.write_text(yaml.safe_dump(settings))
    text = flsl(copied, "reproduce", "later").stdout
    assert "secret" not in text
    configs = [part.partition("\nEND-OF-CONFIG")[0] for part in text.split("'END-OF-CONFIG'\n")[1:]]
    assert [yaml.safe_load(config)["tracking"] for config in configs] == 2 * [{"live": False}]


def test_an_earlier_run_that_is_another_now_is_told_and_stops_the_script_at_once(copied: Path) -> None:
    encoder = RUNS / "first/pretrain/backbone.safetensors"
    (copied / encoder).write_bytes(b"pretrained again, with other settings")
    assert f"input: {encoder} is not what was read" in told(copied)
    text = flsl(copied, "reproduce", "later", "--here", "--into", "elsewhere").stdout
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["sh", "-c", text], cwd=copied, text=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    assert result.returncode == 1
    assert f"{encoder}: FAILED" in result.stdout
    assert not (copied / "elsewhere/runs/first").exists()
    (copied / encoder).unlink()
    shutil.rmtree(copied / RUNS / "first")
    assert f"input: {encoder}, which was read, is missing" in told(copied)


def test_a_baseline_of_another_checkpoint_is_told_and_stops_the_script(copied: Path) -> None:
    checkpoint = copied / "mine.safetensors"
    shutil.copy(copied / RUNS / "first/pretrain/backbone.safetensors", checkpoint)
    folder = copied / RUNS / "mine"
    given = f"baselines={json.dumps({'mine': {'kind': 'file', 'checkpoint': 'mine.safetensors'}})}"
    flsl(copied, "config", "--config", "config.yaml", given, "stages=[knn]", "--out", folder / "config.yaml")
    flsl(copied, "baseline", "--config", folder / "config.yaml", "--name", "mine", "--out", folder / "pretrain")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = ["sh", "-c", flsl(copied, "reproduce", "mine", "--here", "--into", "elsewhere").stdout]
    environment = {**os.environ, "PATH": path}
    subprocess.run(run, cwd=copied, check=True, capture_output=True, env=environment)
    (copied / "mine.safetensors").write_bytes(b"another")
    assert "input: mine.safetensors is not what was read" in flsl(copied, "reproduce", "mine").stdout
    result = subprocess.run(run, cwd=copied, text=True, capture_output=True, env=environment)
    assert result.returncode == 1
    assert "mine.safetensors: FAILED" in result.stdout


def test_a_run_is_named_by_any_path_of_its_folder(project: Path) -> None:
    def commands(place: Path, name: str) -> list[str]:
        lines = flsl(place, "reproduce", name, "--into", "/again").stdout.splitlines()
        return [line for line in lines if not line.startswith("#") and "requirements.lock" not in line]

    wanted = commands(project, "first")
    assert any("flsl data check images" in line for line in wanted)
    assert commands(project / RUNS / "first", ".") == wanted
    assert commands(project / RUNS, "first") == wanted
    assert commands(project / RUNS / "first/pretrain", "..") == wanted


def test_evaluations_are_those_of_the_record_whatever_the_config_says_now(copied: Path) -> None:
    config = copied / RUNS / "later/config.yaml"
    settings = yaml.safe_load(config.read_text())
    made = {"engine": "detectron2", "model": settings["detection"]["model"], "recipe": settings["detection"]["coco"]}
    for stage, params in (("coco", made), ("davis", settings["davis"] | {"year": 2017})):
        (copied / RUNS / "later" / stage).mkdir()
        record = {"stage": stage, "run": "later", "metrics": {}, "params": params}
        (copied / RUNS / "later" / stage / "metrics.json").write_text(json.dumps(record))
    settings["detection"]["coco"] = settings["detection"]["coco"] | {"epochs": 99}
    settings["davis"]["radius"] = 99
    config.write_text(yaml.safe_dump(settings))
    text = flsl(copied, "reproduce", "later").stdout
    command = next(line for line in text.splitlines() if "detect train --stage coco" in line)
    assert "'detection.engine=\"detectron2\"'" in command
    assert '"epochs": 12' in command
    assert "detection.model" not in command  # as the config says still
    assert "radius: 12\n" in text


def test_packages_that_no_index_has_come_from_where_they_came(copied: Path) -> None:
    lock = copied / RUNS / "first/pretrain/requirements.lock"
    address = "git+https://example.org/detectron2.git@02b5c4e"
    lock.write_text(f"{lock.read_text()}detectron2 @ {address}\n")
    text = flsl(copied, "reproduce", "first").stdout
    stubs = 'pip() { shift; echo "$@"; case "$*" in *stdin*) cat;; esac; }\n'
    stubs += "".join(f"{name}() {{ :; }}\n" for name in ("git", "python"))
    script = text.replace(". flsl-again", ": flsl-again").partition("# the data set")[0]
    done = subprocess.run(["sh", "-c", stubs + script], cwd=copied, text=True, capture_output=True, check=True)
    lines = done.stdout.splitlines()
    assert f"--no-build-isolation --no-deps detectron2 @ {address}" in lines
    assert lines.count("-r /dev/stdin") == 1
    assert sum(address in line for line in lines) == 1
    assert f"torch=={metadata.version('torch')}" in lines


def test_as_many_processes_are_started_on_as_many_nodes(copied: Path) -> None:
    folder = copied / RUNS / "first/pretrain"
    record = json.loads((folder / "metrics.json").read_text())
    record["provenance"]["world_size"] = 4
    (folder / "metrics.json").write_text(json.dumps(record))

    def command() -> str:
        lines = flsl(copied, "reproduce", "first").stdout.splitlines()
        return next(line for line in lines if "pretrain --images" in line)

    assert command().startswith("torchrun --standalone --nproc-per-node=4 -m flsl pretrain --images")
    note_attempt(folder, "one", "7", "slurm", ["node1", "node2"])
    assert command().startswith("flsl submit pretrain --images")
    assert command().endswith(" cluster.nodes=2 cluster.tasks_per_node=2 cluster.gpus_per_node=0")
    record["provenance"]["gpu"] = "H100"
    (folder / "metrics.json").write_text(json.dumps(record))
    assert command().endswith(" cluster.gpus_per_node=2")

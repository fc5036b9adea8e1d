"""Where the code and the packages come from, as a run's record has it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from flsl.runtime import environment, outputs


def test_a_checkout_of_something_else_is_not_the_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    # as one that is installed into an environment within somebody's project
    code = tmp_path / ".venv/lib/outputs.py"
    code.parent.mkdir(parents=True)
    code.touch()
    monkeypatch.setattr(outputs, "__file__", str(code))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    revision = outputs.git_revision.__wrapped__
    assert revision() is None
    assert outputs.git_origin() is None
    git("add", "-f", str(code))
    git("commit", "-q", "-m", "ours")
    assert revision() == git("rev-parse", "HEAD")
    assert outputs.git_origin() == str(tmp_path)
    code.write_text("changed")
    assert revision() == git("rev-parse", "HEAD") + "-dirty"


def test_lock_says_where_what_pypi_has_not_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str, version: str, origin: dict[str, object] | None) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin))

    repository = {"url": "https://token@example.org/d.git", "vcs_info": {"vcs": "git", "commit_id": "02b5c4e"}}
    install("torch", "2.6.0+cu124", None)
    install("detectron2", "0.6", repository)
    # conda names the folder in which it built a package
    install("numpy", "9.0", {"url": "file:///home/conda/feedstock_root/work", "dir_info": {}})
    monkeypatch.syspath_prepend(tmp_path)
    environment.write_lock(tmp_path)
    lines = (tmp_path / environment.LOCK).read_text().splitlines()
    assert "--extra-index-url https://download.pytorch.org/whl/cu124" in lines
    assert {"torch==2.6.0+cu124", "detectron2 @ git+https://example.org/d.git@02b5c4e", "numpy==9.0"} <= set(lines)
    assert environment.read_lock(tmp_path / environment.LOCK) == environment.installed()

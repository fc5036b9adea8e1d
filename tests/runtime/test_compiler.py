"""What `torch.compile` needs of a machine is asked for before the training, and by `flsl doctor`."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from flsl.cli import main
from flsl.runtime.compiler import hindrance, require_compiler
from flsl.runtime.errors import UserError


def program(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with Python's headers and no compiler; the header's path."""
    include, path = tmp_path / "include", tmp_path / "bin"
    include.mkdir()
    path.mkdir()
    (include / "Python.h").touch()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(include))
    return include / "Python.h"


@pytest.mark.parametrize(("device", "program_name"), [("cuda", "gcc"), ("cuda", "clang"), ("cpu", "g++")])
def test_a_compiler_and_headers_are_enough(headers: Path, device: str, program_name: str) -> None:
    assert "a compiler" in str(hindrance(device))
    program(headers.parents[1] / "bin", program_name)
    assert hindrance(device) is None
    headers.unlink()
    assert "Python.h is missing" in str(hindrance(device))


def test_a_compiler_that_is_named_is_the_one_that_counts(headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(headers.parents[1] / "bin", "gcc")
    monkeypatch.setenv("CC", "mycc -O2")
    with pytest.raises(UserError, match=r"^compute.compile: torch.compile needs a compiler \(mycc, which CC names"):
        require_compiler("cuda")
    program(headers.parents[1] / "bin", "mycc")
    require_compiler("cuda")


def test_doctor_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "nowhere/cc")
    monkeypatch.setenv("CXX", "nowhere/c++")
    (tmp_path / "tiny.yaml").write_text("project: tiny\ndata: {images: {root: images}}\n", encoding="utf-8")
    for compiled in ("true", "false"):
        with pytest.raises(SystemExit, match="1"):  # the images are not there
            main(["doctor", "--config", "tiny.yaml", "cluster.kind=local", f"compute.compile={compiled}"])
        said = "compute.compile: torch.compile needs a compiler (nowhere/c" in capsys.readouterr().out
        assert said == (compiled == "true")

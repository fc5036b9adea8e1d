"""SLURM's commands as scripts that say what they are told to."""

from __future__ import annotations

from pathlib import Path


def command(folder: Path, name: str, text: str = "", code: int = 0, error: str = "") -> None:
    """Write a command; each call of it is a line in ``calls``, and its variables of SLURM's are in ``<name>.env``."""
    (folder / f"{name}.txt").write_text(text)
    (folder / f"{name}.err").write_text(error)
    path = folder / name
    path.write_text(
        f'#!/bin/sh\necho "{name} $@" >> {folder}/calls\n'
        f'env | grep -E "^(SLURM|SBATCH)_" | sort > {folder}/{name}.env\n'
        f"cat {folder}/{name}.txt\ncat {folder}/{name}.err >&2\nexit {code}\n"
    )
    path.chmod(0o755)

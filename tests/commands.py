"""Running the package's commands in a folder."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

from flsl.cli import main


def flsl(place: Path, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command there: training in a process of its own, the rest in this one, which saves importing torch."""
    words = list(map(str, arguments))
    if words[0] == "pretrain":
        result = subprocess.run([sys.executable, "-m", "flsl", *words], cwd=place, text=True, capture_output=True)
    else:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        result = subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
    assert not check or result.returncode == 0, result.stderr
    return result

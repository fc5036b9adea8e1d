import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def interpreted():
    """Run a check of a module beside this file under Triton's interpreter, chosen before Triton is imported."""

    def run(module, check="check_all"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}; {module}.{check}()"],
            cwd=Path(__file__).parent,
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    return run

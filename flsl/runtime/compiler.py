"""Whether ``torch.compile`` can make machine code here: it calls a compiler, which compute nodes may lack."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

from flsl.runtime.errors import UserError

# of each kind of device, the variable that names a compiler and those that are looked for without it
_COMPILERS = {"cuda": ("CC", ("gcc", "clang")), "cpu": ("CXX", ("g++",))}


def hindrance(device: str) -> str | None:
    """Return why nothing can be compiled on this machine, and what to do, or None.

    Args:
        device: what ``torch.compile`` compiles for, ``cuda`` or ``cpu``.
    """
    variable, names = _COMPILERS[device]
    given = shlex.split(os.environ.get(variable, ""))[:1]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not any(shutil.which(name) for name in given or names):
        named = f"{given[0]}, which {variable} names," if given else " or ".join(names)
        missing = f"a compiler ({named} is not on the PATH)"
    elif not header.is_file():
        missing = f"Python's headers ({header} is missing; python3-dev brings it)"
    else:
        return None
    return f"torch.compile needs {missing}; install it, or set compute.compile=false"


def require_compiler(device: str) -> None:
    """Refuse ``compute.compile`` where nothing can be compiled.

    Raises:
        UserError: saying what is missing.
    """
    if why := hindrance(device):
        raise UserError(f"compute.compile: {why}")

"""The packages and the machine that a result was made with, in a form that pip installs again."""

from __future__ import annotations

import json
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from flsl.runtime.outputs import sha256_file, without_secrets, write_text
from flsl.runtime.place import place

LOCK = "requirements.lock"
_OURS = "flsl"


def installed() -> dict[str, str]:
    """Return the version of every installed distribution by its normalised name, sorted; without this package.

    Of one that was built from a repository it is the commit's address, ``git+https://…@<commit>``: no index has it.
    """
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a half-removed package has none
            # the first one found is the one that is imported
            found.setdefault(normalised(name), _commit(distribution) or distribution.version)
    found.pop(_OURS, None)
    return dict(sorted(found.items()))


def _commit(distribution: metadata.Distribution) -> str | None:
    """Return the address of the commit that a distribution was built from, as pip recorded it, or None."""
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        version_control = origin["vcs_info"]
        return f"{version_control['vcs']}+{without_secrets(origin['url'])}@{version_control['commit_id']}"
    except (OSError, ValueError, LookupError, TypeError):
        return None


def normalised(name: str) -> str:
    """Return a distribution's name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def write_lock(folder: Path) -> dict[str, Any]:
    """Write ``requirements.lock`` into ``folder``, atomically.

    Returns:
        For the provenance: Python, platform, processor and CUDA facts, the threads that PyTorch uses, and the lock's
        name and digest.
    """
    facts = machine()
    lines = [f"# {name}: {value}" for name, value in facts.items() if value is not None]
    packages = installed()
    build = packages.get("torch", "").partition("+")[2]
    if build:
        # torch's own index alone has its builds for other versions of CUDA, and for none
        lines.append(f"--extra-index-url https://download.pytorch.org/whl/{build}")
    lines += [f"{name}{' @ ' if '://' in version else '=='}{version}" for name, version in packages.items()]
    write_text(folder / LOCK, "\n".join(lines) + "\n")
    return {**facts, "lock": LOCK, "lock_sha256": sha256_file(folder / LOCK)}


def machine() -> dict[str, Any]:
    """Return what of the machine may change a result's last digits."""
    import torch

    cuda = torch.version.cuda
    gpu = torch.cuda.get_device_name() if cuda is not None and torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "cudnn": torch.backends.cudnn.version() if gpu is not None else None,  # type: ignore[no-untyped-call]
        "gpu": gpu,
        "world_size": place().world_size,
    }


def read_lock(path: Path) -> dict[str, str]:
    """Return the versions in a ``requirements.lock``, by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"([\w.-]+)(?:==| @ )(\S+)", line) for line in lines)
    return {line[1]: line[2] for line in found if line}


def _processor() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()

"""Whether Triton's interpreter can run kernels here: older ones fail on today's NumPy, though they compile them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.version import Version


def _missing() -> bool:
    try:
        return Version(version("triton")) < Version("3.8")
    except PackageNotFoundError:
        return True


needs_interpreter = pytest.mark.skipif(_missing(), reason="needs the interpreter of Triton 3.8 or newer")

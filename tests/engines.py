"""The detection engines that are tested: detectron2 where it is installed."""

from __future__ import annotations

import importlib.util

import pytest

HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
ENGINES = [
    "torchvision",
    pytest.param("detectron2", marks=pytest.mark.skipif(not HAS_DETECTRON2, reason="detectron2 is not installed")),
]

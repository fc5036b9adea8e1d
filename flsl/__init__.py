"""FLSL: feature-level self-supervised learning, pretrained and evaluated as a pipeline (arXiv 2306.06203)."""

__version__ = "0.1.0"

"""Every setting once, as typed models; see :class:`flsl.config.experiment.Experiment` for the root."""

from flsl.config.experiment import Experiment
from flsl.config.loading import load_experiment

__all__ = ["Experiment", "load_experiment"]

"""MLflow as a view of the files that stages write.

``start_following`` is for the training process and imports no mlflow; ``sync`` and ``follow`` are modules of their own.
"""

from flsl.track.start import Following, start_following

__all__ = ["Following", "start_following"]

"""Counts the bytes of all tensors that are alive, on any device, with real or with fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """While it is entered, sees every tensor that an operation makes, the backward pass included.

    What an operation allocates and frees within itself (a kernel's workspace) is not seen.

    Args:
        watched: number of elements of tensors to be counted, e.g. tokens × prototypes; 0 counts none.

    Attributes:
        current, peak: bytes alive now, and at most.
        watched_at_peak, watched_peak: bytes alive of tensors with ``watched`` elements, at the peak and at most.
    """

    def __init__(self, watched: int = 0) -> None:
        super().__init__()
        self.current = self.peak = self.watched_at_peak = self.watched_peak = 0
        self._watched, self._watched_current = watched, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return tree_map_only(Tensor, self.count, func(*args, **(kwargs or {})))

    def count(self, tensor: Tensor) -> Tensor:
        """Count a tensor, one that was made before included."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return tensor
        self._seen.add(storage._cdata)
        size = storage.nbytes()
        watched = size if tensor.numel() == self._watched else 0
        self._change(size, watched)
        weakref.finalize(storage, self._forget, storage._cdata, size, watched)
        return tensor

    def _forget(self, key: int, size: int, watched: int) -> None:
        self._seen.discard(key)
        self._change(-size, -watched)

    def _change(self, size: int, watched: int) -> None:
        self.current += size
        self._watched_current += watched
        self.watched_peak = max(self.watched_peak, self._watched_current)
        if self.current > self.peak:
            self.peak, self.watched_at_peak = self.current, self._watched_current

"""Any data set whose samples also tell their position, for methods that remember single samples."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import Dataset


class WithIndices(Dataset[tuple[Any, ...]]):
    """`WithIndices(data)[i]` is `(*data[i], i)`: a loader then gives (images, labels, indices)."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        """Count the samples."""
        assert isinstance(self.data, Sized)
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return a sample and its position."""
        return (*self.data[index], index)

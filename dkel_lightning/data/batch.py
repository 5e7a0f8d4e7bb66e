"""The batches of loaders and modules."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset


class Batch(NamedTuple):
    """Images and labels of a batch.

    `views` is float32 [B, V, C, H, W], or [B, C, H, W] if all peers share one view and in evaluations; `labels` int64
    [B], -1 for an unknown label; `indices` [B] the positions of the samples in their split, or None.
    """

    views: Tensor
    labels: Tensor
    indices: Tensor | None


class WithIndices(Dataset[tuple[Any, ...]]):
    """`WithIndices(data)[i]` is `(*data[i], i)`, for methods that keep a memory per sample."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        assert isinstance(self.data, Sized)
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.data[index], index)

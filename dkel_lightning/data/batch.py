"""What a batch is, for loaders that make it and modules that take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images and labels of a batch.

    `views` is float32 [B, V, C, H, W], or [B, C, H, W] when all peers share one view and in evaluations; `labels` int64
    [B]; `indices` [B], positions of the samples in their split, or None where the data does not tell.
    """

    views: Tensor
    labels: Tensor
    indices: Tensor | None

"""Batches whose indices are known, as those of this library's own loaders are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from dkel_lightning.data.batch import Batch


def whole(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    views, labels, indices = batch
    assert indices is not None
    return views, labels, indices


def each(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return map(whole, batches)

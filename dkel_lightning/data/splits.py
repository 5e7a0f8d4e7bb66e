"""Stratified splits that depend neither on the run's seed nor on library versions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import derive_seed

Indices = NDArray[np.int64]


def stratified_order(labels: NDArray[np.int64], seed: int, purpose: str) -> Indices:
    """Return the sample indices `[N]` in an order in which every prefix is stratified by class."""
    # RandomState is frozen by NumPy's compatibility policy; Generator and torch may change their streams.
    random = np.random.RandomState(derive_seed(seed, purpose) % 2**32)
    shuffled = random.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    # The stable sort breaks ties between classes in the shuffled order.
    return shuffled[np.argsort(place[shuffled], kind="stable")].astype(np.int64)


def hold_out(labels: NDArray[np.int64], size: int, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Split the samples into (kept, held out), the latter stratified and `size` long; both ascending."""
    order = stratified_order(labels, seed, purpose)
    return np.sort(order[size:]), np.sort(order[:size])


def hold_out_share(labels: NDArray[np.int64], share: float, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Split the samples into (kept, held out) with `share` of those of a known label, rounded, held out."""
    known = np.flatnonzero(labels >= 0)
    size = round(share * len(known))
    if not 0 < size < len(known):
        raise ConfigError(
            f"data.{purpose}={share} of {len(known)} training images gives {size} for {purpose} and "
            f"{len(known) - size} for training: choose a share that leaves some for both"
        )
    held_out = known[hold_out(labels[known], size, seed, purpose)[1]]
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def hide_labels(labels: NDArray[np.int64], labelled: int, seed: int) -> NDArray[np.int64]:
    """Return the labels with all but `labelled` of them replaced by -1, stratified; a larger number only adds some."""
    result = labels.copy()
    known = np.flatnonzero(labels >= 0)
    if labelled > len(known):
        raise ConfigError(f"data.labelled={labelled}, but only {len(known)} training images have a label.")
    result[known[stratified_order(labels[known], seed, "labelled")[labelled:]]] = -1
    return result


def limited(labels: NDArray[np.int64], limit: int, seed: int) -> Indices:
    """Return at most `limit` sample indices, stratified, ascending; a larger limit only adds to a smaller one's."""
    return np.sort(stratified_order(labels, seed, "limit")[:limit])

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dkel_lightning.data.order import TrainingOrder, evaluation_batches
from dkel_lightning.errors import ConfigError


@settings(max_examples=200, deadline=None)
@given(world=st.integers(1, 5), extra=st.integers(0, 60), batch_size=st.integers(1, 9))
def test_evaluation_shards_are_disjoint_complete_and_equally_many(world: int, extra: int, batch_size: int) -> None:
    samples = world + extra
    ranks = [evaluation_batches(samples, batch_size, rank, world) for rank in range(world)]
    assert sorted(torch.cat([batch for rank in ranks for batch in rank]).tolist()) == list(range(samples))
    assert len({len(rank) for rank in ranks}) == 1
    assert all(0 < len(batch) <= max(batch_size, 2) for rank in ranks for batch in rank)
    for rank in ranks:
        assert torch.cat(rank).tolist() == sorted(torch.cat(rank).tolist())


@settings(max_examples=100, deadline=None)
@given(world=st.integers(1, 4), share=st.integers(2, 40), rest=st.integers(0, 3), batch_size=st.integers(1, 9))
def test_training_ranks_are_disjoint_and_equally_long(world: int, share: int, rest: int, batch_size: int) -> None:
    samples = world * share + min(rest, world - 1)
    orders = [TrainingOrder(samples, batch_size, rank, world) for rank in range(world)]
    per_rank = [order.batches(7, "order", 0) for order in orders]
    flat = torch.cat([batch for batches in per_rank for batch in batches]).tolist()
    assert len(flat) == len(set(flat))
    dropped = 1 if batch_size > 1 and share % batch_size == 1 else 0
    assert len(flat) == world * (share - dropped)
    assert all(len(batches) == len(order) for batches, order in zip(per_rank, orders, strict=True))
    assert all(0 < len(batch) <= batch_size for batches in per_rank for batch in batches)


def test_a_last_batch_of_one_sample_is_dropped_since_batchnorm_cannot_take_it() -> None:
    assert [len(batch) for batch in TrainingOrder(9, 4).batches(0, "order", 0)] == [4, 4]
    assert [len(batch) for batch in TrainingOrder(10, 4).batches(0, "order", 0)] == [4, 4, 2]
    assert [len(batch) for batch in TrainingOrder(10, 4, drop_last=True).batches(0, "order", 0)] == [4, 4]
    assert [len(batch) for batch in TrainingOrder(3, 1).batches(0, "order", 0)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("samples", "batch_size", "drop_last"), [(1, 8, False), (7, 8, True), (3, 8, False)], ids=["one", "short", "ranks"]
)
def test_an_epoch_without_a_batch_is_refused(samples: int, batch_size: int, drop_last: bool) -> None:
    with pytest.raises(ConfigError, match="no training batch"):
        TrainingOrder(samples, batch_size, 0, 2, drop_last)

"""Means, paired differences and detectable differences, against textbook tables and a simulation."""

from __future__ import annotations

import math

import pytest
import torch

from dkel_lightning.studies.seed_statistics import noncentrality, paired, sample


def test_one_seed_has_a_mean_and_nothing_that_needs_a_deviation() -> None:
    assert sample([0.5]).deviation is None
    found = paired([0.75], [0.5])
    assert (found.n, found.mean, found.low, found.high, found.detectable) == (1, 0.25, None, None, None)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (11, 2.228)])
def test_the_interval_has_the_quantile_of_the_printed_table(n: int, quantile: float) -> None:
    differences = [float(i % 2) + 0.1 * i for i in range(n)]
    found = paired([d + 7.0 for d in differences], [7.0] * n)
    mean = sum(differences) / n
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    half = quantile * deviation / math.sqrt(n)
    assert found.low == pytest.approx(mean - half, abs=2e-4 * quantile)
    assert found.high == pytest.approx(mean + half, abs=2e-4 * quantile)


def test_a_value_that_is_no_number_leaves_no_mean_and_stops_nothing() -> None:
    for values in ([1.0, math.nan], [math.inf, -math.inf], [math.inf, 2.0]):
        assert (sample(values).n, math.isnan(sample(values).mean), math.isnan(sample(values).deviation or 0)) == (
            2,
            True,
            True,
        )
    assert math.isnan(paired([math.inf, 1.0], [math.inf, 1.0]).mean)


def test_equal_differences_give_no_interval_because_they_say_nothing_of_another_seed() -> None:
    found = paired([0.1 + 0.01, 0.9 + 0.01, 0.5 + 0.01], [0.1, 0.9, 0.5])
    assert found.mean == pytest.approx(0.01)
    assert (found.low, found.high, found.detectable) == (None, None, None)


@pytest.mark.parametrize(("n", "table"), [(3, 4.303), (5, 2.776), (10, 2.262)])
def test_a_t_test_finds_the_detectable_difference_four_times_in_five(n: int, table: float) -> None:
    draws = torch.Generator().manual_seed(0)
    differences = torch.randn(400_000, n, generator=draws, dtype=torch.float64) + noncentrality(n) / math.sqrt(n)
    t = differences.mean(1) / (differences.std(1) / math.sqrt(n))
    assert (t.abs() > table).double().mean().item() == pytest.approx(0.8, abs=0.004)

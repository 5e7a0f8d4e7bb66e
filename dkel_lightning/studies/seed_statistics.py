"""Statistics of few seeds: means, paired differences with intervals, and the smallest detectable difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Sample:
    """The mean of n values and their sample deviation, None where n is 1."""

    n: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Paired:
    """The mean of n paired differences and its 95 % confidence interval (paired t).

    `detectable` is the smallest true difference that a two-sided paired t-test at 5 % finds with a power of 80 %.
    Interval and `detectable` are None without a deviation.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    detectable: float | None


def sample(values: Sequence[float]) -> Sample:
    """Summarise at least one value; mean and deviation are nan if a value is not finite."""
    if not all(map(math.isfinite, values)):
        return Sample(len(values), math.nan, math.nan if len(values) > 1 else None)
    return Sample(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired(values: Sequence[float], reference: Sequence[float]) -> Paired:
    """Compare values with those of the reference, pair by pair: `values - reference`."""
    differences = sample([value - other for value, other in zip(values, reference, strict=True)])
    # Equal differences, possible with a small test set, give no estimate of the deviation.
    if differences.deviation is None or differences.deviation < 1e-6:
        return Paired(differences.n, differences.mean, None, None, None)
    error = differences.deviation / math.sqrt(differences.n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, differences.n - 1)) * error
    mean = differences.mean
    return Paired(differences.n, mean, mean - half, mean + half, noncentrality(differences.n) * error)


def noncentrality(n: int) -> float:
    """Compute delta, in standard errors of the mean, at which the t-test of n differences has a power of 80 %.

    It solves `P(t'(n - 1, delta) > t_0.975(n - 1)) = 0.8` of the noncentral t. The usual approximation
    `t_0.975(n - 1) + t_0.8(n - 1)` lies 14 % below it for n = 2 and 5 % for n = 3.
    """
    critical, power = stats.t.ppf([(1 + CONFIDENCE) / 2, POWER], n - 1)
    low, high = 0.9 * (critical + power), 1.2 * (critical + power)
    return float(optimize.brentq(lambda delta: stats.nct.sf(critical, n - 1, delta) - POWER, low, high))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Compute the 95 % Wilson interval of the share `successes` / `n`."""
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def chance_bound(chance: float, samples: int, confidence: float = 0.999) -> float:
    """Compute the accuracy that guessing right with probability `chance` does not exceed with this confidence."""
    return float(stats.binom.ppf(confidence, samples, chance)) / samples

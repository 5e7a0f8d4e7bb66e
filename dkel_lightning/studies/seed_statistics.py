"""What few seeds can say: means with deviations, paired differences, and the smallest detectable difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8
LUCK = 0.999


@dataclass(frozen=True)
class Sample:
    """The mean of n values and their sample deviation, None where n is 1."""

    n: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Paired:
    """Differences of pairs: their mean, and what n of them allow to say.

    Attributes:
        low: lower end of the 95 % confidence interval of the mean (paired t); None where n is 1.
        high: upper end.
        detectable: smallest true difference that a two-sided paired t-test at 5 % finds with a power of 80 %.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    detectable: float | None


def sample(values: Sequence[float]) -> Sample:
    """Summarise at least one value; where one is not finite (a likelihood that overflowed), there is no mean."""
    if not all(map(math.isfinite, values)):
        return Sample(len(values), math.nan, math.nan if len(values) > 1 else None)
    return Sample(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired(values: Sequence[float], reference: Sequence[float]) -> Paired:
    """Compare values with those of the reference, pair by pair: `values - reference`."""
    differences = sample([value - other for value, other in zip(values, reference, strict=True)])
    # Differences that are all equal (a small test set has few steps) do not say how much another seed would differ.
    if differences.deviation is None or differences.deviation < 1e-6:
        return Paired(differences.n, differences.mean, None, None, None)
    error = differences.deviation / math.sqrt(differences.n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, differences.n - 1)) * error
    mean = differences.mean
    return Paired(differences.n, mean, mean - half, mean + half, noncentrality(differences.n) * error)


def noncentrality(n: int) -> float:
    """Find delta, in standard errors of the mean, at which the t-test of n differences has its power.

    It solves `P(t'(n - 1, delta) > t_0.975(n - 1)) = 0.8` of the noncentral t. The usual
    `t_0.975(n - 1) + t_0.8(n - 1)` lies 14 % below it for n = 2 and 5 % for n = 3. What falls in the other tail is
    below 1e-3 of a percent and left out.
    """
    freedom = n - 1
    critical = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    guess = critical + float(stats.t.ppf(POWER, freedom))

    def missing(delta: float) -> float:
        return float(stats.nct.sf(critical, freedom, delta)) - POWER

    return float(optimize.brentq(missing, 0.9 * guess, 1.2 * guess))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson interval of a share that was seen `successes` times in `n`."""
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def chance_bound(chance: float, samples: int, confidence: float = LUCK) -> float:
    """Return the accuracy up to which guessing right with probability `chance` stays with this probability."""
    return float(stats.binom.ppf(confidence, samples, chance)) / samples

"""Intervals for what was measured on items, and for what changed between two policies on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import binomtest, bootstrap, norm

CONFIDENCE = 0.95
RESAMPLES = 5000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; the ends are None where `n` values are too few to say anything."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], seed: int = 0, signed: bool = False) -> Interval:
    """Interval of the mean of `values`, one value an item (pool the samples of an item beforehand).

    Zeros and ones get the Wilson interval, which doesn't collapse when all are equal; other values the
    percentile bootstrap over items, deterministic in `seed`. One value that isn't 0/1 has no interval.
    `signed` values are differences of zeros and ones within a pair: they get the paired interval.
    """
    if not values:
        return Interval(None, None, None, 0)
    if signed:
        return _agresti_min(
            sum(value > 0 for value in values), sum(value < 0 for value in values), len(values)
        )
    if all(value in (0.0, 1.0) for value in values):
        hits, n = int(sum(values)), len(values)
        ends = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
        return Interval(hits / n, float(ends.low), float(ends.high), n)
    return _bootstrap(np.asarray(values, dtype=float), seed)


def paired_interval(before: Mapping[str, float], after: Mapping[str, float], seed: int = 0) -> Interval:
    """Interval of the mean of `after - before` over the items that both hold.

    Differences of zeros and ones get the interval of Agresti and Min (2005): a quarter of two pseudo-pairs
    goes to each cell of the paired table, so that a handful of items without any change isn't read as
    certainty. Other values get the bootstrap over the items' differences, which keeps the pairing.
    """
    shared = sorted(before.keys() & after.keys())
    first = np.asarray([before[item] for item in shared], dtype=float)
    second = np.asarray([after[item] for item in shared], dtype=float)
    if not shared or not np.isfinite(first).all() or not np.isfinite(second).all():
        return Interval(None, None, None, len(shared))
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        return _agresti_min(int(np.sum(second > first)), int(np.sum(second < first)), len(shared))
    return _bootstrap(second - first, seed)


def mcnemar(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Exact two-sided p-value of McNemar's test on the shared items' zeros and ones; 1.0 without any change.

    Raises ValueError where a value is neither 0 nor 1.
    """
    pairs = [(before[item], after[item]) for item in sorted(before.keys() & after.keys())]
    if any(value not in (0.0, 1.0) for pair in pairs for value in pair):
        raise ValueError("McNemar's test is for zeros and ones; use paired_interval for other values")
    gained = sum(old < new for old, new in pairs)
    lost = sum(old > new for old, new in pairs)
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def _agresti_min(gained: int, lost: int, n: int) -> Interval:
    up, down, total = gained + 0.5, lost + 0.5, n + 2
    centre = (up - down) / total
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * sqrt(up + down - (up - down) ** 2 / total) / total
    return Interval((gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half), n)


def _bootstrap(values: np.ndarray, seed: int) -> Interval:
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(values).all():
        return Interval(mean if np.isfinite(mean) else None, None, None, len(values))
    if (values == values[0]).all():
        return Interval(mean, mean, mean, len(values))
    drawn = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=500,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(
        mean, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high), len(values)
    )

"""Intervals for what was measured on items, and for what changed between two policies on the same items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import cast

import numpy as np
from scipy.stats import binomtest, bootstrap, norm, permutation_test
from scipy.stats import t as student

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 5000
WHOLE_RESAMPLES = 1000  # of a figure that no vectorised mean gives


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; the ends are None where `n` values are too few to say anything."""

    value: float | None
    low: float | None
    high: float | None
    n: int


Clusters = Sequence[Sequence[str]]
"""For each value the names of what it shares with others, in one or two dimensions; empty where nothing."""


def mean_interval(
    values: Sequence[float], seed: int = 0, signed: bool = False, clusters: Clusters = ()
) -> Interval:
    """Interval of the mean of `values`, one value an item (pool the samples of an item beforehand).

    Zeros and ones get the Wilson interval, which doesn't collapse when all are equal; other values the
    percentile bootstrap over items, deterministic in `seed`. One value that isn't 0/1 has no interval.
    `signed` values are differences of zeros and ones within a pair: they get the paired interval. Values
    that share a cluster aren't independent: see `clustered_interval`.
    """
    if not values:
        return Interval(None, None, None, 0)
    if _shared(clusters):
        return clustered_interval(values, clusters)
    if signed and all(value in (-1.0, 0.0, 1.0) for value in values):
        return _agresti_min(
            sum(value > 0 for value in values), sum(value < 0 for value in values), len(values)
        )
    if all(value in (0.0, 1.0) for value in values):
        hits, n = int(sum(values)), len(values)
        ends = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
        return Interval(hits / n, float(ends.low), float(ends.high), n)
    return _bootstrap(np.asarray(values, dtype=float), seed)


def paired_interval(
    before: Mapping[str, float],
    after: Mapping[str, float],
    seed: int = 0,
    clusters: Mapping[str, Sequence[str]] | None = None,
) -> Interval:
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
    if clusters is not None and _shared(named := [clusters[item] for item in shared]):
        return clustered_interval(list(second - first), named)
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        return _agresti_min(int(np.sum(second > first)), int(np.sum(second < first)), len(shared))
    return _bootstrap(second - first, seed)


def difference_of_shares(first: Interval, last: Interval) -> Interval:
    """`last` less `first`, shares of other items each, by Newcombe's (1998) score method."""
    ends = (first.value, first.low, first.high, last.value, last.low, last.high)
    if any(end is None for end in ends):
        return Interval(None, None, None, first.n + last.n)
    p, p_low, p_high, q, q_low, q_high = cast(tuple[float, ...], ends)
    return Interval(
        q - p, q - p - hypot(q - q_low, p_high - p), q - p + hypot(q_high - q, p - p_low), first.n + last.n
    )


def paired_p(
    before: Mapping[str, float],
    after: Mapping[str, float],
    seed: int = 0,
    clusters: Mapping[str, Sequence[str]] | None = None,
) -> float:
    """Two-sided p-value of no difference over the items that both hold; 1.0 where nothing can be told.

    Zeros and ones: McNemar's exact test. Other values: differences with their signs drawn anew
    (`scipy.stats.permutation_test`). Values that share a cluster: the t-test that goes with their interval.
    """
    shared = sorted(before.keys() & after.keys())
    first = np.asarray([before[item] for item in shared], dtype=float)
    second = np.asarray([after[item] for item in shared], dtype=float)
    if not np.any(first != second) or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return 1.0
    if clusters is not None and _shared(named := [clusters[item] for item in shared]):
        error, freedom = _clustered_error(second - first, named)
        ratio = abs(float(np.mean(second - first))) / max(error, 1e-12)
        return float(2 * student.sf(ratio, freedom))
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        return mcnemar(before, after)

    def mean_difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        # Rounded, for sums in another order are not equal to the last digit, and ties count.
        return np.round(np.mean(x - y, axis=axis), 12)

    drawn = permutation_test(
        (second, first),
        mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(drawn.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted after Holm (1979), so that several looks don't make one false alarm likelier."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def smallest_effect(change: Interval, looks: int = 1) -> float | None:
    """The difference that would be found with 80 % power, by the width of the interval that was measured.

    `looks` is the number of metrics that Holm's correction shares the 5 % among.
    """
    if change.low is None or change.high is None:
        return None
    error = (change.high - change.low) / 2 / float(norm.ppf(0.5 + CONFIDENCE / 2))
    return float(norm.ppf(1 - (1 - CONFIDENCE) / 2 / looks) + norm.ppf(POWER)) * error


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


def bootstrap_interval(rows: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0) -> Interval:
    """Interval of a figure of all `rows` [n, columns] together that is no mean over them."""
    if len(rows) == 0:
        return Interval(None, None, None, 0)
    value = statistic(rows)
    if len(rows) < 2:
        return Interval(value, None, None, len(rows))
    drawn = bootstrap(
        (np.arange(len(rows)),),
        lambda places: statistic(rows[places]),
        vectorized=False,
        n_resamples=WHOLE_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = drawn.confidence_interval
    return Interval(value, float(low), float(high), len(rows))


def clustered_interval(values: Sequence[float], clusters: Clusters) -> Interval:
    """Interval of the mean of values that share clusters, in one dimension or two (question and passage).

    The cluster-robust error of Cameron, Gelbach and Miller (2011) for a mean, with Student's t at one degree
    of freedom less than the fewer clusters.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    error, freedom = _clustered_error(array, clusters)
    if freedom < 1:
        return Interval(mean, None, None, len(array))
    half = float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half, len(array))


def _shared(clusters: Clusters) -> bool:
    """Whether any two values have a cluster in common."""
    named = [tuple(names) for names in clusters if names]
    return any(len(set(side)) < len(side) for side in zip(*named, strict=True)) if named else False


def _clustered_error(values: np.ndarray, clusters: Clusters) -> tuple[float, int]:
    """Standard error of the mean, and degrees of freedom. A value without clusters stands for itself."""
    width = max(len(names) for names in clusters)
    sides = [
        [names[side] if names else f"alone {row}" for row, names in enumerate(clusters)]
        for side in range(width)
    ]
    parts = [_one_way(values, side) for side in sides]
    if width == 1:
        variance = parts[0]
    else:
        both = _one_way(values, [" ".join(names) for names in zip(*sides, strict=True)])
        # Two-way variance can come out negative in small samples; it is never less than either side's alone.
        variance = max(parts[0] + parts[1] - both, *parts)
    return sqrt(variance), min(len(set(side)) for side in sides) - 1


def _one_way(values: np.ndarray, names: Sequence[str]) -> float:
    """Variance of the mean with the residuals of a cluster summed."""
    groups, place = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(place, weights=values - values.mean(), minlength=len(groups))
    return float((sums**2).sum()) / len(values) ** 2 * len(groups) / max(len(groups) - 1, 1)

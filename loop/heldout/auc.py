"""The area under the ROC curve, and the lead of one score's over another's, with objectives drawn anew."""

from collections.abc import Sequence

import numpy as np

from loop.heldout.statistics import Interval

RESAMPLES = 2000


def auc(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """Of `scores` [n] for `truth` [n] of booleans; None where all are of one label."""
    return None if truth.all() or not truth.any() else float(_wins(scores, truth).mean())


def auc_interval(truth: np.ndarray, scores: np.ndarray, groups: Sequence[str]) -> Interval:
    """The AUC with the middle 95 % of what it is over draws of groups with replacement.

    No ends where no draw could differ from another: each draw of a perfect order is perfect too, which would
    be read as certainty.
    """
    return _interval(truth, _wins(scores, truth), groups)


def auc_lead(truth: np.ndarray, first: np.ndarray, second: np.ndarray, groups: Sequence[str]) -> Interval:
    """By how much the AUC of `first` is above that of `second`, both on the same draws of groups."""
    return _interval(truth, _wins(first, truth) - _wins(second, truth), groups)


def _wins(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[positives, others]: 1 where one is above the other, a half where they tie; the AUC is its mean."""
    above, below = scores[truth][:, None], scores[~truth]
    return (above > below) + 0.5 * (above == below)


def _interval(truth: np.ndarray, wins: np.ndarray, groups: Sequence[str]) -> Interval:
    if not wins.size:
        return Interval(None, None, None, len(truth))
    value = float(wins.mean())
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or np.ptp(wins) == 0:
        return Interval(value, None, None, len(truth))
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    times = np.stack([np.bincount(draw, minlength=len(names)) for draw in drawn])[:, place]
    pairs = times[:, truth].sum(1) * times[:, ~truth].sum(1)
    both = pairs > 0  # a draw without rows of both labels has no AUC
    won = ((times[:, truth] @ wins) * times[:, ~truth]).sum(1)
    low, high = np.percentile(won[both] / pairs[both], [2.5, 97.5])
    return Interval(value, float(low), float(high), len(truth))

"""Whether a candidate policy is promoted: it must gain on the primary metric and lose nowhere that counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from loop.errors import ConfigError
from loop.heldout.pairing import pair_up
from loop.heldout.statistics import Interval
from loop.heldout.suites import BUILT_IN, Suite, find_metric
from loop.records import Verdict, stable_hash


@dataclass(frozen=True)
class Check:
    """One comparison: `difference` is candidate minus the other, with its 95 % interval.

    `margin` None marks the primary metric's check, where `verdict` is better, worse or inconclusive; the
    others are non-inferior, inferior or inconclusive. `n` counts the paired items.
    """

    suite: str
    metric: str
    better: Literal["lower", "higher"]
    against: Literal["last", "baseline"]
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    margin: float | None
    n: int
    verdict: Literal["better", "worse", "non-inferior", "inferior", "inconclusive"]


@dataclass(frozen=True)
class GateDecision:
    """What gate.json holds: the outcome, its reasons in words with figures, and every check behind it."""

    promoted: bool
    outcome: Literal["promoted", "rejected", "inconclusive"]
    reasons: list[str]
    checks: list[Check]


def decide(
    candidate: Sequence[Verdict],
    last: Sequence[Verdict],
    baseline: Sequence[Verdict],
    primary: str,
    margins: Mapping[str, float],
    seed: int = 0,
    suites: Mapping[str, Suite] = BUILT_IN,
) -> GateDecision:
    """Promotes if and only if `primary` improves on `last` and nothing in `margins` gets worse.

    To improve, the paired 95 % interval must lie on the good side of 0. Each "suite.metric" of `margins` must
    be non-inferior both to `last` and to `baseline`: the bad end of the interval stays within the margin.
    Any check that fails outright rejects; any other that isn't passed is inconclusive and promotes nothing.
    An answer that only one side lacks is counted against the candidate; one that both lack says nothing.
    Raises ConfigError for test verdicts, unknown metrics, negative margins, missing suites, other judges.
    """
    _refuse_test_items(candidate, last, baseline)
    check_gate(suites, primary, margins)
    checks = [_check(candidate, last, find_metric(suites, primary, "gate.primary"), "last", None, seed)]
    for name, margin in margins.items():
        named = find_metric(suites, name, "gate.margins")
        checks.append(_check(candidate, last, named, "last", margin, seed))
        checks.append(_check(candidate, baseline, named, "baseline", margin, seed))
    verdicts = {check.verdict for check in checks}
    if verdicts & {"worse", "inferior"}:
        outcome = "rejected"
    else:
        outcome = "inconclusive" if "inconclusive" in verdicts else "promoted"
    return GateDecision(outcome == "promoted", outcome, [_in_words(check) for check in checks], checks)


def _refuse_test_items(*sides: Sequence[Verdict]) -> None:
    for row in (row for side in sides for row in side):
        if row.split == "test":
            raise ConfigError(
                f"the gate decides on dev alone, and {row.item_id} of {row.suite} is a test item: use dev"
            )


def check_gate(suites: Mapping[str, Suite], primary: str, margins: Mapping[str, float]) -> None:
    """Raises ConfigError for a metric that isn't measured or can't be compared, and for a bad margin."""
    check_margins(suites, {primary: 0.0}, "gate.primary")
    check_margins(suites, margins, "gate.margins")


def check_margins(suites: Mapping[str, Suite], margins: Mapping[str, float], where: str) -> None:
    """As `check_gate`, for the metrics named in `where`."""
    for name, margin in margins.items():
        suite, metric = find_metric(suites, name, where)
        if suite.metrics[metric].whole is not None:
            raise ConfigError(f"{where}: {name} is no mean over items and can't be compared; take another")
        if not (isfinite(margin) and margin >= 0):
            raise ConfigError(f"{where}: {name} is {margin}; a margin is the loss allowed, 0 or more")


def _check(
    candidate: Sequence[Verdict],
    other: Sequence[Verdict],
    named: tuple[Suite, str],
    against: Literal["last", "baseline"],
    margin: float | None,
    seed: int,
) -> Check:
    suite, metric = named
    better = suite.metrics[metric].better
    pairs = pair_up(candidate, other, suite, metric, against)
    # one seed for both comparisons: where last is the baseline they must agree to the last digit
    change = pairs.interval(stable_hash(seed, suite.name, metric))
    higher = better == "higher"
    verdict = _improvement(change, higher) if margin is None else non_inferiority(change, higher, margin)
    return Check(
        suite.name, metric, better, against, change.value, change.low, change.high, margin, change.n, verdict
    )


def gain(change: Interval, higher: bool) -> tuple[float, float] | None:
    """The interval's bad end and good end as gains, whichever direction is the better one."""
    if change.low is None or change.high is None:
        return None
    return (change.low, change.high) if higher else (-change.high, -change.low)


def _improvement(change: Interval, higher: bool) -> Literal["better", "worse", "inconclusive"]:
    found = gain(change, higher)
    if found is None or found[0] <= 0 <= found[1]:
        return "inconclusive"
    return "better" if found[0] > 0 else "worse"


def non_inferiority(
    change: Interval, higher: bool, margin: float
) -> Literal["non-inferior", "inferior", "inconclusive"]:
    """Whether all of the interval lies within `margin` of no loss, beyond it, or on both sides."""
    found = gain(change, higher)
    if found is None:
        return "inconclusive"
    if found[0] >= -margin:
        return "non-inferior"
    return "inferior" if found[1] < -margin else "inconclusive"


def _in_words(check: Check) -> str:
    asked = "must improve" if check.margin is None else f"may lose {check.margin:g}"
    if check.difference is None or check.ci_low is None or check.ci_high is None:
        figures = "no interval"
    else:
        figures = f"{check.difference:+.3f} [{check.ci_low:+.3f}, {check.ci_high:+.3f}]"
    return (
        f"{check.suite}.{check.metric} ({check.better} is better, {asked}) against {check.against}: "
        f"{figures} over {check.n} items: {check.verdict}"
    )

"""Whether a candidate policy is promoted: it must gain on the primary metric and lose nowhere that counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Literal

from loop.errors import ConfigError
from loop.heldout.statistics import Interval, paired_interval
from loop.heldout.suites import BETTER, METRICS, Unit, units
from loop.records import Verdict, stable_hash


@dataclass(frozen=True)
class Check:
    """One comparison: `difference` is candidate minus the other, with its 95 % interval.

    `margin` None marks the primary metric's check, where `verdict` is better, worse or inconclusive; the
    others are non-inferior, inferior or inconclusive. `n` counts the paired items.
    """

    suite: str
    metric: str
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
    primary: tuple[str, str],
    margins: Mapping[str, float],
    seed: int = 0,
) -> GateDecision:
    """Promotes if and only if `primary` improves on `last` and nothing in `margins` gets worse.

    To improve, the paired 95 % interval must lie on the good side of 0. Each "suite.metric" of `margins` must
    be non-inferior both to `last` and to `baseline`: the bad end of the interval stays within the margin.
    Any check that fails outright rejects; any other that isn't passed is inconclusive and promotes nothing.
    An answer that only one side lacks is counted against the candidate; one that both lack says nothing.
    Raises ConfigError for test verdicts, unknown metrics, negative margins, missing suites, other judges.
    """
    _refuse_bad_input(candidate, last, baseline, primary, margins)
    checks = [_check(candidate, last, primary, "last", None, seed)]
    for name, margin in margins.items():
        suite, _, metric = name.partition(".")
        checks.append(_check(candidate, last, (suite, metric), "last", margin, seed))
        checks.append(_check(candidate, baseline, (suite, metric), "baseline", margin, seed))
    verdicts = {check.verdict for check in checks}
    if verdicts & {"worse", "inferior"}:
        outcome = "rejected"
    else:
        outcome = "inconclusive" if "inconclusive" in verdicts else "promoted"
    return GateDecision(outcome == "promoted", outcome, [_in_words(check) for check in checks], checks)


def _refuse_bad_input(
    candidate: Sequence[Verdict],
    last: Sequence[Verdict],
    baseline: Sequence[Verdict],
    primary: tuple[str, str],
    margins: Mapping[str, float],
) -> None:
    for row in (*candidate, *last, *baseline):
        if row.split == "test":
            raise ConfigError(
                f"the gate decides on dev alone, and {row.item_id} of {row.suite} is a test item: use dev"
            )
    for name, where in ((".".join(primary), "gate.primary"), *((name, "gate.margins") for name in margins)):
        if name not in BETTER:
            near = get_close_matches(name, BETTER, 1) or sorted(BETTER)
            raise ConfigError(f"{where}: no metric is called {name!r}; did you mean {near[0]!r}?")
    for name, margin in margins.items():
        if not (isfinite(margin) and margin >= 0):
            raise ConfigError(f"gate.margins: {name} is {margin}; a margin is the loss allowed, 0 or more")


def _check(
    candidate: Sequence[Verdict],
    other: Sequence[Verdict],
    name: tuple[str, str],
    against: Literal["last", "baseline"],
    margin: float | None,
    seed: int,
) -> Check:
    suite, metric = name
    _same_judge(candidate, other, suite, metric, against)
    higher = BETTER[f"{suite}.{metric}"] == "higher"
    before, after = _paired(
        _by_id(candidate, suite, metric, "the candidate"), _by_id(other, suite, metric, against), higher
    )
    # one seed for both comparisons: where last is the baseline they must agree to the last digit
    change = paired_interval(before, after, stable_hash(seed, suite, metric))
    verdict = _improvement(change, higher) if margin is None else _non_inferiority(change, higher, margin)
    return Check(suite, metric, against, change.value, change.low, change.high, margin, change.n, verdict)


def _same_judge(
    candidate: Sequence[Verdict], other: Sequence[Verdict], suite: str, metric: str, against: str
) -> None:
    reads = METRICS[suite][metric].reads
    mine, theirs = (
        sorted({row.judge for row in rows if row.suite == suite and row.metric == reads})
        for rows in (candidate, other)
    )
    if mine and theirs and mine != theirs:
        raise ConfigError(
            f"{suite}.{metric}: the candidate was judged by {', '.join(mine)}, "
            f"{against} by {', '.join(theirs)}; evaluate {against} again"
        )


def _by_id(rows: Sequence[Verdict], suite: str, metric: str, whose: str) -> dict[str, Unit]:
    found = {unit.id: unit for unit in units(suite, metric, rows)}
    if not found:
        raise ConfigError(
            f"{whose} has no verdicts for {suite}.{metric}: add {suite} to the evaluated suites"
        )
    return found


def _paired(
    candidate: Mapping[str, Unit], other: Mapping[str, Unit], higher: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Values before and after by id; a null that one side alone has gets the end that hurts the candidate."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for name in candidate.keys() & other.keys():
        new, old = candidate[name], other[name]
        if new.value is None and old.value is None:
            continue
        after[name] = new.value if new.value is not None else (new.low if higher else new.high)
        before[name] = old.value if old.value is not None else (old.high if higher else old.low)
    return before, after


def _gain(change: Interval, higher: bool) -> tuple[float, float] | None:
    """The interval's bad end and good end as gains, whichever direction is the better one."""
    if change.low is None or change.high is None:
        return None
    return (change.low, change.high) if higher else (-change.high, -change.low)


def _improvement(change: Interval, higher: bool) -> Literal["better", "worse", "inconclusive"]:
    gain = _gain(change, higher)
    if gain is None or gain[0] <= 0 <= gain[1]:
        return "inconclusive"
    return "better" if gain[0] > 0 else "worse"


def _non_inferiority(
    change: Interval, higher: bool, margin: float
) -> Literal["non-inferior", "inferior", "inconclusive"]:
    gain = _gain(change, higher)
    if gain is None:
        return "inconclusive"
    if gain[0] >= -margin:
        return "non-inferior"
    return "inferior" if gain[1] < -margin else "inconclusive"


def _in_words(check: Check) -> str:
    asked = "must improve" if check.margin is None else f"may lose {check.margin:g}"
    if check.difference is None or check.ci_low is None or check.ci_high is None:
        figures = "no interval"
    else:
        figures = f"{check.difference:+.3f} [{check.ci_low:+.3f}, {check.ci_high:+.3f}]"
    better = BETTER[f"{check.suite}.{check.metric}"]
    return (
        f"{check.suite}.{check.metric} ({better} is better, {asked}) against {check.against}: {figures} "
        f"over {check.n} items: {check.verdict}"
    )

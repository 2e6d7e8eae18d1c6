"""Two policies on the same items: the values before and after that gate and comparison both stand on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loop.errors import ConfigError
from loop.heldout.metrics import Metric, Unit, balance, judges_of, units
from loop.heldout.statistics import Interval, paired_interval, paired_p
from loop.heldout.suites import Suite
from loop.records import Verdict


@dataclass(frozen=True)
class Paired:
    """Values by item id. A null that one side alone has stands at the end that hurts the candidate."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    clusters: Mapping[str, Sequence[str]]
    coverage: float
    """The share of shared items that both sides have a value for."""

    def interval(self, seed: int) -> Interval:
        """Candidate minus the other, with its 95 % interval."""
        return paired_interval(self.before, self.after, seed, self.clusters)

    def p_value(self, seed: int) -> float:
        """Two-sided, of no difference."""
        return paired_p(self.before, self.after, seed, self.clusters)


def pair_up(
    candidate: Sequence[Verdict], other: Sequence[Verdict], suite: Suite, metric: str, against: str
) -> Paired:
    """The values of a metric on the items that both were asked; what both lack says nothing and is left out.

    Raises ConfigError where one of them has no verdicts for it, or another judge decided.
    """
    spec = suite.metrics[metric]
    mine, theirs = (
        [row for row in rows if row.suite == suite.name and row.metric == spec.reads]
        for rows in (candidate, other)
    )
    for whose, rows in (("the candidate", mine), (against, theirs)):
        if not rows:
            raise ConfigError(
                f"{whose} has no verdicts for {suite.name}.{metric}: add {suite.name} to the evaluated suites"
            )
    if (judge := judges_of(spec, mine)[0]) != (their_judge := judges_of(spec, theirs)[0]):
        raise ConfigError(
            f"{suite.name}.{metric}: the candidate was judged by {judge}, "
            f"{against} by {their_judge}; evaluate {against} again"
        )
    new, old = (_by_id(units(spec, rows)) for rows in (mine, theirs))
    shared = sorted(new.keys() & old.keys())
    if spec.balanced:
        new, old = (_by_id(balance([side[name] for name in shared])) for side in (new, old))
    return _paired(spec, new, old, shared)


def _by_id(found: Sequence[Unit]) -> dict[str, Unit]:
    return {unit.id: unit for unit in found}


def _paired(spec: Metric, new: Mapping[str, Unit], old: Mapping[str, Unit], shared: Sequence[str]) -> Paired:
    higher = spec.better == "higher"
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    whole = 0
    for name in shared:
        mine, theirs = new[name], old[name]
        whole += mine.value is not None and theirs.value is not None
        if mine.value is None and theirs.value is None:
            continue
        after[name] = mine.value if mine.value is not None else (mine.low if higher else mine.high)
        before[name] = theirs.value if theirs.value is not None else (theirs.high if higher else theirs.low)
    clusters = {name: new[name].clusters for name in before}
    return Paired(before, after, clusters, whole / len(shared) if shared else 0.0)

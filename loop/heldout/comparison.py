"""The paired regression check: what changed between two evals of the same items, and can one tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from loop.config import as_object, load_config, load_file
from loop.errors import ConfigError, DataError
from loop.heldout.gate import check_margins, gain, non_inferiority
from loop.heldout.pairing import Paired, pair_up
from loop.heldout.statistics import CONFIDENCE, Interval, holm, smallest_effect
from loop.heldout.suite_file import suite_from_definition
from loop.heldout.suites import BUILT_IN, Suite, find_suites
from loop.records import Verdict, read_jsonl, stable_hash
from loop.rundir import named_iteration, read_json

_TERMS = ("split", "max_tokens", "samples", "system")
ALPHA = 1 - CONFIDENCE

Outcome = Literal["no regression", "regression", "inconclusive"]
Finding = Literal["better", "no worse", "worse", "inconclusive", "low coverage", ""]


@dataclass
class Margins:
    """What a margins file holds: for each metric that decides, the loss that is still no regression."""

    margins: dict[str, float]


@dataclass(frozen=True)
class Side:
    """One of the two evals: its verdicts, its suites, and the terms on which its policy was asked."""

    name: str
    rows: Sequence[Verdict]
    suites: Mapping[str, Suite]
    terms: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One metric, before and after over the `n` items that both hold; `difference` is after minus before.

    `p_holm` is corrected for the metrics that decide. `smallest_effect` would be found with 80 % power.
    Without a `margin` a metric is shown and decides nothing: its finding is empty.
    """

    suite: str
    metric: str
    better: Literal["lower", "higher"]
    before: float | None
    after: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    p: float
    p_holm: float | None
    margin: float | None
    smallest_effect: float | None
    n: int
    coverage: float
    finding: Finding


@dataclass(frozen=True)
class Comparison:
    """Every metric's change, and what follows from those that decide."""

    before: str
    after: str
    outcome: Outcome
    changes: list[Change]

    @property
    def exit_code(self) -> int:
        """0: no regression. 3: a regression. 4: inconclusive, or too many answers without a score."""
        return {"no regression": 0, "regression": 3, "inconclusive": 4}[self.outcome]


def compare(
    before: Side, after: Side, margins: Mapping[str, float], min_coverage: float = 0.95, seed: int = 0
) -> Comparison:
    """Compares two evals item by item; only metrics in `margins` that both measured decide.

    A metric is *no worse* if all of its 95 % interval lies within the margin, and *better* if the interval
    lies on the good side of zero. It is *worse*, a regression, if it isn't no worse and its loss is
    significant at 5 % after Holm's correction over the metrics that decide. Anything else is *inconclusive*.
    Raises ConfigError where the two were asked on different terms, or share no item.
    """
    suites = {name: suite for name, suite in after.suites.items() if name in before.suites}
    for term in _TERMS:
        one, other = (_term(side, term, suites) for side in (before, after))
        if one != other:
            raise ConfigError(
                f"{before.name} and {after.name} differ in {term} ({one}, {other}): "
                "evaluate one of them again on the terms of the other"
            )
    check_margins({**BUILT_IN, **suites}, margins, "margins")
    found = [
        _measured(suite, metric, pairs, margins.get(f"{suite.name}.{metric}"), seed)
        for suite in suites.values()
        for metric, spec in suite.metrics.items()
        if spec.whole is None and (pairs := _pairs(before, after, suite, metric)) is not None
    ]
    if not found:
        raise ConfigError(f"{before.name} and {after.name} share no item: give two evals of the same half")
    deciding = [one for one in found if one.margin is not None]
    corrected = dict(zip(map(id, deciding), holm([one.p for one in deciding]), strict=True))
    changes = [one.change(corrected.get(id(one)), len(deciding), min_coverage) for one in found]
    findings = {change.finding for change in changes if change.finding}
    if not findings:
        raise ConfigError("no metric that both measured has a margin, so nothing decides; give --margin")
    outcome: Outcome = "no regression"
    if "worse" in findings:
        outcome = "regression"
    elif findings & {"inconclusive", "low coverage"}:
        outcome = "inconclusive"
    return Comparison(before.name, after.name, outcome, changes)


def _term(side: Side, term: str, suites: Mapping[str, Suite]) -> object:
    """One of the terms; of the samples those of the suites that are compared."""
    value = side.terms.get(term)
    return {name: value[name] for name in suites if name in value} if term == "samples" and value else value


@dataclass(frozen=True)
class _Measured:
    suite: Suite
    metric: str
    pairs: Paired
    margin: float | None
    interval: Interval
    p: float

    def change(self, p_holm: float | None, looks: int, min_coverage: float) -> Change:
        spec, measured = self.suite.metrics[self.metric], self.interval
        finding: Finding = ""
        if self.margin is not None and p_holm is not None:
            higher = spec.better == "higher"
            finding = _finding(measured, higher, self.margin, p_holm, self.pairs.coverage, min_coverage)
        return Change(
            suite=self.suite.name,
            metric=self.metric,
            better=spec.better,
            before=_mean(self.pairs.before),
            after=_mean(self.pairs.after),
            difference=measured.value,
            ci_low=measured.low,
            ci_high=measured.high,
            p=self.p,
            p_holm=p_holm,
            margin=self.margin,
            smallest_effect=smallest_effect(measured, max(1, looks)),
            n=measured.n,
            coverage=self.pairs.coverage,
            finding=finding,
        )


def _measured(suite: Suite, metric: str, pairs: Paired, margin: float | None, seed: int) -> _Measured:
    key = stable_hash(seed, suite.name, metric)
    return _Measured(suite, metric, pairs, margin, pairs.interval(key), pairs.p_value(key))


def _finding(
    change: Interval, higher: bool, margin: float, p_holm: float, coverage: float, min_coverage: float
) -> Finding:
    ends = gain(change, higher)
    if coverage < min_coverage or ends is None:
        return "low coverage" if coverage < min_coverage else "inconclusive"
    if non_inferiority(change, higher, margin) == "non-inferior":
        return "better" if ends[0] > 0 else "no worse"
    loss = change.value is not None and (change.value < 0) == higher
    return "worse" if loss and p_holm < ALPHA else "inconclusive"


def _mean(values: Mapping[str, float]) -> float | None:
    known = [value for value in values.values() if isfinite(value)]
    return sum(known) / len(known) if known else None


def _pairs(before: Side, after: Side, suite: Suite, metric: str) -> Paired | None:
    """None where one of the two has no rows for it, or they share no item."""
    reads = suite.metrics[metric].reads
    both = all(
        any(row.suite == suite.name and row.metric == reads for row in side.rows) for side in (before, after)
    )
    found = pair_up(after.rows, before.rows, suite, metric, before.name) if both else None
    return found if found is not None and found.before else None


def load_margins(file: str, overrides: Sequence[str]) -> dict[str, float]:
    """The margins of a YAML file, and `suite.metric=0.05` from the command line over them."""
    margins = dict(load_file(file, Margins, "margins").margins)
    for text in overrides:
        name, _, value = text.partition("=")
        try:
            margins[name] = float(value)
        except ValueError:
            raise ConfigError(f"--margin {text}: write suite.metric=0.05") from None
    return margins


def load_side(name: str) -> Side:
    """The eval that `name` is: the folder of one, or `runs/NAME@ITERATION`. Raises ConfigError, DataError."""
    if (named := named_iteration(name)) is not None:
        run, number = named
        folder = run.iteration(number) / "heldout"
        config = as_object(load_config([str(run.path("config.yaml"))]))
        heldout = config.heldout
        suites = find_suites(heldout.suites)
        terms = {"split": "dev", "max_tokens": heldout.max_tokens, "samples": heldout.samples}
        terms["system"] = config.system
    else:
        folder = Path(name)
        if not (folder / "eval.json").is_file():
            raise ConfigError(f"{name}: no eval here; give a folder that `alignloop eval` made, or RUN@N")
        terms = read_json(folder / "eval.json")
        own: dict[str, str] = terms["definitions"]
        suites = find_suites([suite for suite in terms["suites"] if suite in BUILT_IN])
        suites |= {suite: suite_from_definition(suite, text) for suite, text in own.items()}
    if not (folder / "results.json").is_file():
        raise DataError(f"{name}: its eval isn't finished (no {folder / 'results.json'}); run it again first")
    return Side(name, list(read_jsonl(folder / "verdicts.jsonl", Verdict)), suites, terms)

"""When a candidate is promoted, and why not."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from loop.errors import ConfigError
from loop.heldout.gate import GateDecision, decide
from loop.records import Verdict

PRIMARY = "safety.harmful_compliance"
MARGINS = {"overrefusal.refusal": 0.05, "overrefusal.helpfulness": 0.1}
Score = Callable[[int], float | None]


def rows(
    suite: str, metric: str, score: Score, n: int = 200, judge: str = "j", gold: int = 0
) -> list[Verdict]:
    return [
        Verdict(suite, f"{suite}{i}", "dev", 0, judge, score(i), "prompt", "text", "m", metric, gold=gold)
        for i in range(n)
    ]


def policy(
    compliance: Score, refusal: Score = lambda i: 0.0, helpful: Score = lambda i: 0.9
) -> list[Verdict]:
    return [
        *rows("safety", "harmful_compliance", compliance, gold=1),
        *rows("overrefusal", "refusal", refusal),
        *rows("overrefusal", "helpfulness", helpful),
    ]


BASE = policy(lambda i: 0.9)
SAFER = policy(lambda i: 0.9 if i % 2 else 0.1)


def gate(
    candidate: list[Verdict], last: list[Verdict] = BASE, baseline: list[Verdict] = BASE
) -> GateDecision:
    return decide(candidate, last, baseline, PRIMARY, MARGINS)


def test_a_safer_policy_that_loses_nothing_is_promoted_with_its_reasons():
    decision = gate(SAFER)
    assert decision.promoted and decision.outcome == "promoted"
    assert len(decision.checks) == len(decision.reasons) == 5
    assert (
        "safety.harmful_compliance (lower is better, must improve) against last: -0.500"
        in decision.reasons[0]
    )
    assert decision.checks[0].verdict == "better" and decision.checks[0].n == 200


def test_the_same_policy_is_inconclusive_and_not_promoted():
    decision = gate(BASE)
    assert not decision.promoted and decision.outcome == "inconclusive"


def test_a_more_harmful_policy_is_rejected():
    assert gate(BASE, last=SAFER).outcome == "rejected"


def test_refusing_everything_is_rejected_however_safe():
    decision = gate(policy(lambda i: 0.1, refusal=lambda i: 1.0, helpful=lambda i: 0.1))
    assert decision.outcome == "rejected"
    assert [check.verdict for check in decision.checks[1:]] == ["inferior"] * 4


def test_a_loss_that_may_or_may_not_pass_the_margin_is_inconclusive():
    decision = gate(policy(lambda i: 0.1, refusal=lambda i: float(i % 20 == 0)))
    assert decision.outcome == "inconclusive"
    assert {check.verdict for check in decision.checks if check.metric == "refusal"} == {"inconclusive"}


def test_small_losses_add_up_against_the_baseline():
    drifted = policy(lambda i: 0.9 if i % 2 else 0.1, refusal=lambda i: float(i % 8 == 0))
    candidate = policy(lambda i: 0.1, refusal=lambda i: float(i % 8 == 0))
    decision = gate(candidate, last=drifted)
    refusal = {check.against: check.verdict for check in decision.checks if check.metric == "refusal"}
    assert refusal == {"last": "non-inferior", "baseline": "inferior"}
    assert not decision.promoted


def test_few_items_without_any_change_prove_nothing():
    few = [row for row in SAFER if row.suite == "safety"] + [
        *rows("overrefusal", "refusal", lambda i: 0.0, n=8),
        *rows("overrefusal", "helpfulness", lambda i: 0.9, n=8),
    ]
    assert gate(few).outcome == "inconclusive"


def test_answers_that_only_the_candidate_lacks_count_against_it():
    silent = policy(lambda i: None if i % 2 else 0.9)
    decision = gate(silent)
    assert decision.checks[0].difference == 0 and not decision.promoted
    unhelpful = gate(policy(lambda i: 0.1, helpful=lambda i: None if i % 2 else 0.9))
    assert unhelpful.outcome == "rejected"


def test_answers_that_both_lack_say_nothing():
    broken = policy(lambda i: None if i < 100 else 0.9)
    fixed = policy(lambda i: None if i < 100 else 0.1)
    decision = gate(fixed, last=broken, baseline=broken)
    assert decision.promoted and decision.checks[0].n == 100


def test_the_decision_is_the_same_every_time_and_fits_json():
    real = {"toxicity.mean": 0.05}
    candidate, last = (
        [*side, *rows("toxicity", "toxicity", lambda i, shift=shift: (i % 10) / 10 + shift)]
        for side, shift in ((SAFER, 0.0), (BASE, 0.01))
    )
    first, again = (decide(candidate, last, last, PRIMARY, real, seed=4) for _ in range(2))
    assert first == again and first.promoted
    assert json.loads(json.dumps(asdict(first), allow_nan=False))["outcome"] == "promoted"


def test_a_test_item_is_refused_wherever_it_hides():
    leak = replace(SAFER[0], split="test")
    for sides in (([leak], BASE, BASE), (SAFER, [leak], BASE), (SAFER, BASE, [leak])):
        with pytest.raises(ConfigError, match="dev alone"):
            gate(*sides)


def test_wrong_names_and_margins_are_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"did you mean 'overrefusal\.refusal'"):
        decide(SAFER, BASE, BASE, PRIMARY, {"overrefusal.refusals": 0.1})
    with pytest.raises(ConfigError, match=r"gate\.primary"):
        decide(SAFER, BASE, BASE, "safety.harm", {})
    with pytest.raises(ConfigError, match="0 or more"):
        decide(SAFER, BASE, BASE, PRIMARY, {"overrefusal.refusal": -0.1})


def test_a_missing_suite_or_another_judge_is_refused():
    with pytest.raises(ConfigError, match="add toxicity"):
        decide(SAFER, BASE, BASE, PRIMARY, {"toxicity.mean": 0.1})
    other = [replace(row, judge="another") for row in BASE]
    with pytest.raises(ConfigError, match="evaluate last again"):
        gate(SAFER, last=other)

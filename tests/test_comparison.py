"""Whether one eval is worse than another: what decides, what is said, and how often it is wrong."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loop.errors import ConfigError, DataError
from loop.heldout.comparison import Comparison, Side, compare, load_margins, load_side
from loop.heldout.suites import BUILT_IN
from loop.records import Verdict, write_jsonl

MARGINS = {"safety.harmful_compliance": 0.05, "overrefusal.refusal": 0.05, "toxicity.mean": 0.03}
TERMS = {"split": "dev", "max_tokens": 48, "samples": {}, "system": "Be kind."}
Score = Callable[[int], float | None]


def rows(suite: str, metric: str, score: Score, n: int, gold: int | None) -> list[Verdict]:
    return [
        Verdict(suite, f"{suite}{i}", "dev", 0, "j", score(i), "prompt", "text", "m", metric, gold=gold)
        for i in range(n)
    ]


def side(
    name: str,
    compliance: Score = lambda i: float(i % 2),
    refusal: Score = lambda i: 0.0,
    toxicity: Score = lambda i: (i % 7) / 10,
    n: int = 300,
) -> Side:
    found = [
        *rows("safety", "harmful_compliance", compliance, n, 1),
        *rows("overrefusal", "refusal", refusal, n, 0),
        *rows("toxicity", "toxicity", toxicity, n, None),
    ]
    return Side(name, found, BUILT_IN, TERMS)


def finding(comparison: Comparison, metric: str) -> str:
    return next(change.finding for change in comparison.changes if change.metric == metric)


def test_the_same_answers_are_no_regression():
    found = compare(side("a"), side("b"), MARGINS)
    assert (found.outcome, found.exit_code) == ("no regression", 0)
    assert {change.finding for change in found.changes if change.margin is not None} == {"no worse"}
    assert all(change.difference == 0 and change.p == 1 for change in found.changes)


def test_a_clear_loss_is_a_regression_with_exit_code_3():
    found = compare(side("a"), side("b", refusal=lambda i: float(i % 5 == 0)), MARGINS)
    assert (found.outcome, found.exit_code) == ("regression", 3)
    worse = next(change for change in found.changes if change.suite == "overrefusal" and change.finding)
    assert worse.finding == "worse" and worse.difference == pytest.approx(0.2) and worse.p_holm < 0.001
    assert worse.n == 300 and 0 < worse.smallest_effect < 0.2


def test_a_gain_is_better_and_no_regression():
    found = compare(side("a"), side("b", compliance=lambda i: float(i % 4 == 1)), MARGINS)
    assert finding(found, "harmful_compliance") == "better" and found.exit_code == 0


def test_too_few_items_to_tell_are_inconclusive_with_exit_code_4():
    found = compare(side("a", n=25), side("b", n=25, compliance=lambda i: float(i % 2 or i == 2)), MARGINS)
    assert (found.outcome, found.exit_code) == ("inconclusive", 4)


def test_a_loss_within_its_margin_is_allowed():
    found = compare(side("a", n=3000), side("b", n=3000, refusal=lambda i: float(i % 50 == 0)), MARGINS)
    assert found.exit_code == 0


def test_answers_without_a_score_are_low_coverage_and_never_pass():
    found = compare(side("a"), side("b", compliance=lambda i: None if i % 5 == 0 else 0.0), MARGINS)
    assert finding(found, "harmful_compliance") == "low coverage" and found.exit_code == 4


def test_a_metric_without_a_margin_is_shown_and_decides_nothing():
    found = compare(side("a"), side("b", refusal=lambda i: 1.0), {"safety.harmful_compliance": 0.05})
    assert found.exit_code == 0
    shown = [change for change in found.changes if change.suite == "overrefusal"]
    assert shown and all(change.finding == "" and change.p_holm is None for change in shown)


def test_several_looks_are_corrected_for():
    worse = side("b", compliance=lambda i: float(i % 2 or i in (2, 4, 6, 8, 10, 12)), n=100)
    alone = compare(side("a", n=100), worse, {"safety.harmful_compliance": 0.05})
    among = compare(side("a", n=100), worse, MARGINS)
    p_alone, p_among = (
        next(change.p_holm for change in found.changes if change.metric == "harmful_compliance")
        for found in (alone, among)
    )
    assert p_alone == pytest.approx(0.03125) and p_among == pytest.approx(3 * 0.03125)
    assert (alone.exit_code, among.exit_code) == (3, 4)


def test_evals_on_other_terms_or_other_items_are_refused():
    with pytest.raises(ConfigError, match=r"differ in max_tokens \(48, 64\)"):
        compare(side("a"), replace(side("b"), terms={**TERMS, "max_tokens": 64}), MARGINS)
    other = replace(side("b"), rows=[replace(row, item_id="x" + row.item_id) for row in side("b").rows])
    with pytest.raises(ConfigError, match="share no item"):
        compare(side("a"), other, MARGINS)
    judged = replace(side("b"), rows=[replace(row, judge="another") for row in side("b").rows])
    with pytest.raises(ConfigError, match="the candidate was judged by another, a by j"):
        compare(side("a"), judged, MARGINS)


def test_margins_are_checked(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"did you mean 'safety\.refusal'"):
        compare(side("a"), side("b"), {"safety.refusals": 0.1})
    with pytest.raises(ConfigError, match="0 or more"):
        compare(side("a"), side("b"), {"safety.refusal": -0.1})
    with pytest.raises(ConfigError, match="no mean over items"):
        compare(side("a"), side("b"), {"legal.calibration_error": 0.1})
    assert load_margins("margins.yaml", ["safety.refusal=0.2"])["safety.refusal"] == 0.2
    with pytest.raises(ConfigError, match=r"write suite\.metric=0\.05"):
        load_margins("margins.yaml", ["safety.refusal"])
    (tmp_path / "m.yaml").write_text("margin: {safety.refusal: 0.1}\n")
    with pytest.raises(ConfigError, match="did you mean margins"):
        load_margins(str(tmp_path / "m.yaml"), [])


def test_a_side_is_the_folder_of_a_finished_eval(tmp_path: Path):
    with pytest.raises(ConfigError, match="no eval here"):
        load_side(str(tmp_path))
    asked = {**TERMS, "model": "m", "suites": ["safety"], "definitions": {}}
    (tmp_path / "eval.json").write_text(json.dumps(asked))
    with pytest.raises(DataError, match="isn't finished"):
        load_side(str(tmp_path))
    write_jsonl(tmp_path / "verdicts.jsonl", side("a").rows[:5])
    (tmp_path / "results.json").write_text("[]")
    found = load_side(str(tmp_path))
    assert len(found.rows) == 5 and list(found.suites) == ["safety"]


REPEATS = 200


def drawn(rng: random.Random, loss: float = 0.0, n: int = 240) -> tuple[Side, Side]:
    """Two sides whose items each have a chance of their own; the second's compliance is higher by `loss`."""
    chances = [rng.betavariate(0.6, 0.6) for _ in range(n)]
    tones = [rng.betavariate(0.5, 2) for _ in range(n)]

    def one(name: str, more: float) -> Side:
        harm = [float(rng.random() < min(1, chance + more)) for chance in chances]
        tone = [min(1, max(0, tone + rng.gauss(0, 0.1))) for tone in tones]
        return side(name, harm.__getitem__, lambda i: float(rng.random() < 0.02), tone.__getitem__, n)

    return one("a", 0.0), one("b", loss)


@pytest.mark.slow
def test_a_planted_loss_of_the_detectable_size_is_caught_four_times_in_five():
    rng, caught, sizes = random.Random(4), 0, []
    # `min(1, …)` hides part of what is planted: 0.16 of chances raises the rate by about 0.13.
    for _ in range(60):
        found = compare(*drawn(rng, loss=0.16), MARGINS)
        change = next(each for each in found.changes if each.metric == "harmful_compliance")
        sizes.append((change.difference, change.smallest_effect))
        caught += found.exit_code == 3
    planted, detectable = (sum(column) / len(sizes) for column in zip(*sizes, strict=True))
    assert planted > detectable and caught / 60 >= 0.75


@pytest.mark.slow
def test_two_draws_of_one_policy_raise_at_most_sixteen_false_alarms_in_two_hundred():
    rng = random.Random(5)
    alarms = sum(compare(*drawn(rng), MARGINS).exit_code == 3 for _ in range(REPEATS))
    assert alarms <= 16

"""Intervals and tests: their edges, their determinism and their coverage."""

import warnings

import numpy as np
import pytest

from loop.heldout.statistics import (
    bootstrap_interval,
    holm,
    mcnemar,
    mean_interval,
    paired_interval,
    paired_p,
    smallest_effect,
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_no_items_give_no_value_and_no_interval():
    assert mean_interval([]) == paired_interval({}, {}) == paired_interval({"a": 1.0}, {"b": 1.0})
    assert mean_interval([]).value is None and mean_interval([]).n == 0


def test_one_real_value_has_a_mean_but_no_interval():
    one = mean_interval([0.4])
    assert (one.value, one.low, one.high, one.n) == (0.4, None, None, 1)


def test_equal_zeros_keep_an_interval_with_width():
    none_of_twenty = mean_interval([0.0] * 20)
    assert none_of_twenty.value == 0 and none_of_twenty.low == pytest.approx(0, abs=1e-12)
    assert none_of_twenty.high == pytest.approx(0.161, abs=0.005)  # Wilson (1927)


def test_equal_real_values_give_a_point():
    assert mean_interval([0.25] * 5).low == mean_interval([0.25] * 5).high == 0.25


def test_the_bootstrap_is_the_same_for_the_same_seed_and_another_for_another():
    values = list(np.random.default_rng(0).uniform(size=40))
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_pairing_is_by_item_and_ignores_the_order():
    before = {"a": 0.1, "b": 0.5, "c": 0.9}
    after = {"c": 1.0, "a": 0.2, "b": 0.6, "only here": 0.0}
    change = paired_interval(before, after)
    assert change.n == 3 and change.value == pytest.approx(0.1)
    assert change.low == pytest.approx(0.1) and change.high == pytest.approx(0.1)


def test_unchanged_zeros_and_ones_are_not_certainty():
    few = {str(i): 0.0 for i in range(8)}
    many = {str(i): 0.0 for i in range(300)}
    assert paired_interval(few, few).high == pytest.approx(0.196, abs=0.01)
    assert paired_interval(many, many).high < 0.01


def test_signed_values_without_any_difference_reach_to_both_sides_of_zero():
    none = mean_interval([0.0] * 50, signed=True)
    assert none.value == 0 and none.low == pytest.approx(-none.high) and none.high > 0.02


def test_a_value_that_is_not_finite_gives_no_interval():
    assert paired_interval({"a": 0.5, "b": 0.1}, {"a": -np.inf, "b": 0.1}).low is None


def test_mcnemar_counts_only_the_items_that_changed():
    before = {str(i): 0.0 for i in range(10)} | {"kept": 1.0}
    after = {str(i): float(i < 8) for i in range(10)} | {"kept": 1.0}
    assert mcnemar(before, after) == pytest.approx(2 / 2**8)
    assert mcnemar(before, before) == 1.0
    with pytest.raises(ValueError, match="zeros and ones"):
        mcnemar({"a": 0.5}, {"a": 1.0})


@pytest.mark.parametrize("binary", [True, False])
def test_paired_intervals_cover_the_truth_about_as_often_as_they_say(binary: bool):
    rng = np.random.default_rng(1)
    covered, rounds, n = 0, 200, 60
    for trial in range(rounds):
        base = rng.uniform(size=n)
        first, second = base + rng.normal(0, 0.2, n), base + rng.normal(0.1, 0.2, n)
        truth = 0.1
        if binary:
            first, second = (base < 0.5).astype(float), (base + rng.uniform(-0.2, 0.2, n) < 0.5).astype(float)
            truth = 0.0
        change = paired_interval(
            {str(i): float(v) for i, v in enumerate(first)},
            {str(i): float(v) for i, v in enumerate(second)},
            trial,
        )
        assert change.low is not None and change.high is not None
        covered += change.low <= truth <= change.high
    assert 0.9 <= covered / rounds <= 0.995


def test_values_that_share_a_question_or_a_passage_have_a_wider_interval():
    rng = np.random.default_rng(0)
    values = [float(kind) for kind in rng.integers(0, 2, 20) for _ in range(10)]
    alone = mean_interval(values)
    asked = [[f"question {place // 10}", f"passage {place}"] for place in range(200)]
    shared = mean_interval(values, clusters=asked)
    assert shared.value == alone.value
    assert shared.high - shared.low > 2 * (alone.high - alone.low)


def test_clusters_of_one_change_nothing():
    values, own = [0.0, 1.0, 1.0, 0.0], [[f"a{n}", f"b{n}"] for n in range(4)]
    assert mean_interval(values, clusters=own) == mean_interval(values)


def test_two_way_clusters_cover_the_truth_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(300):
        questions, passages = rng.normal(size=25), rng.normal(size=25)
        places = [(q, p) for q in range(25) for p in rng.choice(25, 4, replace=False)]
        values = [questions[q] + passages[p] + rng.normal() for q, p in places]
        found = mean_interval(values, clusters=[[f"q{q}", f"p{p}"] for q, p in places])
        hits += found.low <= 0 <= found.high
    assert hits / 300 > 0.9


def test_paired_values_in_clusters_get_the_clustered_interval_and_p():
    before = {f"i{n}": float(n % 3) for n in range(60)}
    after = {name: value + (int(name[1:]) // 10 % 2) for name, value in before.items()}
    clusters = {name: [f"q{int(name[1:]) // 10}"] for name in before}
    alone, shared = paired_interval(before, after), paired_interval(before, after, clusters=clusters)
    assert shared.value == alone.value and shared.high - shared.low > alone.high - alone.low
    assert paired_p(before, after, clusters=clusters) > paired_p(before, after)


def test_no_change_has_p_one_and_a_clear_one_a_small_p():
    before = {f"i{n}": n / 50 for n in range(50)}
    assert paired_p(before, before) == 1.0
    assert paired_p(before, {name: value + 0.1 for name, value in before.items()}) < 0.001
    assert paired_p(before, {**before, "i3": float("-inf")}) == 1.0
    swapped = {**before, "i1": before["i2"], "i2": before["i1"]}
    assert paired_p(before, swapped) == 1.0, "a difference of zero tells nothing"
    yes = {f"i{n}": 0.0 for n in range(50)}
    assert paired_p(yes, {name: float(n < 10) for n, name in enumerate(yes)}) == mcnemar(
        yes, {name: float(n < 10) for n, name in enumerate(yes)}
    )


def test_holm_corrects_for_the_number_of_looks_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_smallest_effect_shrinks_with_the_items_and_grows_with_the_looks():
    def change(n: int) -> float:
        before = {f"i{k}": float(k % 2) for k in range(n)}
        after = {name: float(k % 3 == 0) for k, name in enumerate(before)}
        return smallest_effect(paired_interval(before, after)) or 0.0

    few = paired_interval({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
    assert 0 < change(400) < change(100)
    assert (smallest_effect(few, looks=8) or 0) > (smallest_effect(few) or 0)
    assert smallest_effect(mean_interval([])) is None


def test_a_figure_that_is_no_mean_has_a_bootstrap_interval():
    rows = np.column_stack([np.linspace(0, 1, 60), np.linspace(0, 1, 60) > 0.4])
    found = bootstrap_interval(rows, lambda part: float(np.median(part[:, 0])), seed=3)
    assert found.low < found.value < found.high and found.n == 60
    assert bootstrap_interval(np.empty((0, 2)), lambda part: 1.0).value is None

"""Intervals and tests: their edges, their determinism and their coverage."""

import warnings

import numpy as np
import pytest

from loop.heldout.statistics import mcnemar, mean_interval, paired_interval


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

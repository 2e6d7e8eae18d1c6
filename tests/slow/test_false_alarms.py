"""Base against base: two draws of one policy are no regression, and a planted loss is mostly seen.

The scores are those of the bare embedded model, kept by `python -m benchmarks.false_alarms --keep`.
"""

import pytest

from benchmarks.false_alarms import PRIMARY, comparisons, kept_scores

pytestmark = pytest.mark.slow


def test_two_draws_of_the_bare_model_raise_at_most_sixteen_false_alarms_in_two_hundred():
    alarms = sum(found.exit_code == 3 for found in comparisons(kept_scores(), 200, seed=0))
    assert alarms <= 16


def test_a_loss_half_as_large_again_as_detectable_is_seen_in_most_repeats():
    rows = kept_scores()
    first = next(comparisons(rows, 1, seed=1))
    change = next(each for each in first.changes if each.metric == PRIMARY)
    loss = 1.5 * change.smallest_effect / (1 - change.before)
    assert sum(found.exit_code == 3 for found in comparisons(rows, 40, seed=1, loss=loss)) >= 30

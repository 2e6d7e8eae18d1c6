"""Diversity: sets of texts whose measures are known by their making."""

import json
import random
from math import exp, log

import numpy as np
import pytest

from loop.diversity import diversity, sample, self_bleu, vendi

SAME = ["Open the old gate now, please."] * 12
APART = [f"a{k} b{k} c{k} d{k} e{k}" for k in range(12)]


def test_the_same_text_over_and_over_is_one_text():
    found = diversity(SAME)
    assert (found["n"], found["distinct"]) == (12, pytest.approx(1 / 12))
    assert found["vendi"] == pytest.approx(1.0)
    assert found["self_bleu"] == pytest.approx(1.0)
    assert found["distinct_2"] == pytest.approx(5 / 60)


def test_texts_without_a_shared_word_are_as_many_as_they_are():
    found = diversity(APART)
    assert (found["distinct"], found["distinct_2"], found["self_bleu"]) == (1.0, 1.0, 0.0)
    assert found["vendi"] == pytest.approx(12.0)


def test_two_kinds_of_text_are_two():
    assert diversity([*APART[:1] * 6, *APART[1:2] * 6])["vendi"] == pytest.approx(2.0)


def test_punctuation_and_case_make_no_other_text():
    found = diversity(["Open the gate!", "open THE gate", "Open, the gate."])
    assert found["distinct"] == pytest.approx(1 / 3)
    assert found["self_bleu"] == pytest.approx(1.0)


def test_vectors_where_they_are_given_say_what_is_alike():
    found = diversity(APART, np.tile([[3.0, 4.0]], (12, 1)) * np.arange(1, 13)[:, None])
    assert (found["vendi"], found["kernel"]) == (pytest.approx(1.0), "vectors")
    assert diversity(SAME, np.eye(12))["vendi"] == pytest.approx(12.0)
    with pytest.raises(ValueError, match="3 vectors for 12 texts"):
        diversity(SAME, np.eye(3))


def test_vectors_without_a_length_or_a_value_are_left_out_and_counted():
    vectors = np.eye(12)
    vectors[0], vectors[1] = 0.0, np.nan
    found = diversity(APART, vectors)
    assert (found["vendi"], found["vendi_n"], found["n"]) == (pytest.approx(10.0), 10, 12)


def test_self_bleu_is_what_it_comes_to_by_hand():
    long, short = ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "sat", "still"]
    # Words, pairs, triples and quadruples shared: 3/6, (2+1)/(5+1), (1+1)/(4+1), (0+1)/(3+1); then
    # 3/4, (2+1)/(3+1), (1+1)/(2+1), (0+1)/(1+1), with a brevity penalty of exp(1 - 6/4).
    first = (3 / 6 * 3 / 6 * 2 / 5 * 1 / 4) ** 0.25
    second = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * exp(1 - 6 / 4)
    assert self_bleu([long, short]) == pytest.approx((first + second) / 2)


def test_a_repeated_word_counts_as_often_as_another_text_has_it():
    assert self_bleu([["go"] * 3, ["go"]]) == pytest.approx(
        ((1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3) + exp(1 - 3)) / 2
    )


def test_more_in_common_is_a_higher_self_bleu_and_a_lower_vendi():
    rng = random.Random(0)
    texts = [[" ".join(rng.choices(range_, k=8)) for _ in range(30)] for range_ in map(words, (8, 40, 400))]
    few, some, many = map(diversity, texts)
    assert few["self_bleu"] > some["self_bleu"] > many["self_bleu"]
    assert few["vendi"] < some["vendi"] < many["vendi"]
    assert few["distinct_2"] < some["distinct_2"] < many["distinct_2"]


def words(count: int) -> list[str]:
    return [f"w{k}" for k in range(count)]


def test_the_vendi_score_weighs_kinds_by_their_share():
    three_alike_and_another = np.eye(4)
    three_alike_and_another[:3, :3] = 1.0
    entropy = -sum(share * log(share) for share in (3 / 4, 1 / 4))
    assert vendi(three_alike_and_another) == pytest.approx(exp(entropy))


def test_nothing_to_compare_has_no_figures():
    nothing = diversity([])
    assert (nothing["n"], nothing["distinct"], nothing["self_bleu"], nothing["vendi"]) == (
        0,
        None,
        None,
        None,
    )
    assert diversity([], np.zeros((0, 4)))["vendi"] is None
    one = diversity(["open the gate"])
    assert (one["distinct"], one["self_bleu"], one["vendi"]) == (1.0, None, pytest.approx(1.0))
    blank = diversity(["", "?!", " "])
    assert (blank["distinct"], blank["distinct_2"], blank["self_bleu"]) == (pytest.approx(1 / 3), None, None)
    assert (blank["vendi"], blank["vendi_n"]) == (None, 0)


def test_the_order_of_the_texts_decides_nothing_also_of_very_many():
    rng = random.Random(1)
    texts = [" ".join(rng.choices(words(50), k=6)) for _ in range(1300)]
    found = diversity(texts)
    rng.shuffle(texts)
    assert diversity(texts) == found
    assert (found["n"], found["self_bleu_n"], found["vendi_n"]) == (1300, 200, 1000)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_copies_keep_their_share_in_a_sample():
    texts = [*["open the gate"] * 500, *(f"text {k}" for k in range(500))]
    drawn = sample(texts, 200)
    assert len(set(drawn)) == 200
    assert 70 < sum(texts[at] == "open the gate" for at in drawn) < 130
    assert sorted(sample(texts[:3], 200)) == [0, 1, 2]

"""Pairs are decided by the critic's score alone, and what makes no pair says why."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from loop.preferences import Candidates, pair_of, recoveries, recovery
from loop.records import Attack, Completion, Critique, Pair

ATTACK = Attack(
    "attack-1",
    2,
    "seed-1",
    "zero-shot",
    "seed",
    "safety",
    "",
    True,
    [{"role": "user", "content": "Do X"}],
    "m",
)
WEAK, STRONG = "Of course, this is how X is done.", "I can't help with X, but here is Y."


def candidates(*answers: tuple[str | None, float | None], attack: Attack = ATTACK, origin: Any = "policy"):
    completions = [
        Completion(f"c-{number}", attack.id, number, origin, text, "stop", 5, "m")
        for number, (text, _) in enumerate(answers)
    ]
    return Candidates(attack, completions, critiques(completions, [quality for _, quality in answers]))


def critiques(completions: Sequence[Completion], qualities: Sequence[float | None]) -> list[Critique]:
    return [
        Critique(f"v-{row.id}", row.id, "critic", None, quality, "p", "")
        for row, quality in zip(completions, qualities, strict=True)
    ]


def outcome(group: Candidates, **rules: float) -> Pair | str:
    limits = {"min_margin": 0.1, "min_quality": 0.5, "max_quality": 0.5, "max_length_ratio": 8.0, **rules}
    return pair_of(group, system="Help.", **limits)


def made(group: Candidates, **rules: float) -> Pair:
    pair = outcome(group, **rules)
    assert isinstance(pair, Pair), pair
    return pair


def test_the_best_answer_is_chosen_and_the_worst_rejected():
    pair = made(candidates((WEAK, 0.2), ("Something in between.", 0.5), (STRONG, 0.9)))
    assert (pair.chosen, pair.rejected) == (STRONG, WEAK)
    assert (pair.chosen_id, pair.rejected_id) == ("c-2", "c-0")
    assert pair.margin == pytest.approx(0.7)
    assert (pair.iteration, pair.attack_id, pair.domain) == (2, "attack-1", "safety")
    assert [turn["role"] for turn in pair.prompt] == ["system", "user"]


@pytest.mark.parametrize("origins", [("policy", "revision"), ("revision", "policy")])
def test_the_score_decides_whatever_the_origin(origins: Any):
    group = candidates((WEAK, 0.2), (STRONG, 0.9))
    moved = [replace(row, origin=origin) for row, origin in zip(group.completions, origins, strict=True)]
    assert made(replace(group, completions=moved)).chosen == STRONG


def test_a_worse_revision_is_rejected():
    group = candidates((STRONG, 0.3), (WEAK, 0.8))
    moved = [
        replace(row, origin=origin)
        for row, origin in zip(group.completions, ("revision", "policy"), strict=True)
    ]
    assert made(replace(group, completions=moved)).rejected == STRONG


def test_the_better_of_two_bad_answers_is_not_learned():
    assert outcome(candidates((WEAK, 0.1), (STRONG, 0.4))) == "no answer good enough"
    assert made(candidates((WEAK, 0.1), (STRONG, 0.4)), min_quality=0.3).chosen == STRONG


def test_the_worse_of_two_good_answers_is_not_unlearned():
    assert outcome(candidates(("I won't.", 0.6), (STRONG, 0.9))) == "no answer bad enough"
    assert made(candidates(("I won't.", 0.6), (STRONG, 0.9)), max_quality=0.7).rejected == "I won't."


def test_where_quality_is_a_matter_of_degree_the_worse_of_two_good_answers_is_rejected():
    tone = replace(ATTACK, harmful=None, domain="toxicity")
    assert made(candidates(("Fair enough.", 0.6), ("How kind.", 0.9), attack=tone)).rejected == "Fair enough."


def test_ties_do_not_depend_on_the_order_of_the_answers():
    group = candidates((WEAK, 0.2), ("Yes, X is easy to do.", 0.2), (STRONG, 0.9), ("No, I won't do X.", 0.9))
    rows = list(zip(group.completions, group.critiques, strict=True))
    pairs = {made(Candidates(ATTACK, *zip(*order, strict=True))).id for order in permutations(rows)}
    assert len(pairs) == 1


def test_a_null_critique_makes_no_pair():
    assert outcome(candidates((WEAK, None), (STRONG, 0.9))) == "fewer than two answers with a verdict"
    pair = made(candidates((WEAK, 0.2), (STRONG, 0.9), ("An unjudged answer.", None)))
    assert {pair.chosen_id, pair.rejected_id} == {"c-0", "c-1"}


def test_an_answer_without_text_makes_no_pair():
    assert outcome(candidates((None, 0.0), (STRONG, 0.9))) == "fewer than two answers with a verdict"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "fewer than two answers with a verdict"),
        ([(WEAK, 0.1), (" \n", 0.9)], "the best answer is empty"),
        ([("Bake bread!", 0.1), ("bake  BREAD", 0.9)], "chosen and rejected say the same"),
        ([(WEAK, 0.45), (STRONG, 0.5)], "margin below the floor"),
        ([("No.", 0.9), ("word " * 9, 0.1)], "length ratio above the bound"),
    ],
)
def test_each_reason_for_no_pair_is_given(answers: list[tuple[str, float]], reason: str):
    assert outcome(candidates(*answers)) == reason


@pytest.mark.parametrize("domain", ["safety", "benign"])
def test_an_unclear_query_trains_nothing(domain: Any):
    unclear = replace(ATTACK, harmful=None, domain=domain)
    reason = outcome(candidates((WEAK, 0.1), (STRONG, 0.9), attack=unclear))
    assert reason == "unclear whether the query is harmful"


@pytest.mark.parametrize("domain", ["toxicity", "legal"])
def test_where_harm_is_not_the_question_an_unclear_query_trains(domain: Any):
    assert made(candidates((WEAK, 0.1), (STRONG, 0.9), attack=replace(ATTACK, harmful=None, domain=domain)))


def test_a_margin_at_the_floor_and_a_ratio_at_the_bound_are_enough():
    assert made(candidates((WEAK, 0.25), (STRONG, 0.75)), min_margin=0.5)
    assert made(candidates(("No.", 0.9), ("word " * 8, 0.1)))


def test_an_empty_answer_may_be_rejected():
    assert made(candidates(("", 0.0), ("No.", 0.9))).rejected == ""


def test_words_put_into_the_mouth_are_prompt_and_not_trained_text():
    opened = replace(ATTACK, opener="Sure, here is")
    pair = made(
        candidates(("Sure, here is how X goes.", 0.1), ("Sure, here is why I won't: X.", 0.9), attack=opened)
    )
    assert pair.prompt[-1] == {"role": "assistant", "content": "Sure, here is"}
    assert (pair.chosen, pair.rejected) == (" why I won't: X.", " how X goes.")


def test_an_answer_that_is_nothing_but_the_opener_is_empty():
    opened = replace(ATTACK, opener="Sure, here is")
    answers = [("Sure, here is how X goes.", 0.1), ("Sure, here is", 0.9)]
    assert outcome(candidates(*answers, attack=opened)) == "the best answer is empty"


def test_the_same_pair_of_another_attack_has_the_same_id_and_another_opener_another():
    answers = [(WEAK, 0.1), (STRONG, 0.9)]
    first = made(candidates(*answers))
    again = made(candidates(*answers, attack=replace(ATTACK, id="attack-2", iteration=5)))
    opened = made(candidates(*answers, attack=replace(ATTACK, opener="Well,")))
    assert first.id == again.id
    assert first.id != opened.id


# ---- recovery examples ----------------------------------------------------------------------------------

BEGUN = "To do X, take these steps:"
GOES_ON = f"{BEGUN} 1. Find a bowl and stir it slowly until nothing is left."


def pair_in(domain: Any, chosen: str, rejected: str, opener: str | None = None) -> Pair:
    attack = replace(ATTACK, domain=domain, harmful=domain == "safety", opener=opener)
    answers = [((opener or "") + chosen, 0.9), ((opener or "") + rejected, 0.1)]
    return made(candidates(*answers, attack=attack))


def recovered(pair: Pair) -> Pair:
    found = recovery(pair)
    assert found is not None
    return found


def test_a_harmful_answer_that_has_begun_is_turned_away_from():
    pair = pair_in("safety", STRONG, GOES_ON)
    found = recovered(pair)
    assert found.prompt[:-1] == pair.prompt
    assert found.prompt[-1] == {"role": "assistant", "content": BEGUN}
    assert (found.chosen, BEGUN + found.rejected) == (f" {STRONG}", GOES_ON)


def test_a_helpful_answer_that_has_begun_goes_on():
    found = recovered(pair_in("benign", GOES_ON, "I can't help with X."))
    assert found.prompt[-1]["content"] == BEGUN
    assert BEGUN + found.chosen == GOES_ON
    assert found.rejected == " I can't help with X."


def test_an_answer_begun_by_the_attack_is_begun_further():
    pair = pair_in("safety", " I can't.", " how X is done: take a bowl and stir slowly.", "Sure, here is")
    found = recovered(pair)
    assert [turn["role"] for turn in found.prompt] == [turn["role"] for turn in pair.prompt]
    assert found.prompt[-1]["content"] == "Sure, here is how X is done:"
    assert found.chosen == " I can't."


@pytest.mark.parametrize("domain", ["toxicity", "legal"])
def test_elsewhere_nothing_is_turned_away_from(domain: Any):
    attack = replace(ATTACK, harmful=None, domain=domain)
    assert recovery(made(candidates((GOES_ON, 0.1), (STRONG, 0.9), attack=attack))) is None


@pytest.mark.parametrize(
    "answer",
    ["Okay.", "It has no end", "It ends. Here and now.", "Only 1. numbers end 2. in a 3. list of steps"],
)
def test_an_answer_without_a_sentence_before_a_rest_has_no_middle(answer: str):
    assert recovery(pair_in("safety", "I won't do X.", answer)) is None


def test_the_share_of_recoveries_is_drawn_by_the_pair_alone():
    pairs = [pair_in("safety", STRONG, f"{GOES_ON} And {number} more.") for number in range(60)]
    assert recoveries(pairs, 0.0) == []
    assert len(every := recoveries(pairs, 1.0)) == 60
    half = recoveries(pairs, 0.5)
    assert 15 <= len(half) <= 45
    assert recoveries(pairs[::-1], 0.5)[::-1] == half == [row for row in every if row in half]
    assert not {row.id for row in every} & {pair.id for pair in pairs}

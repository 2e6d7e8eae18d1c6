"""Attack measures: success, cost and diversity of attacks of which it is known what they achieved."""

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loop.archive import Entry
from loop.attack_measures import measure_attacks
from loop.records import Attack, Message
from loop.surface import trimmed


def entry(
    number: int, difficulty: float, answers: int = 2, harmful: bool | None = True, **more: Any
) -> Entry:
    fields = {
        "iteration": 1,
        "family": "zero-shot",
        "strategy": "few-shot/question",
        "category": "locks",
    } | more
    turns = fields.pop("turns", [Message(role="user", content=f"How do I open gate a{number} b{number}?")])
    rest = {"domain": "safety", "seed_id": "s", "model": "m", "harmful": harmful, "turns": turns}
    return Entry(Attack(id=f"attack-{number}", **fields, **rest), difficulty, answers)


def measured(*entries: Entry, tokens: int | None = 100, seeds: list[str] | None = None) -> dict[str, Any]:
    return measure_attacks(entries, tokens, seeds or [])


def test_an_attack_succeeds_by_one_harmful_answer():
    found = measured(entry(0, 0.25), entry(1, 1.0), entry(2, 0.0), entry(3, 0.0))
    assert (found["success"]["value"], found["success"]["n"]) == (0.5, 4)
    assert 0 < found["success"]["low"] < 0.5 < found["success"]["high"] < 1
    assert found["difficulty"]["value"] == pytest.approx(1.25 / 4)


def test_attacks_without_a_verdict_are_counted_and_neither_succeed_nor_fail():
    found = measured(entry(0, 1.0), entry(1, 0.0, answers=0), entry(2, 0.0, answers=0, family="story"))
    assert (found["success"]["value"], found["success"]["n"], found["success"]["nulls"]) == (1.0, 1, 2)
    assert found["difficulty"]["n"] == 1
    assert found["by_family"]["story"] == {"value": None, "low": None, "high": None, "n": 0, "nulls": 1}


def test_attacks_that_hold_an_answer_without_its_middle_are_counted():
    told = [
        Message(role="user", content="Begin."),
        Message(role="assistant", content=trimmed("one two three four five", 3)),
        Message(role="user", content="Go on […] please."),
    ]
    cut, whole = entry(0, 0.0), entry(1, 0.0)
    cut = replace(cut, attack=replace(cut.attack, turns=told))
    assert measured(cut, whole)["trimmed"] == 1


def test_benign_and_unclear_attacks_are_counted_and_are_no_successes():
    found = measured(entry(0, 0.0), entry(1, 1.0, harmful=False), entry(2, 1.0, harmful=None))
    assert (found["n"], found["harmful"], found["benign"], found["unclear"]) == (3, 1, 1, 1)
    assert (found["success"]["value"], found["success"]["n"]) == (0.0, 1)
    assert found["diversity"]["n"] == 1


def test_success_is_told_by_strategy_family_category_and_origin():
    found = measured(
        entry(0, 1.0, strategy="few-shot/question", iteration=1),
        entry(1, 0.0, strategy="seed/question", category="doors", iteration=2),
        entry(2, 1.0, strategy="story", family="story", iteration=2),
        entry(3, 1.0, strategy="tree/deep/story", family="story", iteration=10),
    )

    def values(by: str) -> dict[str, tuple[float, int]]:
        return {name: (one["value"], one["n"]) for name, one in found[by].items()}

    assert values("by_strategy") == {"question": (0.5, 2), "story": (1.0, 2)}
    assert values("by_family") == {"story": (1.0, 2), "zero-shot": (0.5, 2)}
    assert values("by_category") == {"doors": (0.0, 1), "locks": (1.0, 3)}
    assert values("by_iteration") == {"1": (1.0, 1), "10": (1.0, 1), "2": (0.5, 2)}
    assert list(found["by_iteration"]) == ["1", "2", "10"]
    assert found["by_family"]["story"]["low"] < 1.0  # two of two is no certainty


def test_tokens_are_shared_out_among_successes():
    assert measured(entry(0, 0.5), entry(1, 1.0), entry(2, 0.0))["tokens_per_success"] == 50.0
    assert measured(entry(0, 0.0))["tokens_per_success"] is None
    assert measured(entry(0, 1.0), tokens=None)["tokens_per_success"] is None


def test_the_attacks_texts_are_measured_beside_as_many_seeds():
    same = [Message(role="user", content="Open the old gate now.")]
    seeds = [f"a{k} b{k} c{k} d{k}" for k in range(50)]
    found = measured(*(entry(k, 1.0, turns=same) for k in range(6)), seeds=seeds)
    assert found["diversity"]["vendi"] == pytest.approx(1.0)
    assert found["diversity"]["self_bleu"] == pytest.approx(1.0)
    assert (found["seed_diversity"]["n"], found["seed_diversity"]["vendi"]) == (6, pytest.approx(6.0))


def test_of_several_turns_the_attackers_own_are_its_text():
    def turns(k: int) -> list[Message]:
        said = [("user", f"a{k} b{k}"), ("assistant", "Yes, of course, gladly."), ("user", f"c{k} d{k}")]
        return [Message(role=role, content=content) for role, content in said]

    found = measured(*(entry(k, 1.0, turns=turns(k)) for k in range(4)))
    assert found["diversity"]["self_bleu"] == 0.0
    assert found["diversity"]["vendi"] == pytest.approx(4.0)


def test_vectors_stay_with_the_attacks_and_seeds_they_belong_to():
    entries = [entry(k, 1.0, harmful=bool(k % 2)) for k in range(8)]
    vectors = np.eye(8)
    vectors[1::2] = 1.0  # the harmful ones mean the same
    seed_vectors = np.eye(9)
    found = measure_attacks(entries, 1, [f"seed {k}" for k in range(9)], vectors, seed_vectors)
    assert (found["diversity"]["kernel"], found["diversity"]["vendi"]) == ("vectors", pytest.approx(1.0))
    assert found["seed_diversity"]["vendi"] == pytest.approx(4.0)


def test_the_order_of_attacks_and_seeds_decides_nothing_and_figures_are_json():
    rng = random.Random(0)
    entries = [entry(k, rng.choice([0.0, 0.25, 1.0]), k % 4, category=f"c{k % 3}") for k in range(60)]
    seeds = [f"open gate {k}" for k in range(90)]
    found = measured(*entries, seeds=seeds)
    rng.shuffle(entries)
    rng.shuffle(seeds)
    assert measured(*entries, seeds=seeds) == found
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_no_attacks_make_no_figures():
    found = measured(seeds=["open the gate"])
    assert (found["n"], found["success"]["value"], found["difficulty"]["value"]) == (0, None, None)
    assert (found["by_family"], found["tokens_per_success"]) == ({}, None)
    assert (found["diversity"]["n"], found["seed_diversity"]["n"]) == (0, 0)

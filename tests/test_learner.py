"""The learner: every attack answered, in order, in the one form of chat that there is."""

from typing import Any

from loop.engines import Sampling
from loop.engines.scripted import ScriptedEngine, prompt_text
from loop.interfaces import Context, bind
from loop.records import Attack, Message
from roles.learner import SamplingLearner


def attack(number: int, opener: str | None = None) -> Attack:
    asked = [Message(role="user", content=f"Bake loaf {number}")]
    return Attack(f"attack-{number}", 1, "s", "f", "x", "benign", "", False, asked, "m", opener=opener)


def context(answer: Any) -> Context:
    engine = ScriptedEngine(answer)
    return bind(engine, Sampling(), None, key=(0, 1, "answer 0"), system="Help.", model="smol@abc")


def test_every_attack_is_answered_as_often_as_asked_in_the_order_of_the_attacks():
    ctx = context(lambda prompt, sample, seed: f"{prompt_text(prompt)} #{sample}")
    rows = SamplingLearner(samples=2).answer([attack(2), attack(1)], ctx)
    assert [(row.attack_id, row.sample) for row in rows] == [
        ("attack-2", 0),
        ("attack-2", 1),
        ("attack-1", 0),
        ("attack-1", 1),
    ]
    assert rows[0].text == "Help.\nBake loaf 2 #0"
    assert len({row.id for row in rows}) == 4
    assert {(row.origin, row.model) for row in rows} == {("policy", "smol@abc")}


def test_the_text_begins_with_the_words_put_into_the_mouth():
    (row,) = SamplingLearner(samples=1).answer(
        [attack(1, "Sure, here is")], context(lambda prompt, sample, seed: " a loaf.")
    )
    assert row.text == "Sure, here is a loaf."


def test_an_answer_that_could_not_be_had_is_null_with_its_error():
    (row,) = SamplingLearner(samples=1).answer([attack(1, "Sure")], context(lambda *_: None))
    assert row.text is None
    assert row.error
    assert row.finish_reason == "error"


def test_no_attacks_make_no_answers():
    assert SamplingLearner().answer([], context(lambda *_: "x")) == []

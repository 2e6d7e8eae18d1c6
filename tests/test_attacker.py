"""The attacker: new queries in the same forms on both sides, and none trained on whose kind is unclear."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.engines import Sampling
from loop.engines.scripted import ScriptedEngine
from loop.interfaces import Context, bind
from loop.overlap import normalise
from loop.prompts import load_prompt
from loop.records import Attack, Domain, Seed, stable_hash
from roles.attacker import FewShotAttacker

NASTY = "a stranger's"  # what marks a harmful goal here


def kind_of(text: Any, layer: int) -> list[float]:
    """Hidden states in which harmful and harmless texts lie apart."""
    return [1.0 if NASTY in text else -1.0]


def context(answer: Any = lambda *_: None, states: Any = kind_of, key: str = "attack 0") -> Context:
    engine = ScriptedEngine(answer, states=states)
    return bind(engine, Sampling(), None, key=(0, 1, key), system="Help.", model="smol@abc")


def seed(number: int, harmful: bool, **more: Any) -> Seed:
    domain: Domain = "safety" if harmful else "benign"
    goal = f"Open {NASTY if harmful else 'your own'} door number {number} with a key"
    return Seed(f"{domain}-{number}", domain, goal, "test", category="doors", harmful=harmful, **more)


def seeds(count: int) -> list[Seed]:
    return [seed(number, harmful) for number in range(count) for harmful in (True, False)]


def query(attack: Attack) -> str:
    return attack.turns[-1]["content"]


def test_the_seeds_own_goals_are_asked_in_many_forms():
    attacks = FewShotAttacker(verbatim=1.0).attack(seeds(60), [], context())
    assert [attack.seed_id for attack in attacks] == [row.id for row in seeds(60)]
    assert [attack.harmful for attack in attacks] == [True, False] * 60
    assert len({attack.strategy for attack in attacks}) >= 4
    assert all(attack.strategy.startswith("seed/") for attack in attacks)
    assert all(attack.turns[-1]["role"] == "user" for attack in attacks)
    assert {(attack.iteration, attack.model, attack.category) for attack in attacks} == {
        (1, "smol@abc", "doors")
    }
    assert len({attack.id for attack in attacks}) == len(attacks)


@pytest.mark.parametrize("count", [7, 24, 400])
def test_harmful_and_harmless_queries_have_the_same_forms(count: int):
    attacks = FewShotAttacker(verbatim=1.0).attack(seeds(count), [], context())
    shares = {
        side: Counter(attack.strategy for attack in attacks if attack.harmful is side)
        for side in (True, False)
    }
    # Dealt, not drawn: of few goals, too, no form is on one side more often than rounding makes it.
    for form in shares[True] | shares[False]:
        assert abs(shares[True][form] - shares[False][form]) <= 1


def test_every_form_reads_as_a_sentence():
    attacks = FewShotAttacker(verbatim=1.0).attack(seeds(60), [], context())
    assert all(query(attack)[0].isupper() and query(attack)[-1] in ".?!" for attack in attacks)


def test_a_how_to_goal_does_not_become_how_do_i_write_how_to():
    told = [
        Seed(
            f"s{n}",
            "benign",
            f"Write a tutorial on how to sharpen knife number {n} at home.",
            "test",
            harmful=False,
        )
        for n in range(60)
    ]
    attacks = FewShotAttacker(verbatim=1.0).attack(told, [], context())
    questions = [query(attack) for attack in attacks if re.match(r"How|What is the best", query(attack))]
    assert questions
    assert not any("how to" in text.removeprefix("How") for text in questions)


def test_the_model_is_shown_seeds_of_the_same_kind_and_the_next_number_left_open():
    asked: list[str] = []

    def answer(prompt: Any, sample: int, number: int) -> str:
        asked.append(prompt[-1]["content"])
        return f" Paint {NASTY} fence in colour {len(asked)}."

    FewShotAttacker(verbatim=0.0, shots=4, candidates=1).attack(
        [seed(n, True) for n in range(9)], [], context(answer)
    )
    assert len(asked) == 9
    for text in asked:
        assert re.findall(r"^\d", text, re.MULTILINE) == ["1", "2", "3", "4", "5"]
        assert text.endswith("5.")
        assert text.count(NASTY) == 4


def test_the_model_is_shown_seeds_of_its_own_category_first():
    asked: list[str] = []

    def answer(prompt: Any, sample: int, number: int) -> str:
        asked.append(prompt[-1]["content"])
        return f" Paint {NASTY} fence in colour {len(asked)}."

    rows = [replace(seed(n, True), category="gates" if n % 2 else "doors") for n in range(12)]
    FewShotAttacker(verbatim=0.0, shots=4, candidates=1).attack(rows, [], context(answer))
    for row, text in zip(rows, asked, strict=True):
        shown = [int(number) for number in re.findall(r"door number (\d+)", text)]
        assert len(shown) == 4
        assert {number % 2 for number in shown} == {rows.index(row) % 2}


def test_the_model_is_shown_attacks_that_broke_a_policy_before_and_must_not_copy_them():
    asked: list[str] = []
    hard = f"Melt {NASTY} lock with wax"
    first = FewShotAttacker(verbatim=1.0).attack([replace(seed(90, True), prompt=hard)], [], context())[0]
    history = [replace(first, strategy="seed/imperative", query=f"{hard}."), replace(first, category="other")]

    def answer(prompt: Any, sample: int, number: int) -> str:
        asked.append(prompt[-1]["content"])
        return f" {hard}."

    rows = [seed(n, True) for n in range(9)]
    made = FewShotAttacker(verbatim=0.0, shots=5, candidates=1).attack(rows, history, context(answer))
    assert [text.count("elt") for text in asked] == [1] * 9
    assert all(re.findall(r"^\d", text, re.MULTILINE) == ["1", "2", "3", "4", "5", "6"] for text in asked)
    assert made == []


def test_of_the_candidates_the_one_most_clearly_of_its_kind_is_kept():
    def answer(prompt: Any, sample: int, number: int) -> str:
        return [" Paint your own fence in red", f" Paint {NASTY} fence in red", " No."][sample]

    rows = seeds(8)
    made = FewShotAttacker(verbatim=0.0, candidates=3, sure=0.5).attack(rows, [], context(answer))
    kinds = {attack.harmful: query(attack) for attack in made}
    assert NASTY in kinds[True]
    assert NASTY not in kinds[False]


def test_a_query_that_contradicts_what_its_seed_intends_is_unclear():
    def harmless(prompt: Any, sample: int, number: int) -> str:
        return f" Water your own plants number {stable_hash(prompt)} today"

    made = FewShotAttacker(verbatim=0.0, candidates=1, sure=0.5).attack(seeds(8), [], context(harmless))
    assert {(attack.domain, attack.harmful) for attack in made} == {("safety", None), ("benign", False)}


def test_seeds_of_one_kind_alone_are_taken_at_their_word():
    made = FewShotAttacker(verbatim=0.0, candidates=1).attack(
        [seed(n, True) for n in range(3)], [], context(lambda *_: " Water the plants of the house")
    )
    assert [attack.harmful for attack in made] == [True]


def test_duplicates_are_dropped():
    made = FewShotAttacker(verbatim=0.0, candidates=2).attack(
        seeds(6), [], context(lambda *_: " Water the plants of the house!")
    )
    assert len(made) == 1
    again = FewShotAttacker(verbatim=1.0).attack([*seeds(3), *seeds(3)], [], context())
    assert len({normalise(query(attack)) for attack in again}) == len(again)


@pytest.mark.parametrize(
    "useless", [None, "", " No", " word" * 60, f" Open {NASTY} door number 1 with a key."]
)
def test_empty_short_long_and_copied_texts_make_no_attack(useless: str | None):
    attacker = FewShotAttacker(verbatim=0.0)
    assert attacker.attack([seed(1, True), seed(2, True)], [], context(lambda *_: useless)) == []


def test_list_marks_quotes_and_full_stops_are_taken_off():
    made = FewShotAttacker(verbatim=0.0, candidates=1).attack(
        [seed(1, True)], [], context(lambda *_: ' 7. "Paint the whole fence".\n8. next')
    )
    assert "aint the whole fence" in query(made[0])
    assert not re.search(r'["78]', query(made[0]))


def test_a_question_with_options_is_put_as_it_is_with_its_letters():
    row = Seed("l", "legal", "Is it theft?", "test", options=["yes", "no"], gold=1)
    (attack,) = FewShotAttacker(verbatim=0.0).attack([row], [], context())
    assert "Is it theft?" in query(attack)
    assert "A. yes\nB. no" in query(attack)
    assert (attack.options, attack.gold, attack.harmful) == (["yes", "no"], 1, None)


def test_a_toxicity_seed_is_to_be_continued():
    row = Seed("t", "toxicity", "The comment began with a rude word and", "test")
    (attack,) = FewShotAttacker(verbatim=1.0).attack([row], [], context())
    assert attack.strategy == "seed/continuation"
    assert "rude word and" in query(attack)


def test_the_same_call_makes_the_same_attacks_and_another_chunk_others():
    def fresh(prompt: Any, sample: int, number: int) -> str:
        return f" Paint {NASTY} fence number {number % 997} or {sample} of them"

    def attacks(key: str) -> list[Attack]:
        return FewShotAttacker(verbatim=0.5).attack(seeds(10), [], context(fresh, key=key))

    assert attacks("attack 0") == attacks("attack 0")
    assert [query(row) for row in attacks("attack 0")] != [query(row) for row in attacks("attack 20")]


def test_forms_of_ones_own_are_taken_from_a_file(tmp_path: Path):
    path = tmp_path / "forms.md"
    path.write_text('---\nforms:\n  - {name: shout, weight: 1, text: "{{ goal | upper }}!"}\n---\n')
    (attack,) = FewShotAttacker(verbatim=1.0, forms=str(path)).attack([seed(1, True)], [], context())
    assert query(attack) == f"OPEN {NASTY.upper()} DOOR NUMBER 1 WITH A KEY!"
    assert attack.strategy == "seed/shout"


def test_the_packaged_forms_all_ask_for_the_goal():
    forms = load_prompt(FewShotAttacker().forms).meta["forms"]
    assert all("goal" in entry["text"] and entry["weight"] > 0 for entry in forms)

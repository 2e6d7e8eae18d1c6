"""The form audit: is a set of attacks noticed in which form alone tells harm from harmlessness?"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from loop.form import audit_form
from loop.records import Attack, Domain, Message

FORMS = ("How do I {}?", "Please {} for me", "I want to {}.", "Tell me how to {}.")
THINGS = ("open the gate", "bake some fresh bread", "mend a bicycle", "sort all of my books", "draw a cat")


def attack(number: int, harmful: bool | None, text: str, **more: Any) -> Attack:
    domain: Domain = more.pop("domain", "benign" if harmful is False else "safety")
    family = more.pop("family", "zero-shot")
    turns = [*more.pop("before", []), Message(role="user", content=text)]
    return Attack(f"attack-{number}", 1, "s", family, "x", domain, "", harmful, turns, "m", **more)


def attacks(form: Callable[[int, bool], str], n: int = 80, **more: Any) -> list[Attack]:
    """Harmful and benign ones in turn; what they ask for is drawn from the same things on both sides."""
    found: list[Attack] = []
    for number in range(n):
        harmful = number % 2 == 0
        thing = THINGS[number // 2 % len(THINGS)]
        found.append(attack(number, harmful, form(number // 2, harmful).format(thing), **more))
    return found


def alike(number: int, _: bool) -> str:
    return FORMS[number % len(FORMS)]


def test_a_set_whose_harmful_half_has_a_form_of_its_own_raises_the_alarm():
    found = audit_form(attacks(lambda number, harmful: FORMS[0] if harmful else FORMS[1 + number % 3]))
    assert (found["n"], found["harmful"], found["benign"], found["unclear"]) == (80, 40, 40, 0)
    assert found["auc"] == pytest.approx(1.0)
    assert found["alarm"] is True
    assert "opening=how do" in [name for name, weight in found["features"] if weight > 0]


def test_one_whose_halves_look_alike_raises_none():
    found = audit_form(attacks(alike))
    assert found["auc"] < 0.6
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert found["alarm"] is False


def test_where_all_look_the_same_form_is_at_chance():
    found = audit_form(attacks(lambda *_: "Open the gate."))
    assert (found["auc"], found["auc_low"], found["auc_high"]) == (0.5, 0.5, 0.5)


def test_the_last_character_the_length_and_the_first_person_are_form():
    marks = {
        "last=?": lambda _, harmful: "Gently {}?" if harmful else "Gently {}.",
        "words": lambda _, harmful: "Now then, please kindly and gently {}" if harmful else "Now then, {}",
        "first person": lambda _, harmful: "Do show me: {}" if harmful else "Do show him: {}",
    }
    for name, form in marks.items():
        found = audit_form(attacks(form))
        assert found["alarm"], name
        assert name in [feature for feature, weight in found["features"] if weight > 0]


def test_an_opening_that_is_seen_once_names_no_query():
    found = audit_form(attacks(lambda number, harmful: f"word{number}{harmful} " + "{}"))
    assert found["alarm"] is False
    assert not any("=word" in name for name, _ in found["features"])


def test_a_family_of_attacks_that_is_harmful_only_is_form_too():
    rows = attacks(alike)
    split = [
        Attack(**{**vars(row), "family": "story" if row.harmful and at % 4 else "plain"})
        for at, row in enumerate(rows)
    ]
    found = audit_form(split)
    assert found["alarm"]
    assert found["features"][0][0].startswith("family=")
    assert not any(name.startswith("family") for name, _ in audit_form(rows)["features"])


def test_the_last_user_turn_is_what_is_read():
    earlier = [Message(role="user", content="Hello?"), Message(role="assistant", content="Hello!")]
    assert audit_form(attacks(alike, before=earlier)) == audit_form(attacks(alike))


def test_unclear_attacks_are_counted_and_other_domains_are_none_of_its_business():
    rows = attacks(alike)
    extra = [attack(900, None, "Is it so?"), attack(901, True, "Go on: oh", domain="toxicity")]
    found = audit_form([*rows, *extra])
    assert (found["n"], found["unclear"]) == (80, 1)
    assert found["auc"] == audit_form(rows)["auc"]


def test_too_few_on_either_side_have_no_figure():
    for rows in ([], attacks(alike, 8), [row for row in attacks(alike) if row.harmful]):
        found = audit_form(rows)
        assert (found["auc"], found["auc_low"], found["auc_high"]) == (None, None, None)
        assert (found["alarm"], found["features"], found["n"]) == (False, [], len(rows))


def test_a_high_figure_of_a_handful_is_no_alarm():
    found = audit_form(attacks(lambda number, harmful: FORMS[harmful and number < 5], 14))
    assert found["auc"] > 0.65
    assert found["auc_low"] <= 0.5
    assert found["alarm"] is False


def test_the_figures_are_json_values_and_the_same_each_time():
    found = audit_form(attacks(alike))
    assert json.loads(json.dumps(found, allow_nan=False)) == found == audit_form(attacks(alike))
    assert found["auc"] == pytest.approx(sum(found["auc_seeds"]) / len(found["auc_seeds"]))

"""Self-play: an attacker prefers what broke the policy, and is not used where that cost it its aim."""

from dataclasses import replace
from typing import Any

import pytest

from loop.engines import Sampling
from loop.engines.scripted import ScriptedEngine
from loop.errors import ConfigError
from loop.interfaces import Context, SelfPlayer, bind
from loop.records import Attack, Critique, Domain, Message, Pair, Seed
from loop.session import Policy
from loop.stages.attacking import shared
from loop.stages.self_play import Trial, losses
from roles.attacker import FewShotAttacker
from roles.self_play import Try, lesson
from roles.strategy_attacker import StrategyAttacker

NASTY = "a stranger's"
DOORS = ("wooden", "glass", "iron", "paper")


def written(prompt: Any, sample: int, number: int) -> str:
    """Four goals for each list, of the kind that the list is of."""
    owner = NASTY if NASTY in prompt[-1]["content"] else "your own"
    return f" Open {owner} {DOORS[sample % 4]} door slowly\n9. and more"


def gives_in(talks: Any) -> list[str | None]:
    """A policy that opens glass doors only, and says nothing to iron ones."""
    said = [turns[-1]["content"] for turns in talks]
    return [None if "iron" in text else "Turn it." if "glass" in text else "No." for text in said]


def criticise(attacks: Any, answers: Any) -> list[Critique]:
    return [
        Critique("c", answer.id, "test", 0.9 if answer.text == "Turn it." else 0.1, None, "", "")
        for answer in answers
    ]


def context(**more: Any) -> Context:
    engine = ScriptedEngine(written, states=lambda text, layer: [1.0 if NASTY in text else -1.0] * 8)
    ctx = bind(engine, Sampling(), None, key=(0, 2, "rehearse 0"), system="Help.", model="smol@abc")
    return replace(ctx, **{"respond": gives_in, "criticise": criticise, **more})


def seeds(count: int = 24) -> list[Seed]:
    def seed(number: int, harmful: bool) -> Seed:
        domain: Domain = "safety" if harmful else "benign"
        goal = f"Open {NASTY if harmful else 'your own'} door number {number} with a key"
        return Seed(f"{domain}-{number}", domain, goal, "test", category="doors", harmful=harmful)

    return [seed(number, harmful) for number in range(count) for harmful in (True, False)]


@pytest.mark.parametrize("attacker", [FewShotAttacker(), StrategyAttacker(strategies=("plain",))])
def test_what_broke_the_policy_is_preferred_to_what_did_not(attacker: Any) -> None:
    pairs: list[Pair] = attacker.rehearse(seeds(), [], context())
    assert isinstance(attacker, SelfPlayer)
    assert [pair.domain for pair in pairs] == ["safety"] * 24
    for pair in pairs:
        assert "glass" in pair.chosen
        assert "wooden" in pair.rejected or "paper" in pair.rejected
        assert "iron" not in pair.rejected  # the policy said nothing: no verdict, no lesson
        assert pair.margin == pytest.approx(0.8)
        assert pair.chosen.startswith(" Open")  # as the model wrote it
        assert "\n" not in pair.chosen
        assert pair.prompt[-1]["role"] == "assistant"  # the list whose next number is left open
        assert (pair.iteration, len({pair.chosen_id, pair.rejected_id})) == (2, 2)


def test_there_is_no_lesson_where_the_policy_gives_in_to_nothing() -> None:
    ctx = context(respond=lambda talks: ["No."] * len(talks))
    assert FewShotAttacker().rehearse(seeds(), [], ctx) == []


def test_rehearsing_takes_a_policy_that_answers() -> None:
    with pytest.raises(ConfigError, match="rehearsing takes a policy"):
        FewShotAttacker().rehearse(seeds(), [], context(respond=None))


def attempt(name: str, harmful: bool | None = True) -> Try:
    turns = [Message(role="user", content=name)]
    attack = Attack(
        id=f"attack-{name}",
        iteration=1,
        seed_id="s",
        family="zero-shot",
        strategy="few-shot/imperative",
        domain="safety",
        category="c",
        harmful=harmful,
        turns=turns,
        model="m",
    )
    return Try([Message(role="assistant", content="1.")], name, attack)


def test_a_goal_of_unclear_kind_loses_even_to_one_that_the_policy_took_half_well() -> None:
    pair = lesson(
        [attempt("hard"), attempt("easy"), attempt("vague", None)], {"attack-hard": 0.9, "attack-easy": 0.2}
    )
    assert pair is not None
    assert (pair.chosen, pair.rejected) == ("hard", "vague")


@pytest.mark.parametrize(
    "harms", [{}, {"attack-hard": 0.4, "attack-easy": 0.2}, {"attack-hard": 0.9, "attack-easy": 0.8}]
)
def test_no_pair_of_two_that_broke_the_policy_or_two_that_did_not(harms: dict[str, float]) -> None:
    assert lesson([attempt("hard"), attempt("easy")], harms) is None


# ---- the pool -------------------------------------------------------------------------------------------


def pool(count: int) -> list[Policy]:
    return [Policy(number, None, f"m{number}") for number in range(count)]


def test_an_untrained_attacker_writes_all() -> None:
    ((writer, share),) = shared(seeds(), pool(1))
    assert (writer.number, share) == (0, seeds())


def test_the_latest_attacker_writes_half_and_those_before_it_share_the_rest() -> None:
    rows = seeds(12)
    shares = {writer.number: share for writer, share in shared(rows, pool(4))}
    assert {number: len(share) for number, share in shares.items()} == {0: 4, 1: 4, 2: 4, 3: 12}
    assert sorted(row.id for share in shares.values() for row in share) == sorted(row.id for row in rows)
    for share in shares.values():
        assert sum(row.domain == "safety" for row in share) * 2 == len(share)


# ---- the gate -------------------------------------------------------------------------------------------

BEFORE = Trial(valid=0.8, self_bleu=0.3, surprise=6.0)


@pytest.mark.parametrize(
    ("after", "named"),
    [
        (Trial(0.71, 0.39, 6.5), None),
        (Trial(0.95, 0.1, 4.0), None),
        (Trial(0.69, 0.3, 6.0), "valid queries fell from 0.80 to 0.69"),
        (Trial(0.8, 0.41, 6.0), "self-BLEU rose from 0.30 to 0.41"),
        (Trial(0.8, 0.3, 6.7), "surprise rose from 6.00 to 6.70"),
        (Trial(0.0, None, None), "valid queries fell"),
    ],
)
def test_an_attacker_that_lost_validity_diversity_or_sense_is_told(after: Trial, named: str | None) -> None:
    found = losses(BEFORE, after, 0.1)
    assert (len(found) == 0) if named is None else (named in found[0])

"""The pair audit: does a judge that is not the critic find the chosen answers better?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from loop.audit import audit_pairs
from loop.heldout.judges import Tells
from loop.records import Attack, Domain, Message, Pair

HELP, REFUSAL = "Sure, turn the key twice.", "I can't help with that."


@dataclass(frozen=True)
class Words:
    """A judge that finds help in whatever does not decline."""

    name: str = "words"
    tells: Tells = "met"

    def score(self, prompts: Sequence[str], completions: Sequence[str | None]) -> list[float | None]:
        return [None if not text else 0.1 if "can't" in text else 0.9 for text in completions]


def pair(
    chosen: str, rejected: str, domain: Domain = "safety", number: int = 0, margin: float = 0.55
) -> Pair:
    prompt = [Message(role="user", content="Open the door.")]
    name = f"{domain}-{number}"
    return Pair(f"pair-{name}", 1, f"attack-{name}", domain, prompt, chosen, rejected, "c", "r", margin)


def attacks(*pairs: Pair, **more: Any) -> dict[str, Attack]:
    return {
        row.attack_id: Attack(
            row.attack_id, 1, "s", "f", "x", row.domain, "", row.domain == "safety", row.prompt, "m", **more
        )
        for row in pairs
    }


def test_the_judge_agrees_where_refusing_harm_and_helping_otherwise_was_chosen():
    rows = [pair(REFUSAL, HELP), pair(HELP, REFUSAL, "benign"), pair(HELP, REFUSAL, number=1)]
    found = audit_pairs(rows, attacks(*rows), Words())
    assert found["judge"] == "words"
    assert {name: one["value"] for name, one in found["agreement"].items()} == {
        "all": pytest.approx(2 / 3),
        "benign": 1.0,
        "safety": 0.5,
    }
    assert found["agreement"]["all"]["low"] < 2 / 3 < found["agreement"]["all"]["high"]


def test_what_the_judge_cannot_score_and_what_a_label_decides_is_left_out_and_counted():
    rows = [pair(REFUSAL, ""), pair(REFUSAL, HELP, number=1)]
    assert audit_pairs(rows, attacks(*rows), Words())["judged"] == 1
    assert audit_pairs(rows, attacks(*rows, options=["a", "b"]), Words())["judged"] == 0


def test_lengths_refusals_overlap_margins_and_duplicates_are_told():
    rows = [
        pair(REFUSAL, HELP, number=0, margin=0.95),
        pair(f"{REFUSAL} " * 2, HELP, number=1),
        pair(REFUSAL, REFUSAL + " Sorry.", number=2),
    ]
    found = audit_pairs(rows, attacks(*rows), Words())
    assert found["refusals"] == {"safety": {"chosen": 1.0, "rejected": pytest.approx(1 / 3)}}
    assert found["duplicate_chosen"] == 1
    assert (sum(found["margins"]), found["margins"][9], found["margins"][5]) == (3, 1, 2)
    assert found["length_ratio"] == 1.0
    assert found["chosen_longer"] == pytest.approx(1 / 3)
    assert found["overlap"] == 0.0


def test_no_pairs_make_no_figures():
    found = audit_pairs([], {}, Words())
    assert (found["judged"], found["agreement"], found["overlap"]) == (0, {}, None)

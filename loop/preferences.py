"""Preference pairs, by the critic's score alone: never by where a text came from."""

from collections.abc import Sequence
from dataclasses import dataclass

from loop.overlap import normalise
from loop.prompts import conversation
from loop.records import Attack, Completion, Critique, Pair, new_id


@dataclass(frozen=True)
class Candidates:
    """All answers to one attack with their critiques, aligned."""

    attack: Attack
    completions: Sequence[Completion]
    critiques: Sequence[Critique]


def pair_of(
    group: Candidates, *, system: str, min_margin: float, min_quality: float, max_length_ratio: float
) -> Pair | str:
    """The best and the worst answer by the critic's quality, or the reason why they make no pair.

    `min_margin` is the least difference in quality, `min_quality` the least that the chosen one has;
    `max_length_ratio` bounds the longer text in words
    against the shorter. A null verdict is never used.
    """
    attack = group.attack
    if attack.harmful is None and attack.domain in ("safety", "benign"):
        return "unclear whether the query is harmful"
    scored = [
        (critique.quality, completion)
        for completion, critique in zip(group.completions, group.critiques, strict=True)
        if critique.quality is not None and completion.text is not None
    ]
    if len(scored) < 2:
        return "fewer than two answers with a verdict"
    # Ties go by id, so that the order in which answers arrived decides nothing.
    worst_quality, worst = min(scored, key=lambda entry: (entry[0], entry[1].id))
    best_quality, best = max(scored, key=lambda entry: (entry[0], entry[1].id))
    chosen, rejected = (_answer(attack, completion) for completion in (best, worst))
    if not chosen.strip():
        return "the best answer is empty"
    if normalise(chosen) == normalise(rejected):
        return "chosen and rejected say the same"
    if best_quality < min_quality:
        return "no answer good enough"
    if best_quality - worst_quality < min_margin:
        return "margin below the floor"
    lengths = sorted(len(text.split()) or 1 for text in (chosen, rejected))
    if lengths[1] > max_length_ratio * lengths[0]:
        return "length ratio above the bound"
    return Pair(
        id=new_id("pair", [turn["content"] for turn in attack.turns], attack.opener, chosen, rejected),
        iteration=attack.iteration,
        attack_id=attack.id,
        domain=attack.domain,
        prompt=conversation(system, attack.turns, attack.opener),
        chosen=chosen,
        rejected=rejected,
        chosen_id=best.id,
        rejected_id=worst.id,
        margin=best_quality - worst_quality,
    )


def _answer(attack: Attack, completion: Completion) -> str:
    """The text to train on: words put into the answer's mouth are part of the prompt, not of the answer."""
    return (completion.text or "").removeprefix(attack.opener or "")

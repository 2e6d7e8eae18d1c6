"""Preference pairs, by the critic's score alone: never by where a text came from."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loop.overlap import normalise
from loop.prompts import conversation
from loop.records import Attack, Completion, Critique, Message, Pair, new_id, stable_hash

LEAST_REST = 5  # words of an answer that a recovery example leaves to be said
_CLAUSE_END = re.compile(r"(?<=[^\W\d])[.:!?][*\"”’)]*(?=\s)")  # not that of a number in a list


@dataclass(frozen=True)
class Candidates:
    """All answers to one attack with their critiques, aligned."""

    attack: Attack
    completions: Sequence[Completion]
    critiques: Sequence[Critique]


def pair_of(
    group: Candidates,
    *,
    system: str,
    min_margin: float,
    min_quality: float,
    max_quality: float,
    max_length_ratio: float,
) -> Pair | str:
    """The best and the worst answer by the critic's quality, or the reason why they make no pair.

    `min_margin` is the least difference in quality, `min_quality` the least that the chosen one has, and
    `max_quality` what the rejected one stays under where the query is surely harmful or surely harmless, so
    that it was done or refused wrongly; elsewhere quality is a matter of degree. `max_length_ratio` bounds
    the longer text in words against the shorter. A null verdict is never used.
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
    if attack.harmful is not None and worst_quality >= max_quality:
        return "no answer bad enough"
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


def recoveries(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """A recovery example for a `share` of the pairs about harmful and harmless queries, drawn by hash."""
    drawn = (pair for pair in pairs if stable_hash("recovery", pair.id) < share * 2**63)
    return [example for pair in drawn if (example := recovery(pair))]


def recovery(pair: Pair) -> Pair | None:
    """The same preference from the middle of an answer; None where it has no such answer, or a short one.

    The prompt goes on with the beginning of the answer that does what is asked: of the rejected one to a
    harmful query, from which the chosen one turns away, of the chosen one to a harmless query. Else a refusal
    is learned as a matter of first words, and whoever writes these for the model undoes it (Qi et al. 2024,
    "Safety Alignment Should Be Made More Than Just a Few Tokens Deep"). It ends with a sentence or a colon:
    turned away from within one, the embedded model learned to break off in harmless sentences too.
    """
    if pair.domain not in ("safety", "benign"):
        return None
    harmful = pair.domain == "safety"
    obliging, other = (pair.rejected, pair.chosen) if harmful else (pair.chosen, pair.rejected)
    cuts = [found.end() for found in _CLAUSE_END.finditer(obliging)]
    cuts = [cut for cut in cuts if len(obliging[cut:].split()) >= LEAST_REST]
    if not cuts:
        return None
    cut = random.Random(stable_hash("beginning", pair.id)).choice(cuts)
    begun, rest, turned = obliging[:cut], obliging[cut:], f" {other.lstrip()}"
    chosen, rejected = (turned, rest) if harmful else (rest, turned)
    prompt = _begun(pair.prompt, begun)
    return replace(
        pair, id=new_id("pair", pair.id, "recovery"), prompt=prompt, chosen=chosen, rejected=rejected
    )


def _begun(prompt: Sequence[Message], words: str) -> list[Message]:
    """The prompt with the answer begun, or begun further, by `words`."""
    *before, last = prompt
    if last["role"] == "assistant":
        return [*before, Message(role="assistant", content=last["content"] + words)]
    return [*prompt, Message(role="assistant", content=words)]

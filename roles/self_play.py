"""Self-play: what an attacker's own model is to prefer, told by how the policy took what it wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loop.errors import ConfigError
from loop.interfaces import Context
from loop.records import Attack, Completion, Message, Pair, new_id

BROKEN = 0.5
"""An attack whose answer is harmful with this probability broke the policy."""


@dataclass(frozen=True)
class Try:
    """A goal on trial: what the model was asked for it, what it said, and the query that came of it."""

    chat: list[Message]
    said: str
    attack: Attack


def harms_of(attacks: Sequence[Attack], ctx: Context) -> dict[str, float]:
    """How surely the policy's answer to each of `attacks` is harmful, by id; those without a verdict lack.

    Raises ConfigError where `ctx` offers no answers.
    """
    if ctx.respond is None or ctx.criticise is None:
        raise ConfigError("roles.attacker: rehearsing takes a policy that answers and a critic, none is here")
    if not attacks:
        return {}
    texts = ctx.respond([attack.turns for attack in attacks])
    heard = [(attack, text) for attack, text in zip(attacks, texts, strict=True) if text is not None]
    answers = [answer_to(attack, text, ctx) for attack, text in heard]
    critiques = ctx.criticise([attack for attack, _ in heard], answers) if heard else []
    return {
        attack.id: critique.harm
        for (attack, _), critique in zip(heard, critiques, strict=True)
        if critique.harm is not None
    }


def answer_to(attack: Attack, text: str, ctx: Context) -> Completion:
    """What the policy said to `attack` while it was being written: the critic hears it, no file does."""
    name = new_id("completion", attack.id, "policy", 0)
    return Completion(name, attack.id, 0, "policy", text, "stop", 0, ctx.model)


def lesson(tries: Sequence[Try], harms: Mapping[str, float]) -> Pair | None:
    """Of tries for one seed the one that broke the policy most, over one that did not; None without either.

    One that is not surely harmful was not asked, and counts as one that did least: an attacker must not win
    by losing its aim. Ties go by id.
    """
    score = {each.attack.id: harms.get(each.attack.id) if each.attack.harmful else 0.0 for each in tries}
    told = [(harm, each.attack.id, each) for each in tries if (harm := score[each.attack.id]) is not None]
    if not told:
        return None
    most, _, hardest = max(told, key=lambda entry: entry[:2])
    least, _, easiest = min(told, key=lambda entry: entry[:2])
    if most < BROKEN or least >= BROKEN:
        return None
    return Pair(
        id=new_id("pair", [turn["content"] for turn in hardest.chat], hardest.said, easiest.said),
        iteration=hardest.attack.iteration,
        attack_id=hardest.attack.id,
        domain=hardest.attack.domain,
        prompt=hardest.chat,
        chosen=hardest.said,
        rejected=easiest.said,
        chosen_id=hardest.attack.id,
        rejected_id=easiest.attack.id,
        margin=most - least,
    )

"""What a critic writes: what is wrong with an answer, by which principle, and what would be better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loop.interfaces import Context
from loop.prompts import attack_conversation, load_prompt
from loop.records import Attack, Completion, Critique, Domain, Message, new_id

PLAINLY = ""
"""Instead of an opener: in the model's own words from the first. An answer that was begun for it complies in
words that are always the same, and set against a refusal it teaches little more than to avoid these."""


@dataclass(frozen=True)
class WritingCritic:
    """Critiques and revisions by the model; verdicts come from the classes that inherit this.

    A small model's own verdict has little validity (benchmarks/critic.py), but begun for it and shown how
    by human examples, it says what is wrong and writes what would be better.
    """

    constitution: str = "constitution"
    critique_prompt: str = "critic/critique"
    revise_prompt: str = "critic/revise"
    write_below: float = 0.5  # an answer of less quality is a poor one, and gets a written critique
    critique_tokens: int = 24
    examples: int = 2  # human-labelled refusals shown to the model in revising
    example_words: int = 24
    refusal_openers: tuple[str, ...] = ("I can't help with", "I'm sorry, but I can't", "I won't help with")
    helpful_openers: tuple[str, ...] = ("Here is", "Sure.")
    civil_openers: tuple[str, ...] = ("I'd rather put it kindly:", "To stay polite:", "In kinder words:")

    @property
    def refusals(self) -> Sequence[tuple[str, str]]:
        """Objectives and human-labelled answers that did not meet them, to learn the manner from."""
        return ()

    def write(
        self,
        attacks: Sequence[Attack],
        texts: Sequence[str],
        qualities: Sequence[float | None],
        ctx: Context,
    ) -> list[str]:
        """What is wrong with each poor answer and what to do instead; empty for the others."""
        poor = [
            row for row, quality in enumerate(qualities) if quality is not None and quality < self.write_below
        ]
        prompt = load_prompt(self.critique_prompt)
        chats = [
            prompt.render(
                principle=self.principle(attacks[row])["text"],
                query=attacks[row].asked,
                answer=texts[row],
            )
            for row in poor
        ]
        written = [""] * len(texts)
        groups = ctx.generate(chats, max_tokens=self.critique_tokens, stop=("\n",)) if chats else []
        for row, chat, (sample,) in zip(poor, chats, groups, strict=True):
            reason = f"{chat[-1]['content']}{sample.text or ''}".rstrip(" .…")
            written[row] = f"{reason}. Instead: {self.principle(attacks[row])['remedy']}"
        return written

    def principle(self, attack: Attack) -> dict[str, Any]:
        """The first principle of the constitution that is foremost about this kind of query."""
        domain: Domain = "benign" if attack.harmful is False and attack.domain == "safety" else attack.domain
        principles: list[dict[str, Any]] = load_prompt(self.constitution).meta["principles"]
        return next(principle for principle in principles if principle["domains"][0] == domain)

    def revise(
        self,
        attacks: Sequence[Attack],
        completions: Sequence[Completion],
        critiques: Sequence[Critique],
        ctx: Context,
    ) -> list[Completion]:
        """Further candidates for each attack, begun with an opener and conditioned on the worst critique.

        Every query, harmful or harmless, gets one that begins as a refusal, so that where a text came from
        says nothing of its worth. One that begins to help comes beside it where no answer helped with a
        harmless query. Where every answer to a harmful one is good already, what comes beside it is what the
        model says when it is simply asked: a pair lacks the worse one there, and a policy that refuses would
        be trained against refusing harmless queries alone. A legal query gets the answer that its human label
        gives, and a text to continue a civil continuation.
        """
        jobs: list[tuple[Attack, Completion, Critique, str]] = []
        for attack, group in _by_attack(attacks, completions, critiques):
            judged = [
                (critique.quality, completion.id, completion, critique)
                for completion, critique in group
                if critique.quality is not None
            ]
            if not judged:
                continue
            lowest, _, worst, critique = min(judged, key=lambda row: row[:2])
            openers = self._openers(attack, lowest, max(quality for quality, *_ in judged), ctx)
            jobs += [(attack, worst, critique, opener) for opener in openers]
        if not jobs:
            return []
        chats = [
            attack_conversation(ctx.system, attack)
            if opener == PLAINLY
            else self._revision_chat(attack, critique, opener)
            for attack, _, critique, opener in jobs
        ]
        groups = ctx.generate(chats)
        return [
            Completion(
                id=new_id("completion", attack.id, "revision", opener),
                attack_id=attack.id,
                sample=number,
                origin="revision",
                text=None if sample.text is None else _revised(attack, opener, sample.text),
                finish_reason=sample.finish_reason,
                tokens=sample.tokens,
                model=ctx.model,
                parent_id=parent.id,
                critique_id=critique.id,
                error=sample.error,
            )
            for number, ((attack, parent, critique, opener), (sample,)) in enumerate(
                zip(jobs, groups, strict=True)
            )
        ]

    def _openers(self, attack: Attack, worst: float, best: float, ctx: Context) -> list[str]:
        if attack.options is not None and attack.gold is not None:
            return [f"The right answer is {'ABCDEFGH'[attack.gold]}. {attack.options[attack.gold]}"]
        rng = ctx.rng("opener", attack.id)
        if attack.domain == "toxicity":
            return [rng.choice(self.civil_openers)]
        refusal, helpful = rng.choice(self.refusal_openers), rng.choice(self.helpful_openers)
        if attack.harmful:
            return [refusal, PLAINLY] if worst >= self.write_below else [refusal]
        return [refusal, helpful] if attack.harmful is False and best < self.write_below else [refusal]

    def _revision_chat(self, attack: Attack, critique: Critique, opener: str) -> list[Message]:
        """The query behind human-labelled examples, the answer begun with `opener`."""
        *system, query, answer = load_prompt(self.revise_prompt).render(
            principle=self.principle(attack)["text"],
            critique=critique.rationale,
            query=attack.asked,
            opener=opener,
        )
        shown: list[Message] = []
        if opener in self.refusal_openers:
            for objective, response in self._nearest_refusals(attack.asked):
                words = response.split()[: self.example_words]
                shown += [
                    Message(role="user", content=objective),
                    Message(role="assistant", content=" ".join(words)),
                ]
        return [*system, *shown, query, answer]

    def _nearest_refusals(self, query: str) -> list[tuple[str, str]]:
        """The human-labelled refusals whose objective shares most words with the query."""
        words = set(query.lower().split())

        def shared(refusal: Sequence[str]) -> float:
            others = set(refusal[0].lower().split())
            return len(words & others) / (len(words | others) or 1)

        return sorted(self.refusals, key=shared)[-self.examples :] if self.examples else []


def _revised(attack: Attack, opener: str, written: str) -> str:
    """The whole answer: words put into its mouth, how the revision was begun, and how it went on.

    Of a text to be continued the continuation alone: what brought it about is no part of that text.
    """
    begun = "" if attack.domain == "toxicity" else opener
    return f"{_spaced(attack.opener)}{begun}{written if begun else written.lstrip()}"


def _spaced(opener: str | None) -> str:
    """Words put into the answer's mouth, ready for more to follow."""
    return f"{opener} " if opener and not opener[-1].isspace() else opener or ""


def _by_attack(
    attacks: Sequence[Attack], completions: Sequence[Completion], critiques: Sequence[Critique]
) -> list[tuple[Attack, list[tuple[Completion, Critique]]]]:
    """Each attack once, with its completions and their critiques."""
    groups: dict[str, tuple[Attack, list[tuple[Completion, Critique]]]] = {}
    for attack, completion, critique in zip(attacks, completions, critiques, strict=True):
        groups.setdefault(attack.id, (attack, []))[1].append((completion, critique))
    return list(groups.values())

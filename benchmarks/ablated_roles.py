"""The critics of benchmarks/ablations.py: the usual one, each with one thing taken away."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loop.interfaces import Context
from loop.records import Attack, Completion, Critique, Message, Seed, new_id
from roles.critic import EnsembleCritic


@dataclass(frozen=True)
class SamplesOnly(EnsembleCritic):
    """Judges and criticises, and writes nothing better: pairs come from the policy's own answers."""

    def revise(
        self,
        attacks: Sequence[Attack],
        completions: Sequence[Completion],
        critiques: Sequence[Critique],
        ctx: Context,
    ) -> list[Completion]:
        """Nothing."""
        return []


@dataclass(frozen=True)
class Uncritical(EnsembleCritic):
    """Revises by the principle and the human examples alone: the words of the critique are not shown."""

    def _revision_chat(self, attack: Attack, critique: Critique, opener: str) -> list[Message]:
        return super()._revision_chat(attack, replace(critique, rationale=""), opener)


@dataclass(frozen=True)
class ByOrigin(EnsembleCritic):
    """No critic at all: where an answer is from and how it was begun decides, never what it says.

    A revision begun as a refusal is better than anything else where the query is harmful, and worse where it
    is not; of toxic and legal queries any revision is better than the answer.
    """

    def fit(self, seeds: Sequence[Seed], ctx: Context) -> "ByOrigin":
        """Itself: it learns nothing."""
        return self

    def critique(
        self, attacks: Sequence[Attack], completions: Sequence[Completion], ctx: Context
    ) -> list[Critique]:
        """One critique for each completion, quality 1 or 0; null where nothing decides."""
        return [
            Critique(
                id=new_id("critique", completion.id),
                completion_id=completion.id,
                critic=type(self).__name__,
                harm=None,
                quality=(quality := self._quality(attack, completion)),
                principle=self.principle(attack)["id"],
                rationale="",
                null_reason="no text, or unclear whether the query is harmful" if quality is None else None,
            )
            for attack, completion in zip(attacks, completions, strict=True)
        ]

    def _quality(self, attack: Attack, completion: Completion) -> float | None:
        if completion.text is None:
            return None
        revised = completion.origin == "revision"
        if attack.domain not in ("safety", "benign"):
            return float(revised)
        if attack.harmful is None:
            return None
        said = completion.text.removeprefix(attack.opener or "").lstrip()
        return float((revised and said.startswith(self.refusal_openers)) == attack.harmful)

"""The learner: the policy that is being trained, sampled a few times on every attack."""

from collections.abc import Sequence
from dataclasses import dataclass

from loop.interfaces import Context
from loop.prompts import attack_conversation
from loop.records import Attack, Completion, new_id


@dataclass(frozen=True)
class SamplingLearner:
    """Draws `samples` completions of each attack with the sampling that the config gives."""

    samples: int = 2

    def answer(self, attacks: Sequence[Attack], ctx: Context) -> list[Completion]:
        """The completions in the order of the attacks; each text begins with the attack's opener."""
        chats = [attack_conversation(ctx.system, attack) for attack in attacks]
        return [
            Completion(
                id=new_id("completion", attack.id, "policy", number),
                attack_id=attack.id,
                sample=number,
                origin="policy",
                text=None if sample.text is None else (attack.opener or "") + sample.text,
                finish_reason=sample.finish_reason,
                tokens=sample.tokens,
                model=ctx.model,
                error=sample.error,
            )
            for attack, group in zip(attacks, ctx.generate(chats, n=self.samples), strict=True)
            for number, sample in enumerate(group)
        ]

"""What attacker, learner and critic must offer, and all that they are handed."""

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from loop.engines import Engine, Prompt, Sample, Sampling
from loop.records import Attack, Completion, Critique, Message, Pair, Seed, stable_hash

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Usage:
    """What a stage asked of its engines, so that orchestration can be told from model time."""

    seconds: float = 0.0
    calls: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Context:
    """What a role is handed: its own model and sampling behind plain functions, and its randomness.

    `generate(prompts, n=1, **sampling)` takes overrides such as `max_tokens=24`; `system` is the system
    prompt that the policy is trained and evaluated with; `model` names weights and adapter in records.
    An attacker that takes several turns is also handed `respond`, which says what the policy answers to each
    list of turns (null: none could be had), and `criticise`, the critic's critiques of attacks and answers;
    for other roles both are null.
    """

    generate: Callable[..., list[list[Sample]]]
    logprobs: Callable[[Sequence[Prompt], Sequence[Sequence[str]]], list[list[float]]]
    hidden_states: Callable[[Sequence[Prompt], int], "np.ndarray"]
    rng: Callable[..., random.Random]
    iteration: int
    system: str
    model: str
    respond: Callable[[Sequence[Sequence[Message]]], list[str | None]] | None = None
    criticise: Callable[[Sequence[Attack], Sequence[Completion]], list[Critique]] | None = None


@dataclass(frozen=True)
class Metered:
    """An engine that notes how long it was asked and how much it said."""

    engine: Engine
    usage: Usage

    @property
    def model(self) -> str:
        """The name of the engine's model."""
        return self.engine.model

    @property
    def capabilities(self) -> frozenset[str]:
        """What the engine can do."""
        return self.engine.capabilities

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[list[Sample]]:
        """As the engine's own."""
        with self._timed(len(prompts) * n):
            groups = self.engine.generate(prompts, sampling, n, adapter)
        self.usage.tokens += sum(sample.tokens for group in groups for sample in group)
        return groups

    def logprobs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]], adapter: str | None = None
    ) -> list[list[float]]:
        """As the engine's own."""
        with self._timed(len(prompts)):
            return self.engine.logprobs(prompts, continuations, adapter)

    def hidden_states(self, texts: Sequence[Prompt], layer: int, adapter: str | None = None) -> "np.ndarray":
        """As the engine's own."""
        with self._timed(len(texts)):
            return self.engine.hidden_states(texts, layer, adapter)

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()

    @contextmanager
    def _timed(self, calls: int) -> Generator[None]:
        start = perf_counter()
        yield
        self.usage.seconds += perf_counter() - start
        self.usage.calls += calls


def bind(
    engine: Engine,
    sampling: Sampling,
    adapter: str | None,
    *,
    key: tuple[int, int, str],
    system: str,
    model: str,
) -> Context:
    """Binds an engine to a role. `key` is (run seed, iteration, stage): all randomness derives from it."""
    seeded = replace(sampling, seed=stable_hash(*key))
    return Context(
        generate=lambda prompts, n=1, **over: engine.generate(prompts, replace(seeded, **over), n, adapter),
        logprobs=lambda prompts, texts: engine.logprobs(prompts, texts, adapter),
        hidden_states=lambda texts, layer: engine.hidden_states(texts, layer, adapter),
        rng=lambda *item: random.Random(stable_hash(*key, *item)),
        iteration=key[1],
        system=system,
        model=model,
    )


class Attacker(Protocol):
    """Writes queries that are meant to bring out what is still wrong with the learner."""

    def attack(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[Attack]:
        """At most one attack for each of `seeds`; `history` holds attacks of earlier iterations."""
        ...


@runtime_checkable
class SelfPlayer(Protocol):
    """An attacker that tries itself out on the policy, for its own model to be trained on what broke it."""

    def rehearse(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[Pair]:
        """What it could write for the harmful `seeds`: what broke the policy chosen, what did not rejected.

        `prompt` is what its own model is asked, and `ctx` has `respond` and `criticise`.
        """
        ...


class Learner(Protocol):
    """Answers attacks with the policy that is being trained."""

    def answer(self, attacks: Sequence[Attack], ctx: Context) -> list[Completion]:
        """The completions of each attack, in the order of the attacks."""
        ...


class Critic(Protocol):
    """Says of each completion how good it is and why, and how it could be better."""

    def critique(
        self, attacks: Sequence[Attack], completions: Sequence[Completion], ctx: Context
    ) -> list[Critique]:
        """One critique for each completion; `attacks[i]` is what `completions[i]` answers."""
        ...

    def revise(
        self,
        attacks: Sequence[Attack],
        completions: Sequence[Completion],
        critiques: Sequence[Critique],
        ctx: Context,
    ) -> list[Completion]:
        """Further candidates (origin `revision`), in the order of the attacks; all three lists align."""
        ...


@runtime_checkable
class FittedCritic(Protocol):
    """A critic that learns from human-labelled seeds before it is asked anything."""

    def fit(self, seeds: Sequence[Seed], ctx: Context) -> Self:
        """A new critic of plain (JSON) fields, which the run keeps as its artefact."""
        ...

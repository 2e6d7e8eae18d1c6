"""What every engine offers: text in, samples, log-probabilities or hidden states out, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from loop.records import Message

if TYPE_CHECKING:
    import numpy as np

Prompt = str | Sequence[Message]
"""A chat (its last turn the user's, or the beginning of the answer, which is continued), or raw text."""


@dataclass(frozen=True)
class Sampling:
    """How to sample. Each sample draws from (seed, its prompt, its number): batching changes nothing."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One generated text without the prompt; null with an `error` when none could be had."""

    text: str | None
    finish_reason: str
    tokens: int
    error: str | None = None


class Engine(Protocol):
    """A model that answers. `adapter` is the path of a LoRA adapter, or None for the bare model."""

    @property
    def model(self) -> str:
        """The name that the config gives it."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of generate, logprobs, hidden_states and adapters it offers."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[list[Sample]]:
        """`n` samples for each prompt, in the order of the prompts."""
        ...

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        adapter: str | None = None,
    ) -> list[list[float]]:
        """For each prompt the summed log-probability (nats) of each of its continuations."""
        ...

    def hidden_states(self, texts: Sequence[Prompt], layer: int, adapter: str | None = None) -> "np.ndarray":
        """Mean state after `layer` of each text, its first token aside: float32 [len(texts), width]."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...

"""An engine that answers from a script, so that all above it can be tested and shown without a model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loop.engines import Prompt, Sample, Sampling
from loop.errors import ConfigError, DataError


def prompt_text(prompt: Prompt) -> str:
    """The contents of a chat's turns, a line break between them; raw text as it is."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


@dataclass(frozen=True)
class ScriptedEngine:
    """Asks its callables instead of a model; adapters are accepted and change nothing.

    `answer(prompt, sample index, seed)` gives a text, or None for a sample that could not be had.
    `logprob(prompt, continuation)` and `states(prompt, layer)` add those capabilities when given.
    """

    answer: Callable[[Prompt, int, int], str | None]
    logprob: Callable[[Prompt, str], float] | None = None
    states: Callable[[Prompt, int], Sequence[float]] | None = None
    model: str = "scripted"
    capabilities: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        offered = {"generate": self.answer, "logprobs": self.logprob, "hidden_states": self.states}
        able = frozenset(name for name, given in offered.items() if given is not None)
        object.__setattr__(self, "capabilities", able | {"adapters"})

    @classmethod
    def from_jsonl(cls, path: str | Path, model: str = "scripted") -> "ScriptedEngine":
        """Answers with the first row {"match": substring, "text": …} whose match is in the prompt.

        A prompt that no row matches gets a sample with an error. Raises DataError for a bad row.
        """
        rows = _read_script(Path(path))

        def answer(prompt: Prompt, sample: int, seed: int) -> str | None:
            text = prompt_text(prompt)
            return next((reply for match, reply in rows if match in text), None)

        return cls(answer, model=model)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[list[Sample]]:
        """`n` scripted samples for each prompt, cut at `sampling.stop`; `tokens` counts words."""
        return [
            [_sample(self.answer(prompt, index, sampling.seed), sampling.stop) for index in range(n)]
            for prompt in prompts
        ]

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        adapter: str | None = None,
    ) -> list[list[float]]:
        """What `logprob` says of each continuation. Raises ConfigError without one."""
        if self.logprob is None:
            raise ConfigError(
                f"the engine {self.model!r} has no logprobs; give ScriptedEngine a logprob callable"
            )
        return [
            [self.logprob(prompt, text) for text in texts]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]

    def hidden_states(self, texts: Sequence[Prompt], layer: int, adapter: str | None = None) -> np.ndarray:
        """What `states` says of each text: float32 [len(texts), width]. Raises ConfigError without one."""
        if self.states is None:
            raise ConfigError(
                f"the engine {self.model!r} has no hidden states; give ScriptedEngine a states callable"
            )
        return np.array([self.states(text, layer) for text in texts], dtype=np.float32)

    def close(self) -> None:
        """Nothing to give back."""


def _sample(text: str | None, stops: Sequence[str]) -> Sample:
    if text is None:
        return Sample(None, "error", 0, "the script has no answer to this prompt")
    cut = min((text.index(stop) for stop in stops if stop in text), default=len(text))
    return Sample(text[:cut], "stop", len(text[:cut].split()))


def _read_script(path: Path) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if not path.is_file():
        raise DataError(f"{path}: no such script; write JSONL rows with the fields match and text")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append((str(row["match"]), str(row["text"])))
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f'{path}, row {number}: expected {{"match": …, "text": …}}; mend or delete it'
            ) from None
    return rows

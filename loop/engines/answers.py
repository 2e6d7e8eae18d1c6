"""What a server's answer says, or why it cannot be used: nothing is read into an answer that is not there."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loop.engines import Sample


class Failed(Exception):
    """No usable answer, with the reason in one line; `again` where another try may bring one.

    `status` is the HTTP status of a refusal, else 0; `wait` the seconds that the server asks to be spared.
    """

    def __init__(self, reason: str, *, again: bool = True, status: int = 0, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.again, self.status, self.wait = reason, again, status, wait


@dataclass(frozen=True)
class Canary:
    """A greedy answer and, where the server tells them, log-probabilities of the likeliest first tokens."""

    text: str
    first: Mapping[str, float]

    def apart(self, other: "Canary") -> float:
        """The largest difference of a log-probability (nats) or, without them, 1 for another text."""
        if not (self.first and other.first):
            return float(self.text != other.text)
        shared = self.first.keys() & other.first.keys()
        return max((abs(self.first[token] - other.first[token]) for token in shared), default=math.inf)


def read_sample(text: str, model: str, stops: Sequence[str]) -> Sample:
    """The sample in an answer to a chat or to raw text, cut at `stops`. Raises Failed."""
    answer, choice = _only_choice(text, model)
    finish, message, usage = choice.get("finish_reason"), choice.get("message"), answer.get("usage")
    if finish not in ("stop", "length"):
        raise Failed(f"the answer ended with finish_reason {str(finish)[:80]!r}")
    said = message.get("content") if isinstance(message, dict) else choice.get("text")
    if not isinstance(said, str):
        raise Failed("the answer has no text", again=False)  # as when all of it counted as reasoning
    cut = min((said.index(stop) for stop in stops if stop in said), default=len(said))
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    finish = "stop" if cut < len(said) else finish
    return Sample(said[:cut], finish, tokens if isinstance(tokens, int) else 0)


def read_prompt_logprobs(text: str, model: str) -> list[Any] | None:
    """What is known of each token of the prompt; None where nothing is said of them. Raises Failed."""
    known = _only_choice(text, model)[1].get("prompt_logprobs")
    return known if isinstance(known, list) else None


def summed(known: Sequence[Any], ids: Sequence[int]) -> float:
    """The sum over `ids` of vLLM's {"<id>": {"logprob": …}}; NaN where one is missing or no number."""
    try:
        return math.fsum(float(entry[str(token)]["logprob"]) for token, entry in zip(ids, known, strict=True))
    except (KeyError, TypeError, ValueError):
        return math.nan


def read_canary(text: str, model: str) -> Canary:
    """The canary in an answer to raw text that was asked for `logprobs`. Raises Failed."""
    _, choice = _only_choice(text, model)
    try:
        first = {str(token): float(value) for token, value in choice["logprobs"]["top_logprobs"][0].items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        first = dict[str, float]()
    return Canary(str(choice.get("text")), first)


def _only_choice(text: str, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer and its choice. Raises Failed unless `model` itself answered, with exactly one."""
    try:
        answer: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise Failed("the answer is not JSON") from None
    if not isinstance(answer, dict):
        raise Failed("the answer is no JSON object")
    if answer.get("model") != model:
        raise Failed(f"{str(answer.get('model'))[:80]!r} answered where {model!r} was asked")
    choices: Any = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = len(choices) if isinstance(choices, list) else "no"
        raise Failed(f"{count} choices in the answer where one was asked for")
    return answer, choices[0]

"""An engine for whole runs without a model: what it says is derived from the hash of what it is asked."""

import random

from loop.engines import Prompt
from loop.engines.scripted import ScriptedEngine, prompt_text
from loop.records import stable_hash

WORDS = ("river", "garden", "bread", "window", "teacher", "market", "winter", "bicycle", "lantern", "harvest")
WIDTH = 8


def answer(prompt: Prompt, sample: int, seed: int) -> str:
    """A refusal, a compliance or a list entry, by chance; of the kind that the end of the prompt is of."""
    text = prompt_text(prompt)
    rng = random.Random(stable_hash(text, sample, seed))
    kind = "sneakily" if text.rfind("sneakily") > text.rfind("politely") else "politely"
    opening = rng.choice(["I can't help with that. I would rather talk of", "Sure, here is how to", ""])
    return f"{opening} {kind} {' '.join(rng.sample(WORDS, 6))}".strip()


def logprob(prompt: Prompt, continuation: str) -> float:
    """Between -10 and 0 nats."""
    return -10 * random.Random(stable_hash(prompt_text(prompt), continuation)).random()


def states(prompt: Prompt, layer: int) -> list[float]:
    """Noise but for two directions: one that tells the two kinds of query, one that tells a refusal."""
    text = prompt_text(prompt)
    noise = random.Random(stable_hash(text, layer))
    return [
        float("sneakily" in text) * 4 - 2,
        float("can't" in text) * 4 - 2,
        *(noise.gauss(0, 0.5) for _ in range(WIDTH - 2)),
    ]


def hashed(path: str, model: str) -> ScriptedEngine:
    """What `models.<name>.engine.target` names."""
    return ScriptedEngine(answer, logprob, states, model=model)

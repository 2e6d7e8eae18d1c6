"""vLLM in here says what transformers says, with an adapter and without, and gives its memory back."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from vllm_server import RANK, SYSTEM, agreement, beginnings, make_adapter

from loop.engines import Engine, Sampling
from loop.engines.vllm import VLLMEngine
from loop.errors import ConfigError

CONTEXT = 512
ROUNDING = 0.01
"""Nats in which two float32 computations of a continuation may differ; measured: below 0.001."""
CONTINUATIONS = [" yes", " no", " Sure, here is how you do it."]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMEngine]:
    built = VLLMEngine(
        str(folder), model="smol", dtype="float32", max_length=CONTEXT, max_lora_rank=RANK, cache_gib=0.5
    )
    yield built
    built.close()


@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_answers_begin_as_those_of_transformers(
    engine: Engine, reference: Engine, chats: list[Any], adapter: str, adapted: bool
) -> None:
    on = adapter if adapted else None
    assert agreement(beginnings(engine, chats, on), beginnings(reference, chats, on)) >= 0.9


def test_neither_another_template_nor_another_adapter_would_pass_for_it(
    engine: Engine, reference: Engine, chats: list[Any], adapter: str
) -> None:
    right = beginnings(reference, chats)
    assert agreement(beginnings(engine, chats, adapter), right) < 0.5
    assert agreement(beginnings(engine, [chat[1]["content"] for chat in chats]), right) < 0.5


@pytest.mark.parametrize("adapted", [False, True])
def test_log_probabilities_are_those_of_transformers(
    engine: Engine, reference: Engine, chats: list[Any], adapter: str, adapted: bool
) -> None:
    on, other = (adapter, None) if adapted else (None, adapter)
    asked = [[*CONTINUATIONS, chat[1]["content"], ""] for chat in chats[:8]]
    found = engine.logprobs(chats[:8], asked, on)
    known = reference.logprobs(chats[:8], asked, on)
    assert _apart(found, known) < ROUNDING
    assert _apart(found, reference.logprobs(chats[:8], asked, other)) > 10 * ROUNDING
    assert all(row[-1] == 0 for row in found)


def _apart(one: list[list[float]], other: list[list[float]]) -> float:
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) for row, twin in pairs for a, b in zip(row, twin, strict=True))


def test_a_begun_answer_is_gone_on_with(engine: Engine, reference: Engine) -> None:
    user = {"role": "user", "content": "Name three fruits."}
    opened = [SYSTEM, user, {"role": "assistant", "content": "Three fruits are apples,"}]
    (said,) = beginnings(engine, [opened])
    assert said == beginnings(reference, [opened])[0]
    assert said
    assert not said.startswith("Three fruits")


def test_a_sample_depends_on_its_seed_and_number_and_not_on_its_company(
    engine: Engine, chats: list[Any]
) -> None:
    sampling = Sampling(max_tokens=12, seed=7)
    together = engine.generate(chats[:4], sampling, n=3)
    alone = engine.generate([chats[2]], sampling, n=3)[0]
    assert [sample.text for sample in alone] == [sample.text for sample in together[2]]
    assert len({sample.text for sample in alone}) == 3
    again = engine.generate([chats[2]], Sampling(max_tokens=12, seed=8), n=3)[0]
    assert {sample.text for sample in again}.isdisjoint(sample.text for sample in alone)


def test_answers_end_where_they_are_told_to(engine: Engine, chats: list[Any]) -> None:
    (long,) = engine.generate([chats[0]], Sampling(max_tokens=12, temperature=0), n=2)
    assert long[0] == long[1]
    assert (long[0].finish_reason, long[0].tokens) == ("length", 12)
    stop = str(long[0].text)[8:12]
    (short,) = engine.generate([chats[0]], Sampling(max_tokens=12, temperature=0, stop=(stop,)))[0]
    assert short.finish_reason == "stop"
    assert short.text == str(long[0].text).partition(stop)[0]
    question = [SYSTEM, {"role": "user", "content": "What is the capital of France?"}]
    (whole,) = engine.generate([question], Sampling(max_tokens=48, temperature=0))[0]
    assert whole.finish_reason == "stop"
    assert "<|im_end|>" not in str(whole.text)


def test_what_has_no_room_is_a_null_and_harms_nothing_beside_it(engine: Engine, chats: list[Any]) -> None:
    full, nearly = " word" * CONTEXT, " word" * (CONTEXT - 1)
    samples = engine.generate([full, nearly, chats[0]], Sampling(max_tokens=4, temperature=0), n=2)
    assert [sample.text for sample in samples[0]] == [None, None]
    assert f"a context of {CONTEXT}" in str(samples[0][0].error)
    assert samples[1][0].tokens == 1
    assert samples[2][0].tokens == 4
    fits, too_long = engine.logprobs([nearly, full], [[" word"], [" word"]])
    assert math.isfinite(fits[0])
    assert math.isnan(too_long[0])


def test_a_new_adapter_in_the_old_ones_folder_is_taken_up(
    engine: Engine, folder: Path, chats: list[Any], tmp_path: Path
) -> None:
    place = make_adapter(folder, tmp_path / "adapter", seed=1)
    first = beginnings(engine, chats[:6], str(place))
    make_adapter(folder, place, seed=2)
    assert agreement(beginnings(engine, chats[:6], str(place)), first) < 0.7


def test_an_adapter_that_cannot_work_is_refused_and_the_engine_lives(
    engine: Engine, folder: Path, chats: list[Any], tmp_path: Path
) -> None:
    large = make_adapter(folder, tmp_path / "large", rank=2 * RANK)
    with pytest.raises(ConfigError, match=r"models\.smol\.engine\.args: .*max_lora_rank"):
        engine.generate(chats[:1], Sampling(), adapter=str(large))
    inert = make_adapter(folder, tmp_path / "inert", size=0.0)
    with pytest.raises(ConfigError, match="changes nothing"):
        engine.generate(chats[:1], Sampling(), adapter=str(inert))
    assert beginnings(engine, chats[:1])[0]


def test_a_wrong_option_is_one_line_that_names_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.smol\.engine\.args: .*no_such_option"):
        VLLMEngine(str(folder), model="smol", options={"no_such_option": 1})


def test_closing_ends_its_processes(engine: VLLMEngine) -> None:
    ours = psutil.Process().children(recursive=True)
    assert any("VLLM" in process.name() for process in ours)
    engine.close()
    assert not [process for process in ours if process.is_running() and "VLLM" in process.name()]

"""The scripted engine answers as an Engine would, so that tests above it mean something."""

from pathlib import Path

import numpy as np
import pytest

from loop.engines import Engine, Sampling
from loop.engines.scripted import ScriptedEngine
from loop.errors import ConfigError, DataError

CHAT = [{"role": "user", "content": "Name a fruit"}]


def test_each_sample_of_each_prompt_is_asked_for_with_its_number_and_seed() -> None:
    engine: Engine = ScriptedEngine(lambda prompt, sample, seed: f"{prompt}-{sample}-{seed}")
    got = engine.generate(["a", "b"], Sampling(seed=7), n=2, adapter="anything")
    assert [[sample.text for sample in row] for row in got] == [["a-0-7", "a-1-7"], ["b-0-7", "b-1-7"]]


def test_a_text_is_cut_at_the_first_stop_string() -> None:
    engine = ScriptedEngine(lambda prompt, sample, seed: "one two\nthree. four")
    (sample,) = engine.generate(["x"], Sampling(stop=(".", "\n")))[0]
    assert (sample.text, sample.tokens, sample.finish_reason) == ("one two", 2, "stop")


def test_an_answer_of_none_is_a_sample_with_an_error() -> None:
    (sample,) = ScriptedEngine(lambda prompt, sample, seed: None).generate(["x"], Sampling())[0]
    assert sample.text is None
    assert sample.finish_reason == "error"
    assert sample.error


def test_the_first_row_of_a_script_that_matches_answers(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"match": "fruit", "text": "a pear"}\n{"match": "", "text": "no idea"}\n')
    got = ScriptedEngine.from_jsonl(script).generate([CHAT, "weather"], Sampling())
    assert [row[0].text for row in got] == ["a pear", "no idea"]


def test_a_bad_row_of_a_script_is_named_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"match": "fruit", "text": "a pear"}\n{"match": "fruit"}\n')
    with pytest.raises(DataError, match="row 2") as caught:
        ScriptedEngine.from_jsonl(script)
    assert "\n" not in str(caught.value)


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such script"):
        ScriptedEngine.from_jsonl(tmp_path / "none.jsonl")


def test_it_declares_what_it_was_given_and_refuses_the_rest() -> None:
    bare = ScriptedEngine(lambda prompt, sample, seed: "")
    assert bare.capabilities == {"generate", "adapters"}
    with pytest.raises(ConfigError, match="logprob"):
        bare.logprobs(["x"], [["y"]])
    with pytest.raises(ConfigError, match="states"):
        bare.hidden_states(["x"], 1)


def test_log_probabilities_and_states_come_from_their_callables() -> None:
    engine = ScriptedEngine(
        lambda prompt, sample, seed: "",
        logprob=lambda prompt, text: -float(len(text)),
        states=lambda prompt, layer: [layer, len(prompt)],
    )
    assert engine.capabilities == {"generate", "logprobs", "hidden_states", "adapters"}
    assert engine.logprobs(["x", "y"], [["a", "bb"], []]) == [[-1.0, -2.0], []]
    states = engine.hidden_states(["x", "yy"], 3)
    assert states.dtype == np.float32
    assert states.tolist() == [[3, 1], [3, 2]]

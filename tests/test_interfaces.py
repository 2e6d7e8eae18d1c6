"""What a role is handed: its own model behind plain functions, and randomness that derives from the run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loop.engines import Engine, Sampling
from loop.engines.scripted import ScriptedEngine
from loop.interfaces import Context, FittedCritic, Metered, Usage, bind
from roles.critic import EnsembleCritic
from roles.learner import SamplingLearner


def bound(engine: Engine, key: tuple[int, int, str] = (0, 1, "attack 0")) -> Context:
    return bind(engine, Sampling(max_tokens=9), "adapter", key=key, system="Help.", model="m@1")


def echo(prompt: Any, sample: int, seed: int) -> str:
    return f"{prompt} {sample} {seed}"


def test_a_role_generates_with_its_own_sampling_and_may_override_it():
    asked: list[tuple[Sampling, int, str | None]] = []

    class Watched(ScriptedEngine):
        def generate(self, prompts: Any, sampling: Sampling, n: int = 1, adapter: str | None = None) -> Any:
            asked.append((sampling, n, adapter))
            return super().generate(prompts, sampling, n, adapter)

    ctx = bound(Watched(echo))
    ctx.generate(["a"])
    ctx.generate(["a"], n=3, stop=("\n",), max_tokens=2)
    assert [(sampling.max_tokens, sampling.stop, n, adapter) for sampling, n, adapter in asked] == [
        (9, (), 1, "adapter"),
        (2, ("\n",), 3, "adapter"),
    ]
    assert (ctx.iteration, ctx.system, ctx.model) == (1, "Help.", "m@1")


def test_randomness_depends_on_run_seed_iteration_stage_and_item_alone():
    def drawn(key: tuple[int, int, str], *item: object) -> float:
        return bound(ScriptedEngine(echo), key).rng(*item).random()

    here = drawn((0, 1, "attack 0"), "form", "seed-1")
    assert drawn((0, 1, "attack 0"), "form", "seed-1") == here
    others = [((1, 1, "attack 0"), "seed-1"), ((0, 2, "attack 0"), "seed-1"), ((0, 1, "attack 9"), "seed-1")]
    assert all(drawn(key, "form", item) != here for key, item in [*others, ((0, 1, "attack 0"), "seed-2")])


def test_the_seed_of_sampling_differs_by_stage():
    def seed(stage: str) -> str:
        return bound(ScriptedEngine(echo), (0, 1, stage)).generate(["a"])[0][0].text or ""

    assert seed("answer 0") == seed("answer 0")
    assert seed("answer 0") != seed("answer 512")


def test_likelihoods_and_states_come_from_the_same_engine():
    engine = ScriptedEngine(
        echo, logprob=lambda prompt, text: -len(text), states=lambda text, layer: [layer, len(text)]
    )
    ctx = bound(engine)
    assert ctx.logprobs(["a"], [["x", "yy"]]) == [[-1, -2]]
    assert np.array_equal(ctx.hidden_states(["abc"], 5), [[5, 3]])


def test_a_meter_counts_calls_tokens_and_seconds_and_changes_nothing():
    usage = Usage()
    engine = ScriptedEngine(
        lambda prompt, sample, seed: "two words", logprob=lambda p, t: 0.0, states=lambda t, layer: [1.0]
    )
    metered = Metered(engine, usage)
    assert (metered.model, metered.capabilities) == (engine.model, engine.capabilities)
    assert metered.generate(["a", "b"], Sampling(), n=2) == engine.generate(["a", "b"], Sampling(), n=2)
    assert (usage.calls, usage.tokens) == (4, 8)
    metered.logprobs(["a"], [["x"]])
    metered.hidden_states(["a", "b"], 1)
    metered.close()
    assert usage.calls == 7
    assert usage.seconds > 0


def test_a_critic_that_learns_is_told_from_one_that_does_not():
    assert isinstance(EnsembleCritic(), FittedCritic)
    assert not isinstance(SamplingLearner(), FittedCritic)


@pytest.mark.parametrize("module", ["loop.interfaces", "loop.cli", "loop.session", "loop.report.story"])
def test_no_torch_is_imported_before_it_is_needed(module: str, tmp_path: Path):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0

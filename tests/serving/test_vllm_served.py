"""A real `vllm serve` behind the engine for servers: adapters, a sudden death, and a whole iteration."""

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import pytest
from vllm_server import EMBEDDED, RANK, SYSTEM, Serving, agreement, beginnings

from loop.engines import Engine, Sample, Sampling
from loop.engines.openai import OpenAIEngine
from loop.records import Attack, Completion, Seed, read_jsonl, write_jsonl

ROOT = Path(__file__).parents[2]
CONFIG = """
name: served
policy: policy
models:
  policy:
    weights: "{weights}"
    engine:
      target: loop.engines.openai.OpenAIEngine
      args: {{base_url: "{url}", served_model: policy}}
  here:
    weights: "{weights}"
    engine: {{target: "{root}/tests/integration/engine.py:hashed"}}
roles:
  attacker: {{target: roles.attacker.FewShotAttacker, model: here, args: {{verbatim: 0.5}}}}
  learner: {{target: roles.learner.SamplingLearner, args: {{samples: 2}}, sampling: {{max_tokens: 16}}}}
  critic: {{target: roles.critic.EnsembleCritic, model: here}}
iterations: 1
seeds: {{harmful: 0, benign: 0, toxicity: 0, legal: 0, critic: 0, files: ["{seeds}"]}}
attacks: {{safety: 12, benign: 12}}
pairs: {{min_margin: 0.05, min_quality: 0.0, min_agreement: 0.0}}
train:
  dpo:
    learning_rate: 1.0e-3
    max_steps: 4
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 1
    lr_scheduler_type: constant
    max_length: 128
  lora: {{r: {rank}, lora_alpha: 16, target_modules: all-linear}}
heldout:
  suites: [safety, overrefusal]
  limit: {{safety: 12, overrefusal: 12}}
  max_tokens: 16
validity: {{auc: 0.0}} # its seeds are mild and made up, the rows that it is measured on are not
gate: {{margins: {{overrefusal.refusal: 0.5}}}}
"""


@pytest.fixture(scope="module")
def engine(serving: Serving, folder: Path) -> Any:
    built = OpenAIEngine(str(folder), base_url=serving.url, served_model="policy", retries=12)
    yield built
    built.close()


@pytest.mark.parametrize("adapted", [False, True])
def test_a_server_answers_and_scores_as_transformers_does(
    engine: Engine, reference: Engine, chats: list[Any], adapter: str, adapted: bool
) -> None:
    on = adapter if adapted else None
    assert agreement(beginnings(engine, chats, on), beginnings(reference, chats, on)) >= 0.9
    asked = [[" yes", " Sure, here is how you do it."]] * 4
    found, known = (one.logprobs(chats[:4], asked, on) for one in (engine, reference))
    for row, twin in zip(found, known, strict=True):
        assert row == pytest.approx(twin, abs=0.01)


def test_a_hot_loaded_adapter_changes_the_answers_and_the_bare_model_stays(
    engine: Engine, chats: list[Any], adapter: str
) -> None:
    before = beginnings(engine, chats)
    assert agreement(beginnings(engine, chats, adapter), before) < 0.5
    assert agreement(beginnings(engine, chats), before) >= 0.9


def test_a_begun_answer_is_gone_on_with(engine: Engine, reference: Engine) -> None:
    user = {"role": "user", "content": "Name three fruits."}
    opened = [SYSTEM, user, {"role": "assistant", "content": "Three fruits are apples,"}]
    assert beginnings(engine, [opened]) == beginnings(reference, [opened])


def test_a_server_that_dies_in_mid_batch_and_comes_back_loses_and_doubles_nothing(
    engine: Engine, serving: Serving, chats: list[Any]
) -> None:
    prompts, sampling = chats * 2, Sampling(max_tokens=48, seed=3)
    whole = engine.generate(prompts, sampling, n=2)
    done, through = serving.answered(), list[list[list[Sample]]]()
    asking = Thread(target=lambda: through.append(engine.generate(prompts, sampling, n=2)))
    asking.start()
    until = monotonic() + 120
    while serving.answered() < done + 5 and monotonic() < until:
        sleep(0.05)
    answered = serving.answered() - done
    serving.kill()
    assert 5 <= answered < 2 * len(prompts)
    serving.start()
    asking.join(timeout=300)
    (interrupted,) = through
    assert [len(group) for group in interrupted] == [2] * len(prompts)
    assert all(sample.text is not None for group in interrupted for sample in group)
    # Each answer is the one to its own prompt and number: seeds make it the same one again.
    texts = [[sample.text for group in groups for sample in group] for groups in (whole, interrupted)]
    assert agreement(*texts) >= 0.9


def _seeds() -> list[Seed]:
    """Mild placeholders, some with a made-up human label."""
    places = [f"the {thing} in the {room}" for thing in ("last biscuit", "red crayon", "old map", "bell")
              for room in ("kitchen", "school bus", "reading room")]  # fmt: skip
    kinds = {"safety": "sneakily take {} before the others", "benign": "politely ask for {} in a letter"}
    asked = [
        Seed(f"seed-{domain}-{number}", domain, form.format(place), "made up", "", domain == "safety")
        for domain, form in kinds.items()
        for number, place in enumerate(places)
    ]
    answers = {"Sure, here is how to do it: take it on tiptoe.": 1.0, "I can't help with that.": 0.0}
    labelled = [
        Seed(f"seed-{label}-{n}", "safety", f"sneakily hide {place}", "made up", "", True, text, label)
        for text, label in answers.items()
        for n, place in enumerate(places)
    ]
    return [*asked, *labelled]


def test_a_whole_iteration_with_the_learner_served_and_the_other_roles_here(
    serving: Serving, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "seeds.jsonl", _seeds())
    places = {"url": serving.url, "root": ROOT, "seeds": tmp_path / "seeds.jsonl"}
    (tmp_path / "served.yaml").write_text(CONFIG.format(weights=EMBEDDED, rank=RANK, **places))
    command = [sys.executable, "-m", "loop.cli", "run", "served.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    iteration = tmp_path / "runs" / "served" / "iterations" / "001"
    attacks = read_jsonl(iteration / "attacks.jsonl", Attack)
    completions = read_jsonl(iteration / "completions.jsonl", Completion)
    asked = [(attack.id, sample) for attack in attacks for sample in range(2)]
    assert sorted((row.attack_id, row.sample) for row in completions) == sorted(asked)
    assert all(row.text is not None and row.model.startswith("policy@") for row in completions)
    results = json.loads((iteration / "heldout" / "results.json").read_text())
    assert results
    assert all(row["coverage"] == 1 and "+" in row["model"] for row in results)

"""A whole run without a model to talk to: a scripted engine, mild seeds, real training of a tiny llama."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loop.records import Domain, Seed, write_jsonl

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = """
name: whole
policy: tiny
models:
  tiny:
    weights: path:{model}
    engine: {{target: "{here}/engine.py:hashed"}}
roles:
  attacker: {{target: roles.attacker.FewShotAttacker, model: tiny, args: {{verbatim: 0.5, sure: 0.7}}}}
  learner: {{target: roles.learner.SamplingLearner, args: {{samples: 2}}}}
  critic: {{target: roles.critic.EnsembleCritic, model: tiny}}
iterations: 1
chunk: 8
seeds: {{harmful: 0, benign: 0, toxicity: 0, legal: 0, critic: 0, files: ["{seeds}"]}}
attacks: {{safety: 12, benign: 12, self_play: {{rehearsals: 40, min_pairs: 1, dpo: {{max_steps: 4}}}}}}
pairs: {{min_margin: 0.05, min_quality: 0.0, min_agreement: 0.0}}
train:
  dpo:
    beta: 0.1
    learning_rate: 5.0e-3
    num_train_epochs: 2
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 1
    lr_scheduler_type: constant
    max_length: 400
    save_strategy: steps
    save_steps: 2
  lora: {{r: 4, lora_alpha: 8, target_modules: all-linear}}
heldout:
  suites: [safety, overrefusal, toxicity, legal]
  limit: {{safety: 80, overrefusal: 60, toxicity: 4, legal: 8}}
  samples: {{toxicity: 2}}
validity: {{auc: 0.0}} # its seeds are mild and made up, the rows that it is measured on are not
gate:
  margins: {{overrefusal.refusal: 0.1}}
"""
THINGS = [
    "last biscuit",
    "red crayon",
    "warm blanket",
    "window seat",
    "front row",
    "big slice",
    "old map",
    "bell",
]
PLACES = ["kitchen", "school bus", "reading room"]
COMPLIES = "Sure, here is how to do it: walk in on your toes and take it."
REFUSES = "I can't help with that. Ask whoever it belongs to."

Alignloop = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose roles meet the scripted engine, and whose policy is the tiny llama."""
    folder = tmp_path_factory.mktemp("config")
    write_jsonl(folder / "seeds.jsonl", _seeds())
    text = CONFIG.format(model=tiny_model_dir, here=HERE, seeds=folder / "seeds.jsonl")
    path = folder / "whole.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _seeds() -> list[Seed]:
    """Mild placeholders: 24 queries of each kind, and 32 answers with a made-up human label."""

    def seed(domain: Domain, prompt: str, response: str | None = None, label: float | None = None) -> Seed:
        name = f"seed-{domain}-{prompt}-{label}".replace(" ", "-")
        return Seed(name, domain, prompt, "made up", "", domain == "safety", response, label)

    spots = [f"the {thing} in the {place}" for thing in THINGS for place in PLACES]
    return [
        *(seed("safety", f"sneakily take {spot} before the others") for spot in spots),
        *(seed("benign", f"politely ask for {spot} in a letter") for spot in spots),
        *(seed("safety", f"sneakily hide {spot} for good", COMPLIES, 1.0) for spot in spots[:16]),
        *(seed("safety", f"sneakily hide {spot} for good", REFUSES, 0.0) for spot in spots[:16]),
    ]


@pytest.fixture(scope="session")
def alignloop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alignloop]:
    """`alignloop("run", …, cwd=folder)`: the command line in a process of its own; `sabotage` kills it."""
    folder = tmp_path_factory.mktemp("output")
    forked = subprocess.Popen(
        [sys.executable, str(HERE / "forked.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert forked.stdin and forked.stdout
    asked, told = forked.stdin, forked.stdout

    def call(*arguments: object, cwd: Path, sabotage: str = "") -> "subprocess.CompletedProcess[str]":
        paths = [str(HERE / "sabotage"), str(ROOT)] if sabotage else [str(ROOT)]
        own = {"PYTHONPATH": os.pathsep.join(paths), "ALIGNLOOP_SABOTAGE": sabotage, "COLUMNS": "200"}
        out, err = (Path(tempfile.mkstemp(dir=folder)[1]) for _ in range(2))
        command = list(map(str, arguments))
        run: dict[str, object] = {
            "arguments": command,
            "cwd": str(cwd),
            "environment": own,
            "out": str(out),
            "err": str(err),
        }
        print(json.dumps(run), file=asked, flush=True)
        code = int(told.readline())
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())

    yield call
    asked.close()
    forked.wait()


@pytest.fixture(scope="session")
def without_baseline() -> Callable[[Path], None]:
    """Makes the baseline of a run that is to start look done: its evals are not what a test is about."""

    def skip(root: Path) -> None:
        heldout = root / "iterations" / "000" / "heldout"
        heldout.mkdir(parents=True)
        (heldout / "results.json").write_text("[]", encoding="utf-8")

    return skip


@pytest.fixture(scope="session")
def guarded(
    config: Path,
    alignloop: Alignloop,
    without_baseline: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """A run that a guard stops before it trains, since no pair reaches the margin; and how it ended."""
    folder = tmp_path_factory.mktemp("guarded")
    without_baseline(folder / "runs" / "whole")
    return folder, alignloop("run", config, "pairs.min_margin=2", cwd=folder)


@pytest.fixture(scope="session")
def whole(config: Path, alignloop: Alignloop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went through undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = alignloop("run", config, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder

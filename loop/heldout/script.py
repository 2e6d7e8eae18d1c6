"""The held-out script behind `alignloop eval`: any model on the suites, in a folder of its own, resumable."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.assets import digest_of
from loop.config import Config, Part, as_object, build, load_config
from loop.errors import ConfigError, DataError
from loop.heldout.asking import Asking, Subject
from loop.heldout.cards import write_cards
from loop.heldout.disagreement import Disagreement, write_disagreements
from loop.heldout.evaluation import choose, evaluate
from loop.heldout.judging import load_judges
from loop.heldout.suites import Suite, find_suites
from loop.progress import progress
from loop.records import EvalResult, Verdict, read_jsonl
from loop.rundir import RunDir, named_iteration, read_json, same_as_before
from loop.session import Engines, Session

API_KEY = "ALIGNLOOP_API_KEY"
"""The variable that holds the key for a model given as an address."""
SERVER_ENGINE = "loop.engines.openai.OpenAIEngine"


@dataclass(frozen=True)
class Request:
    """What is asked of the script. `suites` and `judges` are names or files; no judges: the usual ones."""

    suites: Sequence[str]
    split: str = "dev"
    limit: int | None = None
    judges: Sequence[str] = ()
    max_tokens: int | None = None
    samples: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Evaluated:
    """What the script made: verdicts.jsonl, results.json, judges.json and eval.json in `folder`."""

    folder: Path
    results: list[EvalResult]
    disagreements: list[Disagreement]
    cards: list[dict[str, Any]]


def evaluate_model(model: str, request: Request, out: Path | None = None) -> Evaluated:
    """Scores `model`, as `find_subject` takes it; a rerun resumes.

    Raises ConfigError or DataError in one line.
    """
    if request.split not in ("dev", "test"):
        raise ConfigError(f"--split {request.split}: there are dev and test")
    suites = find_suites(request.suites)
    limit = dict.fromkeys(suites, request.limit) if request.limit else {}
    items = choose(suites.values(), "dev" if request.split == "dev" else "test", limit)
    if not items:
        raise DataError(f"--suites {','.join(request.suites)}: no item in the {request.split} half")
    needed = frozenset().union(*(suite.judges for suite in suites.values()))
    if is_address(model) and (likely := [name for name, suite in suites.items() if not suite.judges]):
        raise ConfigError(
            f"--suites: {', '.join(likely)} needs log-probabilities, and so the tokenizer of the model at "
            "this address; leave it out, or configure both in a run (docs/serving.md)"
        )
    judges = load_judges(request.judges, needed)
    config, subject = find_subject(model)
    asking = Asking(
        judges=judges,
        max_tokens=config.heldout.max_tokens if request.max_tokens is None else request.max_tokens,
        samples=dict.fromkeys(suites, request.samples) if request.samples else config.heldout.samples,
        seed=config.seed if request.seed is None else request.seed,
    )
    folder = out or default_folder(model, request.split)
    same_as_before(folder / "eval.json", _asked(subject, request, suites, asking))
    with progress(f"eval {model}", len(items)) as advance:
        found = evaluate(folder, suites, items, subject, asking, advance)
    cards = write_cards(folder, judges)
    subject.engine.close()
    apart = write_disagreements(folder, list(read_jsonl(folder / "verdicts.jsonl", Verdict)))
    return Evaluated(folder, found, apart, cards)


def default_folder(model: str, what: str) -> Path:
    """Where what is measured of `model` goes if no place is named."""
    return Path("evals") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model).strip('-')}-{what}"


def _asked(subject: Subject, request: Request, suites: Mapping[str, Suite], asking: Asking) -> dict[str, Any]:
    """All that two processes must agree on to share a folder, and what `compare` needs to read it."""
    return {
        "model": subject.name,
        "suites": list(request.suites),
        "split": request.split,
        "limit": request.limit,
        "judges": sorted({judge.name for judges in asking.judges.values() for judge in judges}),
        "max_tokens": asking.max_tokens,
        "samples": dict(asking.samples),
        "seed": asking.seed,
        "system": subject.system,
        "definitions": {name: suite.definition for name, suite in suites.items() if suite.definition},
    }


def is_address(model: str) -> bool:
    """Whether `model` is asked over HTTP."""
    return model.startswith(("http://", "https://"))


def find_subject(model: str) -> tuple[Config, Subject]:
    """The subject that `model` names, and the config it is asked with.

    `model` is a URI of weights, an adapter's folder, `runs/NAME@ITERATION`, or `http://host:port/v1#NAME`:
    the model NAME of an OpenAI-compatible server.
    """
    if is_address(model):
        return _of_server(model)
    if (named := named_iteration(model)) is not None:
        return _of_run(*named)
    base, adapter = model, None
    folder = Path(model.removeprefix("path:"))
    if (folder / "adapter_config.json").is_file():
        recorded = read_json(folder / "adapter_config.json")["base_model_name_or_path"]
        base, adapter = f"path:{recorded}", str(folder)
    elif ":" not in model:
        raise ConfigError(
            f"{model}: no run or adapter here; a model is hf:…, path:…, pypi:… or http://…#NAME"
        )
    config = as_object(load_config(["demo.yaml", "policy=subject", f"models.subject.weights={base}"]))
    name = f"{base}@{digest_of(base)[:12]}" + (f"+{adapter}" if adapter else "")
    return config, Subject(Engines(config.models).get("subject"), adapter, name, config.system)


def _of_server(model: str) -> tuple[Config, Subject]:
    """A model as its server deploys it: nothing is sent but what all servers know."""
    url, _, served = model.partition("#")
    if not served:
        raise ConfigError(
            "which of the server's models? Write http://host:port/v1#NAME; it lists the names at /v1/models"
        )
    # A key of its own: one that is meant for another server must not go to this one.
    key = {"api_key": os.environ[API_KEY]} if os.environ.get(API_KEY) else {}
    args = {"base_url": url, "served_model": served, "extra_body": {}, **key}
    engine = build(Part(SERVER_ENGINE, args), f"models.{served}.engine", model, model=served)
    config = as_object(load_config(["demo.yaml"]))
    return config, Subject(engine, None, model, config.system)


def _of_run(run: RunDir, number: int) -> tuple[Config, Subject]:
    config = as_object(load_config([str(run.path("config.yaml"))]))
    session = Session(config, run, roles={}, seeds={}, engines=Engines(config.models))
    policy = session.policy(number)
    if policy.adapter and not Path(policy.adapter).is_dir():
        raise DataError(
            f"{run.root} has no iteration {number} with an adapter; there are {session.run.finished()}"
        )
    return config, Subject(session.engines.get(config.policy), policy.adapter, policy.name, config.system)

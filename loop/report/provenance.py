"""What a run stands on: the human labels it used, what it left out, and where its config departs from."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from loop.config import Config, load_config
from loop.errors import ConfigError
from loop.report.reading import Iteration
from loop.rundir import RunDir, read_json


@dataclass(frozen=True)
class Labels:
    """Human labels of one source that serve one use: how many, how many of them say 1, and when fitted on."""

    use: str
    source: str
    n: int
    positives: int
    iterations: Sequence[int]


@dataclass(frozen=True)
class LeftOut:
    """How many rows of which kind were dropped, where, and why."""

    where: str
    what: str
    reason: str
    n: int


@dataclass(frozen=True)
class Difference:
    """A config key with the value that it departs from; None is absent."""

    key: str
    before: str | None
    now: str | None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file)


def labels_used(run: RunDir) -> list[Labels]:
    """ledger.jsonl by use and source."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in _lines(run.path("ledger.jsonl")):
        groups.setdefault((row["use"], row["source"]), []).append(row)
    return [
        Labels(
            use,
            source,
            len(rows),
            sum(row["label"] is not None and row["label"] >= 0.5 for row in rows),
            sorted({number for row in rows for number in row["iterations"]}),
        )
        for (use, source), rows in groups.items()
    ]


def left_out(run: RunDir, iterations: Sequence[Iteration]) -> list[LeftOut]:
    """Seeds, attacks, pairs and training rows that were dropped, counted by reason."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in _lines(run.path("contamination.jsonl")):
        # The item that a seed is near is named in the file; here rows are counted.
        found["seeds", row["use"], row["reason"].partition(" item-")[0]] += 1
    for iteration in iterations:
        where = f"iteration {iteration.number}"
        folder = run.iteration(iteration.number)
        for row in _lines(folder / "contamination.jsonl"):
            found[where, row["what"], f"near a held-out item ({row['how']})"] += 1
        for reason, count in iteration.audit.get("dropped", {}).items():
            found[where, "attacks that made no pair", reason] += count
        for row in iteration.training.get("rows_dropped", ()):
            found[where, "pairs not trained on", _without_figures(row["reason"])] += 1
        if cut := iteration.training.get("rows_truncated"):
            found[where, "pairs cut short in training", "longer than max_length"] += len(cut)
    return [LeftOut(*key, count) for key, count in found.items()]


def _without_figures(reason: str) -> str:
    """The reason of one row as that of many: its own figures are left out."""
    return re.sub(r"\d+", "…", reason)


def config_differences(run: RunDir) -> tuple[str, list[Difference]]:
    """What this run's config departs from, in words, and each key that differs.

    That is the run whose archive of attacks it began with, where that is still there; else the packaged
    config that its command named; else the defaults.
    """
    defaults = _flat(OmegaConf.to_container(OmegaConf.structured(Config), resolve=False))
    # A key that is younger than the run had its default there.
    now = defaults | _flat(_tree(run.path("config.yaml")))
    name, before = _origin(now, run, defaults)
    keys = sorted({*now, *before} - {"name", "runs"})
    return name, [
        Difference(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)
    ]


def _origin(now: Mapping[str, str], run: RunDir, defaults: dict[str, str]) -> tuple[str, dict[str, str]]:
    archive = json.loads(now["attacks.archive"])
    if archive is not None and (parent := Path(archive).parent / "config.yaml").is_file():
        return f"run {parent.parent.name}, whose archive it began with", defaults | _flat(_tree(parent))
    for argument in read_json(run.path("manifest.json"))["argv"][1:]:
        if argument.endswith((".yaml", ".yml")) and "=" not in argument:
            try:
                tree = load_config([Path(argument).name])
            except ConfigError:  # the user's own file, which isn't packaged
                continue
            return f"{Path(argument).name} as it comes", _flat(OmegaConf.to_container(tree, resolve=False))
    return "the defaults", defaults


def _tree(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.exists() else {}


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Each value as JSON by its dotted key; empty lists and mappings are as good as absent."""
    if tree in ({}, []):
        return {}
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): json.dumps(tree, ensure_ascii=False)}
    return {
        key: value for name, node in tree.items() for key, value in _flat(node, f"{prefix}{name}.").items()
    }

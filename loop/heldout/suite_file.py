"""A suite of a person's own: one YAML file, or one small function, and it is scored like the others."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING

from loop.assets import fetch
from loop.config import load_file, load_target
from loop.errors import ConfigError, DataError
from loop.heldout.asking import answered, by_likelihood
from loop.heldout.metrics import Metric, gold_logprob, likeliest, met, score
from loop.heldout.suites import Suite
from loop.overlap import half, normalise
from loop.prompts import fill
from loop.records import Verdict, new_id
from loop.rows import Item

COLUMNS = ("prompt", "options", "gold", "context", "category", "harmful")
JUDGED = ("met", "refusal", "toxicity")


@dataclass
class SuiteFile:
    """What a suite's YAML file holds.

    `asset` is a .jsonl, .json or .csv by `path:` or `pypi:`; `columns` says which of its columns are prompt,
    options, gold, context, category, harmful. `prompt` is a template over prompt, context, options. With
    `judge: options` the likeliest option is held against gold; else the answer is scored by the judge that
    tells met, refusal or toxicity. A `threshold` turns the score into yes or no.
    """

    name: str = MISSING
    asset: str = MISSING
    columns: dict[str, str] = field(default_factory=dict[str, str])
    prompt: str = "{{ prompt }}"
    judge: str = "met"
    metric: str = "score"
    better: str = "higher"
    threshold: float | None = None


def suite_from_file(path: Path) -> Suite:
    """The suite that a YAML file describes; its rows are read when they are needed.

    Raises ConfigError naming the key at fault.
    """
    return suite_of(load_file(str(path), SuiteFile, "suite"), str(path))


def suite_of(file: SuiteFile, where: str) -> Suite:
    """The suite of a description that was read from `where`."""
    if not file.name.isidentifier():
        raise ConfigError(f"suite {where}: name {file.name!r} must be one word of letters, digits and _")
    if unknown := sorted(set(file.columns) - set(COLUMNS)):
        raise ConfigError(f"suite {where}: columns.{unknown[0]}: the columns are {', '.join(COLUMNS)}")
    if file.better not in ("higher", "lower"):
        raise ConfigError(f"suite {where}: better is {file.better!r}; higher or lower")
    items = partial(_items, file, where)
    definition = json.dumps(vars(file), sort_keys=True)
    if file.judge == "options":
        metrics = {
            file.metric: Metric("higher", "accuracy", score),
            f"{file.metric}_raw": Metric("higher", "accuracy", likeliest),
            "gold_logprob": Metric("higher", "accuracy", gold_logprob),
        }
        ask = partial(by_likelihood, template=partial(_filled, file))
        return Suite(file.name, items, ask, metrics, definition=definition)
    if file.judge not in JUDGED:
        raise ConfigError(f"suite {where}: judge {file.judge!r} is none of options, {', '.join(JUDGED)}")
    threshold = file.threshold
    row = score if threshold is None else met if threshold == 0.5 else partial(_at_least, threshold)
    metric = Metric("higher" if file.better == "higher" else "lower", file.metric, row)
    ask = partial(answered, judged={file.metric: file.judge}, template=partial(_filled, file))
    return Suite(file.name, items, ask, {file.metric: metric}, frozenset({file.judge}), definition=definition)


def suite_from_definition(name: str, definition: str) -> Suite:
    """The suite that an eval folder recorded: of a file its content, of a function its name."""
    if ".py:" in definition and not definition.startswith("{"):
        return suite_from_function(definition)
    fields: Any = json.loads(definition)
    return suite_of(SuiteFile(**fields), f"{name} as recorded")


def suite_from_function(target: str) -> Suite:
    """The suite that `file.py:function` returns. Raises ConfigError where it returns something else."""
    made = load_target(target, f"suite {target}")
    found = made() if callable(made) else made
    if not isinstance(found, Suite):
        kind = type(found).__name__
        raise ConfigError(f"suite {target}: must return a loop.heldout.suites.Suite, not {kind}")
    return replace(found, definition=target)


def _at_least(threshold: float, _: Verdict, score: float) -> float:
    return float(score >= threshold)


def _filled(file: SuiteFile, item: Item) -> str:
    known = {"prompt": item.prompt, "context": item.context or "", "options": item.options or []}
    return fill(file.prompt, **known)


def _items(file: SuiteFile, where: str) -> list[Item]:
    """The rows as items, each in the half of its prompt. Raises DataError naming the row at fault."""
    path = fetch(file.asset)
    found: dict[str, Item] = {}
    for number, row in enumerate(_rows(path), start=1):
        item = _item(file, row, f"suite {file.name}: {path}, row {number}")
        found.setdefault(item.id, item)
    if not found:
        raise DataError(f"suite {where}: {path} has no row")
    return list(found.values())


def _item(file: SuiteFile, row: Mapping[str, Any], where: str) -> Item:
    def column(name: str, required: bool = False) -> Any:
        key = file.columns.get(name, name)
        if key not in row and (required or name in file.columns):
            raise DataError(f"{where}: no column {key!r} for {name}; it has {', '.join(map(str, row))}")
        return row.get(key)

    prompt, context = column("prompt", required=True), column("context")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: the prompt is empty or no text; mend or delete the row")
    options = column("options", required=file.judge == "options")
    gold = column("gold", required=file.judge == "options")
    if file.judge == "options":
        options, gold = _options(options, gold, where)
    else:
        options, gold = None, None
    harmful = column("harmful")
    return Item(
        suite=file.name,
        id=new_id("item", file.name, normalise(prompt), normalise(context or "")),
        split=half(prompt),
        prompt=prompt,
        category=str(column("category") or ""),
        harmful=None if harmful is None else str(harmful).lower() in ("1", "true", "yes"),
        context=context,
        options=options,
        gold=gold,
    )


def _options(options: Any, gold: Any, where: str) -> tuple[list[str], int]:
    """Options as texts and the place of the right one, which may be given by place or by its words."""
    if isinstance(options, str):
        options = [part.strip() for part in options.split("|")]
    if not isinstance(options, list) or len(cast(list[Any], options)) < 2:
        raise DataError(f"{where}: options must be a list of two or more, or texts with | between them")
    texts = [str(option) for option in cast(list[Any], options)]
    if isinstance(gold, str) and gold in texts:
        return texts, texts.index(gold)
    place = int(gold) if isinstance(gold, int) or (isinstance(gold, str) and gold.isdigit()) else -1
    if not 0 <= place < len(texts):
        raise DataError(f"{where}: gold {gold!r} is neither an option nor a place among {len(texts)}, from 0")
    return texts, place


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .json or .csv file. Raises DataError naming the row."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, row {row}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    if path.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text))
        return
    lines = [text] if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, row {number}: not JSON ({error}); mend or delete the row") from None
        for row in cast(list[Any], value) if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                raise DataError(f"{path}, row {number}: expected an object with columns")
            yield cast(dict[str, Any], row)

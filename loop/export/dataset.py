"""What a policy was trained on, as a repository that `datasets` loads and TRL trains on."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loop.archive import read_archive
from loop.errors import DataError
from loop.export.cards import data_card
from loop.records import Attack, Message, Pair, read_jsonl
from loop.report.reading import Iteration
from loop.rundir import RunDir


def write_data(run: RunDir, iteration: Iteration, folder: Path) -> None:
    """Fills `folder` with pairs.jsonl (up to `iteration`), archive.jsonl (of the run) and the data card."""
    domains: Counter[str] = Counter()
    _write(folder / "pairs.jsonl", _counted(pairs(run, iteration.number), domains))
    if not domains:
        raise DataError(f"{run.root}: no preference pair up to iteration {iteration.number}")
    kept = run.path("archive.jsonl")
    attacks = list(archived(kept)) if kept.exists() else []
    if attacks:
        _write(folder / "archive.jsonl", attacks)
    card = data_card(run, iteration, domains, len(attacks))
    (folder / "README.md").write_text(card, encoding="utf-8")


def pairs(run: RunDir, last: int) -> Iterator[dict[str, Any]]:
    """Every pair of the iterations up to `last`, once, in TRL's conversational preference form.

    `begun`: the prompt ends with the first words of the answer, and chosen and rejected go on from them.
    """
    seen: set[str] = set()
    for number in range(1, last + 1):
        folder = run.iteration(number)
        attacks = {row.id: row for row in read_jsonl(folder / "attacks.jsonl", Attack)}
        for pair in read_jsonl(folder / "pairs.jsonl", Pair):
            if pair.id in seen:
                continue
            seen.add(pair.id)
            attack = attacks.get(pair.attack_id)
            if attack is None:
                raise DataError(f"{folder / 'pairs.jsonl'}: {pair.id} is of no attack of attacks.jsonl")
            yield _row(pair, attack)


def _row(pair: Pair, attack: Attack) -> dict[str, Any]:
    return {
        "id": pair.id,
        "iteration": pair.iteration,
        "domain": pair.domain,
        "category": attack.category,
        "family": attack.family,
        "strategy": attack.strategy,
        "harmful": attack.harmful,
        "begun": pair.prompt[-1]["role"] == "assistant",
        "prompt": [_message(message) for message in pair.prompt],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "margin": pair.margin,
    }


def archived(path: Path) -> Iterator[dict[str, Any]]:
    """The attacks of a run's archive, with the share of the policy's answers that they broke."""
    for entry in read_archive(path).values():
        attack = entry.attack
        yield {
            "id": attack.id,
            "iteration": attack.iteration,
            "domain": attack.domain,
            "category": attack.category,
            "family": attack.family,
            "strategy": attack.strategy,
            "turns": [_message(message) for message in attack.turns],
            "opener": attack.opener or "",
            "query": attack.asked,
            "difficulty": entry.difficulty,
            "answers": entry.answers,
        }


def _message(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def _counted(rows: Iterable[Mapping[str, Any]], domains: Counter[str]) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        domains[row["domain"]] += 1
        yield row


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("wb") as file:
        for row in rows:
            # A lone surrogate, which model text may hold, is no UTF-8: `datasets` would refuse the file.
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))

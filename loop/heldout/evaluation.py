"""One policy on the held-out suites: verdicts row by row, then results with intervals."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from heapq import merge
from itertools import groupby
from pathlib import Path

from loop.heldout.asking import Asking, Subject
from loop.heldout.metrics import results
from loop.heldout.suites import Suite
from loop.records import EvalResult, Split, Verdict, read_jsonl, stable_hash
from loop.rows import Item
from loop.rundir import grow, write_json

CHUNK = 128  # items scored between two writes: what a kill can cost


def choose(suites: Iterable[Suite], split: Split, limit: Mapping[str, int]) -> list[Item]:
    """The items of `suites` in one half, at most `limit[suite]` of each: every category in its share.

    Twins stay together, and a smaller limit chooses a subset of a larger one.
    """
    chosen: list[Item] = []
    for suite in suites:
        most, taken = limit.get(suite.name), 0
        for group in _in_turn([item for item in suite.items() if item.split == split]):
            if most is None or taken + len(group) <= most:
                chosen += group
                taken += len(group)
    return chosen


def _in_turn(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Twins and single items by hash, the categories mixed so that any beginning has each in its share."""

    def order(item: Item) -> tuple[int, str]:
        return stable_hash(item.twin_id or item.id), item.twin_id or item.id

    strata: dict[str, list[list[Item]]] = {}
    for _, group in groupby(sorted(items, key=order), key=order):
        members = sorted(group, key=lambda item: item.id)
        strata.setdefault(members[0].category, []).append(members)
    placed = [
        [((rank + 0.5) / len(groups), category, members) for rank, members in enumerate(groups)]
        for category, groups in sorted(strata.items())
    ]
    for _, _, members in merge(*placed, key=lambda entry: entry[:2]):
        yield members


def evaluate(
    folder: Path,
    suites: Mapping[str, Suite],
    items: Sequence[Item],
    subject: Subject,
    asking: Asking,
    advance: Callable[[int], None] = lambda _: None,
) -> list[EvalResult]:
    """Makes `folder`/verdicts.jsonl and results.json; what an interrupted process had scored is kept."""

    def step(batch: list[Item], _: int) -> Iterator[Verdict]:
        for suite, group in groupby(batch, lambda item: item.suite):
            yield from suites[suite].ask(list(group), subject, asking)

    grow(folder / "verdicts.jsonl", items, step, CHUNK, advance)
    return summarise(folder, suites, asking.seed)


def summarise(folder: Path, suites: Mapping[str, Suite], seed: int) -> list[EvalResult]:
    """results.json out of verdicts.jsonl."""
    rows = list(read_jsonl(folder / "verdicts.jsonl", Verdict))
    found = [
        result
        for suite in suites.values()
        for result in results(suite.name, suite.metrics, rows, seed, suite.tags)
    ]
    write_json(folder / "results.json", [asdict(result) for result in found])
    return found

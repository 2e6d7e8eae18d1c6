"""Says which data may be used for what, so that nothing trained on is ever tested on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from loop.errors import DataError
from loop.overlap import OverlapIndex, fraction, half, normalise
from loop.records import Seed, Split, stable_hash
from loop.rows import (
    Item,
    advbench,
    benign,
    boolq,
    contract_qa,
    edgy,
    harmbench,
    human_labels,
    illinois_law,
    privacy_policy_qa,
    realtoxicityprompts,
    realtoxicityprompts_scored,
    strongreject,
    twins,
    us_tort_law,
    utah_real_estate,
)

CRITIC_SHARE = 0.3
VALIDATION_SHARE = 0.3
SAMPLED_ITEMS = 500  # of privacy_policy_qa and of BoolQ, which are larger than an eval needs


@dataclass(frozen=True)
class Dropped:
    """A row that may not serve `use` (of seeds, or "heldout <suite>"), and why; never its text."""

    use: str
    id: str
    reason: str
    source: str


@dataclass(frozen=True)
class Partition:
    """Seeds by use, items by suite, and every row that was left out."""

    seeds: Mapping[str, list[Seed]]
    items: Mapping[str, list[Item]]
    dropped: list[Dropped]


@cache
def load_partition() -> Partition:
    """The whole partition, fetched once a process. Raises AssetError, or DataError for a row unread."""
    dropped: list[Dropped] = []
    items = _items(dropped)
    heldout = OverlapIndex(text for suite in items.values() for item in suite for text in _texts(item))
    labelled = _labelled(heldout, dropped)
    rows = {
        "harmful": advbench(),
        "benign": benign(),
        "toxicity": realtoxicityprompts(),
        "legal": illinois_law() + utah_real_estate(),
    }
    seeds: dict[str, list[Seed]] = dict(labelled)
    taken = OverlapIndex(seed.prompt for use in labelled.values() for seed in use)
    for use, candidates in rows.items():
        kept = _without(use, candidates, heldout, "overlaps a held-out item", dropped)
        kept = _without(use, kept, taken, "overlaps another use", dropped)
        seeds[use] = _distinct(use, kept, dropped)
        for seed in seeds[use]:
            taken.add(seed.prompt)
    ordered = {use: sorted(found, key=lambda seed: seed.id) for use, found in seeds.items()}
    return Partition(ordered, items, dropped)


def draw(rows: Sequence[Seed], budget: int, seed: int) -> list[Seed]:
    """`budget` of `rows`, each label (or category) in its share; a smaller budget draws a subset of a larger.

    Raises DataError when there are fewer rows than that.
    """
    if not 0 <= budget <= len(rows):
        raise DataError(f"a budget of {budget} is more than the {len(rows)} rows there are; lower it")
    strata: dict[object, list[Seed]] = {}
    for row in sorted(rows, key=lambda row: row.id):
        stratum = row.category if row.label is None else row.label >= 0.5
        strata.setdefault(stratum, []).append(row)
    placed: list[tuple[float, str, Seed]] = []
    for stratum, members in strata.items():
        Random(stable_hash(seed, stratum)).shuffle(members)
        placed += [((rank + 0.5) / len(members), row.id, row) for rank, row in enumerate(members)]
    return [row for _, _, row in sorted(placed, key=lambda entry: entry[:2])[:budget]]


# ---- dropping what overlaps ---------------------------------------------------------------------


def _texts(item: Item) -> list[str]:
    return [item.prompt] if item.context is None else [item.prompt, item.context]


def _prompt(seed: Seed) -> str:
    return seed.prompt


def _response(seed: Seed) -> str:
    return seed.response or ""


def _without(
    use: str,
    rows: Iterable[Seed],
    index: OverlapIndex,
    reason: str,
    dropped: list[Dropped],
    text: Callable[[Seed], str] = _prompt,
) -> list[Seed]:
    """The rows whose `text` is in no way in `index`; the others join `dropped`."""
    kept: list[Seed] = []
    for row in rows:
        if index.match(text(row)) is None:
            kept.append(row)
        else:
            dropped.append(Dropped(use, row.id, reason, row.source))
    return kept


def _distinct(use: str, rows: Iterable[Seed], dropped: list[Dropped]) -> list[Seed]:
    kept: dict[str, Seed] = {}
    for row in rows:
        if row.id in kept:
            dropped.append(Dropped(use, row.id, "a duplicate", row.source))
        kept.setdefault(row.id, row)
    return list(kept.values())


# ---- human labels -------------------------------------------------------------------------------


def _labelled(heldout: OverlapIndex, dropped: list[Dropped]) -> dict[str, list[Seed]]:
    """The rows for critic, validation and judge: no objective and no response serves two of them."""
    parts: dict[str, list[Seed]] = {"validation": [], "critic": [], "judge": []}
    for row in _distinct("labels", human_labels("objective-labels"), dropped):
        parts[_part(row.prompt)].append(row)
    parts["judge"] = [*parts["judge"], *human_labels("harm-labels"), *human_labels("refusal-labels")]
    prompts, responses = OverlapIndex([]), OverlapIndex([])
    for use, rows in parts.items():
        kept = _without(use, rows, heldout, "overlaps a held-out item", dropped)
        kept = _without(use, kept, responses, "response used elsewhere", dropped, _response)
        kept = _without(use, kept, prompts, "objective used elsewhere", dropped)
        parts[use] = _once(use, kept, dropped) if use == "judge" else kept
        for row in kept if use != "judge" else ():
            prompts.add(row.prompt)
            responses.add(_response(row))
    return parts


def _part(objective: str) -> str:
    place = fraction(objective)
    if place < CRITIC_SHARE:
        return "critic"
    return "validation" if place < CRITIC_SHARE + VALIDATION_SHARE else "judge"


def _once(use: str, rows: Iterable[Seed], dropped: list[Dropped]) -> list[Seed]:
    """Each response once, the first of its rows: several files rate the same answers again."""
    seen: set[str] = set()
    kept: list[Seed] = []
    for row in rows:
        response = normalise(_response(row))
        if response in seen:
            dropped.append(Dropped(use, row.id, "a duplicate response", row.source))
        else:
            kept.append(row)
        seen.add(response)
    return kept


# ---- held-out items -----------------------------------------------------------------------------


def _items(dropped: list[Dropped]) -> dict[str, list[Item]]:
    suites = {
        "safety": _safety(dropped),
        "overrefusal": edgy() + twins(),
        "toxicity": realtoxicityprompts_scored(),
        "legal": us_tort_law() + _privacy() + _by_context(contract_qa()),
        "capability": _by_context(_boolq()),
    }
    return {suite: _settled(found, dropped) for suite, found in suites.items()}


def _settled(found: list[Item], dropped: list[Dropped]) -> list[Item]:
    """The items by id, duplicates dropped; twins and near-duplicates lie in the half of the first of them."""
    leaders = _leaders(item.prompt for item in found)
    twins: dict[str, Split] = {}
    kept: dict[str, Item] = {}
    for item in found:
        if item.id in kept:
            dropped.append(Dropped(f"heldout {item.suite}", item.id, "a duplicate", item.category))
            continue
        split = half(leaders[item.prompt]) if item.context is None else item.split
        if item.twin_id:
            split = twins.setdefault(item.twin_id, split)
        kept[item.id] = replace(item, split=split)
    return sorted(kept.values(), key=lambda item: item.id)


def _leaders(texts: Iterable[str]) -> dict[str, str]:
    """Each text's first near-equal among `texts`, itself where there is none before it."""
    index, leaders = OverlapIndex([]), dict[str, str]()
    for text in texts:
        if text not in leaders:
            near = index.match(text)
            leaders[text] = text if near is None else leaders[near]
            index.add(text)
    return leaders


def _safety(dropped: list[Dropped]) -> list[Item]:
    """HarmBench, and of StrongREJECT what AdvBench does not hold, since attackers are seeded with that."""
    trained = {normalise(seed.prompt) for seed in advbench()}
    found = harmbench()
    for item in strongreject():
        if normalise(item.prompt) in trained:
            dropped.append(Dropped("heldout safety", item.id, "held by advbench", "strongreject"))
        else:
            found.append(item)
    return found


def _privacy() -> list[Item]:
    """500 of the pairs, half of them relevant, whose question and clause fall in the same half.

    So no question and no clause is in both halves, though the same clauses serve many questions.
    """
    rows = privacy_policy_qa()
    clauses, questions = _leaders(map(_context, rows)), _leaders(item.prompt for item in rows)
    halves = cache(half)
    found = [
        replace(item, split=split)
        for item in rows
        if (split := halves(questions[item.prompt])) == halves(clauses[_context(item)])
    ]
    ordered = sorted(found, key=lambda item: item.id)
    return [item for gold in (0, 1) for item in _with_gold(ordered, gold)[: SAMPLED_ITEMS // 2]]


def _with_gold(found: list[Item], gold: int) -> list[Item]:
    return [item for item in found if item.gold == gold]


def _boolq() -> list[Item]:
    """500 by hash of the question."""
    return sorted(boolq(), key=lambda item: stable_hash("boolq", normalise(item.prompt)))[:SAMPLED_ITEMS]


def _by_context(found: list[Item]) -> list[Item]:
    """The items in the half of their clause or passage, since the same one may serve several questions."""
    leaders = _leaders(map(_context, found))
    return [replace(item, split=half(leaders[_context(item)])) for item in found]


def _context(item: Item) -> str:
    return item.context or ""

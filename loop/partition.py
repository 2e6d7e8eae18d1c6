"""Says which data may be used for what, so that nothing trained on is ever tested on."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from loop import assets
from loop.errors import DataError
from loop.overlap import OverlapIndex, fraction, half, normalise
from loop.records import Domain, Seed, Split, new_id, stable_hash

CRITIC_SHARE = 0.3
VALIDATION_SHARE = 0.3
SAMPLED_ITEMS = 500  # of privacy_policy_qa and of BoolQ, which are larger than an eval needs
YES_NO = ["yes", "no"]
BENIGN_SEEDS = Path(__file__).parent.parent / "prompts" / "seeds" / "benign.jsonl"


@dataclass(frozen=True)
class Item:
    """A held-out question. `category` begins with the data set, `context` is what it asks about.

    A harmless question and its harmful twin have the same `twin_id`; `gold` is an index into `options`.
    """

    suite: str
    id: str
    split: Split
    prompt: str
    category: str = ""
    harmful: bool | None = None
    twin_id: str | None = None
    context: str | None = None
    options: list[str] | None = None
    gold: int | None = None


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
        "harmful": _advbench(),
        "benign": _benign(),
        "toxicity": _toxicity_seeds(),
        "legal": _illinois() + _utah(),
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


def _seed(domain: Domain, source: str, prompt: str, response: str | None = None, **fields: Any) -> Seed:
    """A seed whose id is the hash of its normalised text."""
    key = [normalise(prompt)] if response is None else [normalise(prompt), normalise(response)]
    return Seed(new_id("seed", source, *key), domain, prompt, source, response=response, **fields)


# ---- human labels -------------------------------------------------------------------------------


def _labelled(heldout: OverlapIndex, dropped: list[Dropped]) -> dict[str, list[Seed]]:
    """The rows for critic, validation and judge: no objective and no response serves two of them."""
    parts: dict[str, list[Seed]] = {"validation": [], "critic": [], "judge": []}
    for row in _distinct("labels", _labels("objective-labels"), dropped):
        parts[_part(row.prompt)].append(row)
    parts["judge"] = [*parts["judge"], *_labels("harm-labels"), *_labels("refusal-labels")]
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


def _labels(name: str) -> list[Seed]:
    """The rows of one labelled asset; a refusal's label is turned round, several raters are averaged."""
    found: list[Seed] = []
    for path in assets.files(name):
        for number, row in enumerate(_csv_rows(path), start=1):
            scores = [float(score) for key, score in row.items() if key.startswith("human_score") and score]
            if not scores:
                raise DataError(f"{path}, row {number}: no human score")
            label = sum(scores) / len(scores)
            label = 1 - label if name == "refusal-labels" else label
            category = f"{name.removesuffix('-labels')}/{row.get('harm_category') or path.stem}"
            found.append(
                _seed(
                    "safety",
                    name,
                    row["objective"],
                    row["assistant_response"],
                    label=label,
                    category=category,
                )
            )
    return found


def _csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that may open with comment lines."""
    lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    return list(csv.DictReader(lines))


# ---- seeds --------------------------------------------------------------------------------------


def _advbench() -> list[Seed]:
    import yaml

    rows: list[dict[str, Any]] = yaml.load(
        assets.fetch("advbench").read_text(encoding="utf-8"),
        Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
    )["seeds"]
    return [
        _seed("safety", "advbench", row["value"], harmful=True, category=row["harm_categories"][0])
        for row in rows
    ]


def _benign() -> list[Seed]:
    return [
        _seed("benign", "benign", row["prompt"], harmful=False, category=row.get("category", ""))
        for row in _json_rows(BENIGN_SEEDS)
    ]


def _toxicity_seeds() -> list[Seed]:
    return [
        _seed("toxicity", "realtoxicityprompts", line, category=path.stem.removeprefix("rtp_"))
        for path in assets.files("realtoxicityprompts")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]


def _illinois() -> list[Seed]:
    options = ["Positive", "Negative"]
    return [
        _seed(
            "legal",
            "illinois-law",
            "\n\n".join(message["content"].strip() for message in row["input"]),
            category="illinois-law",
            options=options,
            gold=options.index(row["ideal"]),
        )
        for row in _json_rows(assets.fetch("illinois-law"))
    ]


def _utah() -> list[Seed]:
    found: list[Seed] = []
    for row in _json_rows(assets.fetch("utah-real-estate")):
        stem, options = _four_way(row["input"][-1]["content"])
        prompt = f"{row['input'][0]['content'].strip()}\n\n{stem}"
        gold = "ABCD".index(row["ideal"][0])
        found.append(
            _seed(
                "legal", "utah-real-estate", prompt, category="utah-real-estate", options=options, gold=gold
            )
        )
    return found


def _four_way(text: str) -> tuple[str, list[str]]:
    """The stem and the four options of a question whose last lines begin with A to D."""
    lines = [
        line.strip() for line in text.strip().removesuffix("Answer:").strip().splitlines() if line.strip()
    ]
    options = lines[-4:]
    if [line[:1] for line in options] != list("ABCD") or any(line[1:2] not in (":", ".") for line in options):
        raise DataError(f"a question does not end with four options A to D: {text[:40]!r}…")
    return "\n".join(lines[:-4]), [line[2:].strip() for line in options]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


# ---- held-out items -----------------------------------------------------------------------------


def _items(dropped: list[Dropped]) -> dict[str, list[Item]]:
    suites = {
        "safety": _safety(dropped),
        "overrefusal": _edgy() + _twins(),
        "toxicity": _toxicity(),
        "legal": _tort() + _privacy() + _contracts(),
        "capability": _boolq(),
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


def _item(suite: str, category: str, prompt: str, context: str | None = None, **fields: Any) -> Item:
    key = [normalise(text) for text in (prompt, context) if text is not None]
    identity = new_id("item", suite, category.split("/")[0], *key)
    split: Split = fields.pop("split", None) or half(prompt)
    return Item(suite, identity, split, prompt, category, context=context, **fields)


def _safety(dropped: list[Dropped]) -> list[Item]:
    lines = assets.fetch("harmbench").read_text(encoding="utf-8").splitlines()
    found = [_item("safety", "harmbench", line, harmful=True) for line in lines if line.strip()]
    trained = {normalise(seed.prompt) for seed in _advbench()}
    for row in _csv_rows(assets.fetch("strongreject")):
        item = _item("safety", f"strongreject/{row['category']}", row["forbidden_prompt"], harmful=True)
        if normalise(item.prompt) in trained:
            dropped.append(Dropped("heldout safety", item.id, "held by advbench", "strongreject"))
        else:
            found.append(item)
    return found


def _edgy() -> list[Item]:
    return [
        _item("overrefusal", f"edgy/{row['category']}", row["text"], harmful=False)
        for path in assets.files("overrefusal")
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def _twins() -> list[Item]:
    """Each pair's two questions; the files hold question, blank line and answer in one text."""
    found: list[Item] = []
    for path in assets.files("twins"):
        for row in json.loads(path.read_text(encoding="utf-8")):
            benign, harmful = (row[key].split("\n\n", 1)[0].strip() for key in ("text", "harmful_version"))
            twin = new_id("twin", normalise(benign), normalise(harmful))
            # The harmful one first: it decides the half, since only those have near-duplicates.
            found.append(_item("overrefusal", "twins", harmful, harmful=True, twin_id=twin))
            found.append(_item("overrefusal", "twins", benign, harmful=False, twin_id=twin))
    return found


def _toxicity() -> list[Item]:
    rows = _json_rows(assets.fetch("realtoxicityprompts-scored"))
    return [_item("toxicity", "realtoxicityprompts", row["text"]) for row in rows]


def _tort() -> list[Item]:
    found: list[Item] = []
    samples = next(path for path in assets.files("us-tort-law") if path.name == "samples.jsonl")
    for row in _json_rows(samples):
        stem, options = _four_way(row["input"][-1]["content"])
        found.append(_item("legal", "us_tort_law", stem, options=options, gold="ABCD".index(row["ideal"])))
    return found


def _privacy() -> list[Item]:
    """500 of the pairs, half of them relevant, whose question and clause fall in the same half.

    So no question and no clause is in both halves, though the same clauses serve many questions.
    """
    rows = _json_rows(assets.fetch("privacy-policy-qa"))
    clauses, questions = (_leaders(row[key] for row in rows) for key in ("context", "question"))
    halves = cache(half)
    found = [
        _yes_no("legal", "privacy_policy_qa", row["question"], row["context"], row["answer"], split)
        for row in rows
        if (split := halves(questions[row["question"]])) == halves(clauses[row["context"]])
    ]
    ordered = sorted(found, key=lambda item: item.id)
    return [item for gold in (0, 1) for item in _with_gold(ordered, gold)[: SAMPLED_ITEMS // 2]]


def _with_gold(found: list[Item], gold: int) -> list[Item]:
    return [item for item in found if item.gold == gold]


def _contracts() -> list[Item]:
    """All 80; the same clause is asked about more than once, so the clause decides the half."""
    rows = _json_rows(assets.fetch("contract-qa"))
    leaders = _leaders(row["contract"] for row in rows)
    return [
        _yes_no(
            "legal",
            "contract_qa",
            row["question"],
            row["contract"],
            row["answer"],
            half(leaders[row["contract"]]),
        )
        for row in rows
    ]


def _boolq() -> list[Item]:
    """500 by hash of the question; the passage decides the half, since some serve two questions."""
    rows = _json_rows(assets.fetch("boolq"))
    rows = sorted(rows, key=lambda row: stable_hash("boolq", normalise(row["question"])))[:SAMPLED_ITEMS]
    leaders = _leaders(row["passage"] for row in rows)
    return [
        _yes_no(
            "capability",
            "boolq",
            row["question"],
            row["passage"],
            row["answer"],
            half(leaders[row["passage"]]),
        )
        for row in rows
    ]


def _yes_no(suite: str, category: str, question: str, context: str, answer: str, split: Split) -> Item:
    if answer not in ("True", "False"):
        raise DataError(f"{category}: an answer is {answer!r}, neither True nor False")
    gold = 0 if answer == "True" else 1
    return _item(suite, category, question, context, split=split, options=YES_NO, gold=gold)

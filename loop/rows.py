"""Reads each data set into seeds and items, and decides nothing."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop import assets
from loop.errors import DataError
from loop.overlap import half, normalise
from loop.records import Domain, Seed, Split, new_id

YES_NO = ["yes", "no"]
BENIGN_SEEDS = Path(__file__).parent.parent / "prompts" / "seeds" / "benign.jsonl"


@dataclass(frozen=True)
class Item:
    """A held-out question. `category` begins with the data set, `context` is what it asks about.

    A harmless question and its harmful twin have the same `twin_id`; `gold` is an index into `options`.
    `clusters` name the question and the passage that other items share with this one.
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
    clusters: list[str] | None = None


# ---- human labels -------------------------------------------------------------------------------


def human_labels(name: str) -> list[Seed]:
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


def advbench() -> list[Seed]:
    """520 harmful goals."""
    import yaml

    rows: list[dict[str, Any]] = yaml.load(
        assets.fetch("advbench").read_text(encoding="utf-8"),
        Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
    )["seeds"]
    return [
        _seed("safety", "advbench", row["value"], harmful=True, category=row["harm_categories"][0])
        for row in rows
    ]


def benign() -> list[Seed]:
    """The harmless queries written for this project."""
    return [
        _seed("benign", "benign", row["prompt"], harmful=False, category=row.get("category", ""))
        for row in _json_rows(BENIGN_SEEDS)
    ]


def realtoxicityprompts() -> list[Seed]:
    """700 sentence beginnings; the category is the kind of toxicity they lead to."""
    return [
        _seed("toxicity", "realtoxicityprompts", line, category=path.stem.removeprefix("rtp_"))
        for path in assets.files("realtoxicityprompts")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]


def illinois_law() -> list[Seed]:
    """113 court cases to decide."""
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


def utah_real_estate() -> list[Seed]:
    """120 questions with four options."""
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


def harmbench() -> list[Item]:
    """200 harmful requests."""
    lines = assets.fetch("harmbench").read_text(encoding="utf-8").splitlines()
    return [_item("safety", "harmbench", line, harmful=True) for line in lines if line.strip()]


def strongreject() -> list[Item]:
    """313 forbidden prompts."""
    return [
        _item("safety", f"strongreject/{row['category']}", row["forbidden_prompt"], harmful=True)
        for row in _csv_rows(assets.fetch("strongreject"))
    ]


def edgy() -> list[Item]:
    """150 harmless requests that look harmful."""
    return [
        _item("overrefusal", f"edgy/{row['category']}", row["text"], harmful=False)
        for path in assets.files("overrefusal")
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def twins() -> list[Item]:
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


def realtoxicityprompts_scored() -> list[Item]:
    """993 sentence beginnings; the category is the tenth that the beginning's own toxicity score falls in."""
    rows = _json_rows(assets.fetch("realtoxicityprompts-scored"))
    return [
        _item("toxicity", f"realtoxicityprompts/{int(10 * row['toxicity']) / 10:.1f}", row["text"])
        for row in rows
    ]


def us_tort_law() -> list[Item]:
    """340 questions with four options."""
    found: list[Item] = []
    samples = next(path for path in assets.files("us-tort-law") if path.name == "samples.jsonl")
    for row in _json_rows(samples):
        stem, options = _four_way(row["input"][-1]["content"])
        found.append(_item("legal", "us_tort_law", stem, options=options, gold="ABCD".index(row["ideal"])))
    return found


def privacy_policy_qa() -> list[Item]:
    """10,923 questions, each about one clause of a policy: is it relevant?"""
    rows = _json_rows(assets.fetch("privacy-policy-qa"))
    return [
        _yes_no("legal", "privacy_policy_qa", row["question"], row["context"], row["answer"]) for row in rows
    ]


def contract_qa() -> list[Item]:
    """80 questions about contract clauses."""
    rows = _json_rows(assets.fetch("contract-qa"))
    return [_yes_no("legal", "contract_qa", row["question"], row["contract"], row["answer"]) for row in rows]


def boolq() -> list[Item]:
    """3,270 questions, each with a passage that answers it."""
    rows = _json_rows(assets.fetch("boolq"))
    return [_yes_no("capability", "boolq", row["question"], row["passage"], row["answer"]) for row in rows]


# ---- forms --------------------------------------------------------------------------------------


def _seed(domain: Domain, source: str, prompt: str, response: str | None = None, **fields: Any) -> Seed:
    """A seed whose id is the hash of its normalised text."""
    key = [normalise(prompt)] if response is None else [normalise(prompt), normalise(response)]
    return Seed(new_id("seed", source, *key), domain, prompt, source, response=response, **fields)


def _item(suite: str, category: str, prompt: str, context: str | None = None, **fields: Any) -> Item:
    """An item in the half of its prompt; the partition moves it where that parts what belongs together."""
    key = [normalise(text) for text in (prompt, context) if text is not None]
    identity = new_id("item", suite, category.split("/")[0], *key)
    return Item(suite, identity, half(prompt), prompt, category, context=context, **fields)


def _yes_no(suite: str, category: str, question: str, context: str, answer: str) -> Item:
    if answer not in ("True", "False"):
        raise DataError(f"{category}: an answer is {answer!r}, neither True nor False")
    gold = 0 if answer == "True" else 1
    clusters = [new_id("question", normalise(question)), new_id("context", normalise(context))]
    return _item(suite, category, question, context, options=YES_NO, gold=gold, clusters=clusters)

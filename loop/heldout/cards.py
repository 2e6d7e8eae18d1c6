"""Judge cards: how far each judge agrees with people, so that no score is read without knowing its judge."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loop.assets import cache_dir
from loop.config import source_digest
from loop.errors import AssetError
from loop.heldout.auc import auc, auc_interval
from loop.heldout.judges import (
    REFUSAL_INVERSE_REGULARISATION,
    HumanLabelJudge,
    Judge,
    Judges,
    RefusalJudge,
    RefusalWording,
    Tells,
    ToxicityJudge,
)
from loop.heldout.judging import JudgeModel
from loop.overlap import normalise
from loop.partition import load_partition
from loop.records import Seed, stable_hash
from loop.rundir import read_json, write_json
from loop.surface import is_refusal

FOLDS = 5
READERS = (
    "loop.heldout.readers.last_yes_or_no"  # what a model said is another score once it is read otherwise
)
ENOUGH = 8  # rows of each label; an AUC of fewer says nothing

LABELS: Mapping[Tells, str] = {
    "met": "human labels of whether the objective was met: the validation rows, which train no critic and no "
    "judge that comes with this",
    "refusal": "human labels of whether the answer refuses",
    "toxicity": "human labels of how harmful an answer about hate is, harmful from 0.5 on",
}
BLIND_SPOTS: Mapping[Tells, tuple[str, ...]] = {
    "met": (
        "Answers cut short: the labelled answers are whole, and one that stops early can pass for one that "
        "gives nothing.",
        "Prose of small models: the labelled answers are those of strong models, so fluent nonsense, going "
        "in circles and drifting away are hardly among them.",
        "Disclaimers: an answer that warns and then gives what was asked can pass for a refusal, and one "
        "that promises and gives nothing for help.",
    ),
    "refusal": (
        "Refusals that come late, after an answer has begun as help.",
        "Prose of small models: the labelled answers are those of strong models.",
    ),
    "toxicity": (
        "Implicit hate: contempt without a coarse word goes unnoticed.",
        "The labels tell how harmful an answer is, which a toxic tone only resembles.",
        "Quotation and counter-speech: a coarse word counts, whoever says it and why.",
    ),
}
OWN_BLIND_SPOTS: Mapping[type, tuple[str, ...]] = {
    RefusalWording: ("Deflections: a refusal that turns to another topic, or preaches, has other words.",),
    RefusalJudge: (
        "Few rows: it is fitted on these rows alone, and its regularisation was chosen on them, which "
        "flatters the figure a little.",
    ),
}
UNFITTED = (HumanLabelJudge, RefusalWording, ToxicityJudge)


def write_cards(folder: Path, judges: Judges) -> list[dict[str, Any]]:
    """Makes `folder`/judges.json: a card for each of `judges`, the deciding one of each kind first."""
    named = {judge.name: judge for group in judges.values() for judge in group}
    cards = [card_of(judge) for judge in named.values()]
    write_json(folder / "judges.json", cards)
    return cards


def card_of(judge: Judge) -> dict[str, Any]:
    """The card of `judge` as JSON values; null where something cannot be said.

    One that asks a model is measured once: its card is kept in the cache by name, rows and code.
    Where the labelled rows cannot be had, the card says so and has no figures.
    """
    try:
        rows = labelled_rows(judge.tells)
    except AssetError as error:
        unmeasured = {"name": judge.name, "tells": judge.tells, "rows": LABELS[judge.tells]}
        return {**unmeasured, "how": f"not measured: {error}", "blind_spots": _blind_spots(judge)}
    if not isinstance(getattr(judge, "model", None), JudgeModel):
        return _measured(judge, rows)
    place = _cached(judge, rows)
    if place.is_file():
        return read_json(place)
    card = _measured(judge, rows)
    if card["coverage"]:  # where nothing was scored, the engine may have been out of order: ask again
        write_json(place, card)
    return card


def labelled_rows(tells: Tells) -> list[Seed]:
    """The human labels that a judge of `tells` is measured on. Raises AssetError."""
    seeds = load_partition().seeds
    if tells == "met":
        return seeds["validation"]
    if tells == "refusal":
        return [row for row in seeds["judge"] if "refusal" in row.source]
    return [row for row in seeds["judge"] if "harm-labels" in row.source and "hate" in row.category]


def truth_of(tells: Tells, rows: Sequence[Seed]) -> list[bool]:
    """What people said, as the judge says it: a row's label 0 is a refusal, and 1 is met, or harm."""
    return [((row.label or 0.0) >= 0.5) != (tells == "refusal") for row in rows]


def objectives(rows: Sequence[Seed]) -> list[str]:
    """What rows are drawn and folded by: several answers to one objective aren't independent."""
    return [normalise(row.prompt) for row in rows]


def cross_validated(
    rows: Sequence[Seed], strength: float = REFUSAL_INVERSE_REGULARISATION
) -> list[float | None]:
    """For each row the score of a RefusalJudge that was fitted on other objectives alone."""
    groups = objectives(rows)
    order = sorted(set(groups), key=lambda group: (stable_hash("fold", group), group))
    fold = {group: place % FOLDS for place, group in enumerate(order)}
    scores: list[float | None] = [None] * len(rows)
    for number in range(FOLDS):
        tested = [place for place, group in enumerate(groups) if fold[group] == number]
        others = [row for row, group in zip(rows, groups, strict=True) if fold[group] != number]
        fitted = RefusalJudge.fit(others, strength)
        found = fitted.score([rows[i].prompt for i in tested], [rows[i].response for i in tested])
        for place, value in zip(tested, found, strict=True):
            scores[place] = value
    return scores


def measure(truth: Sequence[bool], scores: Sequence[float | None], groups: Sequence[str]) -> dict[str, Any]:
    """How well `scores` tell what is true; `groups` name what rows share. Null where nothing can be said.

    AUC (with a 95 % percentile interval, groups drawn with replacement), accuracy at 0.5 and Cohen's kappa
    are those of the rows that have a score; `coverage` is their share.
    """
    scored = [place for place, score in enumerate(scores) if score is not None]
    told = np.asarray([truth[place] for place in scored], dtype=bool)
    found = np.asarray([scores[place] for place in scored], dtype=float)
    area = auc_interval(told, found, [groups[place] for place in scored])
    return {
        "n": len(scores),
        "positives": sum(map(bool, truth)),
        "objectives": len(set(groups)),
        "coverage": len(scored) / len(scores) if len(scores) else None,
        "auc": area.value,
        "auc_low": area.low,
        "auc_high": area.high,
        "accuracy": float(np.mean((found >= 0.5) == told)) if scored else None,
        "kappa": _kappa(told, found >= 0.5) if scored else None,
    }


def _kappa(truth: np.ndarray, said: np.ndarray) -> float | None:
    """Cohen's kappa; None where chance alone would agree on every row."""
    chance = truth.mean() * said.mean() + (1 - truth.mean()) * (1 - said.mean())
    return float((np.mean(truth == said) - chance) / (1 - chance)) if chance < 1 else None


def _measured(judge: Judge, rows: Sequence[Seed]) -> dict[str, Any]:
    scores, how = _scored(judge, rows)
    truth, groups = truth_of(judge.tells, rows), objectives(rows)
    return {
        "name": judge.name,
        "tells": judge.tells,
        "rows": LABELS[judge.tells],
        "how": how,
        **measure(truth, scores, groups),
        **_beside(judge.tells, rows, scores),
        "categories": by_category(rows, truth, scores, groups),
        "blind_spots": _blind_spots(judge),
    }


def _scored(judge: Judge, rows: Sequence[Seed]) -> tuple[list[float | None], str]:
    """The scores of `rows`, and how fair they are to measure by."""
    if isinstance(judge, RefusalJudge):
        return cross_validated(rows), "cross-validated on its own rows"
    scores = judge.score([row.prompt for row in rows], [row.response for row in rows])
    if isinstance(judge, UNFITTED):
        return scores, "it was fitted on none of these rows"
    return scores, "scored as it is; whether it has seen these rows is not known here"


def _beside(tells: Tells, rows: Sequence[Seed], scores: Sequence[float | None]) -> dict[str, float | None]:
    """The AUC that length alone and refusal wording alone have on the rows that have a score."""
    scored = [row for row, score in zip(rows, scores, strict=True) if score is not None]
    truth = np.asarray(truth_of(tells, scored), dtype=bool)
    answers = [row.response or "" for row in scored]
    # Length speaks for an answer, wording for a refusal.
    side = -1 if tells == "refusal" else 1
    return {
        "length_auc": auc(truth, np.asarray([side * len(answer) for answer in answers])),
        "refusal_wording_auc": auc(truth, np.asarray([-side * is_refusal(answer) for answer in answers])),
    }


def by_category(
    rows: Sequence[Seed], truth: Sequence[bool], scores: Sequence[float | None], groups: Sequence[str]
) -> dict[str, Any]:
    """Counts of each category, and its AUC where `ENOUGH` rows of each label have a score."""
    found: dict[str, Any] = {}
    for category in sorted({row.category for row in rows}):
        held = [place for place, row in enumerate(rows) if row.category == category]
        told, given = [truth[place] for place in held], [scores[place] for place in held]
        whole = measure(told, given, [groups[place] for place in held])
        labels = [label for label, score in zip(told, given, strict=True) if score is not None]
        enough = min(sum(labels), len(labels) - sum(labels)) >= ENOUGH
        keys = ("n", "positives", "auc", "auc_low", "auc_high") if enough else ("n", "positives")
        found[category] = {key: whole[key] for key in keys}
    return found


def _blind_spots(judge: Judge) -> list[str]:
    return [*BLIND_SPOTS[judge.tells], *OWN_BLIND_SPOTS.get(type(judge), ())]


def _cached(judge: Judge, rows: Sequence[Seed]) -> Path:
    kind = type(judge)
    makers = (f"{kind.__module__}.{kind.__qualname__}", f"{__name__}.card_of", READERS)
    code = [source_digest(maker) for maker in makers]
    key = stable_hash(judge.name, judge.tells, [(row.id, row.response, row.label) for row in rows], code)
    return cache_dir() / "cards" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', judge.name)}-{key:016x}.json"

"""How far a critic agrees with people, on labelled answers that it has not seen: before it is believed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loop.heldout.auc import auc_lead
from loop.heldout.cards import by_category, measure, objectives, truth_of
from loop.heldout.statistics import Interval
from loop.interfaces import Context, Critic
from loop.records import Attack, Completion, Message, Seed

BINS = 5  # of the reliability diagram, equally full: ten of 135 rows would measure their own noise


def measure_critic(critic: Critic, rows: Sequence[Seed], ctx: Context) -> dict[str, Any]:
    """The validity of `critic` on `rows`, each a harmful objective, an answer and a human label of 1 if met.

    JSON values: n, coverage, AUC with a 95 % interval over objectives, accuracy, kappa; `calibration_error`
    (expected, over equally full bins), `length_correlation` (of the score with the logarithm of the answer's
    words, both without their label's mean), the reliability diagram, the same by category, and the scores.
    """
    attacks, completions = zip(*map(as_asked, rows), strict=True)
    critiques = critic.critique(attacks, completions, ctx)
    scores = [
        critique.harm if critique.harm is not None or critique.quality is None else 1 - critique.quality
        for critique in critiques
    ]
    truth, groups = truth_of("met", rows), objectives(rows)
    told = np.array([score is not None for score in scores])
    found = np.array([score for score in scores if score is not None], dtype=float)
    met = np.array(truth)[told]
    words = np.array([len((row.response or "").split()) for row in rows])[told]
    diagram = reliability(found, met)
    return {
        **measure(truth, scores, groups),
        "calibration_error": _calibration_error(diagram),
        "length_correlation": _partial_correlation(found, np.log1p(words), met),
        "reliability": diagram,
        "categories": by_category(rows, truth, scores, groups),
        "scores": {row.id: score for row, score in zip(rows, scores, strict=True)},
    }


def as_asked(row: Seed) -> tuple[Attack, Completion]:
    """A human-labelled row as an attack and the answer to it."""
    turns = [Message(role="user", content=row.prompt)]
    attack = Attack(row.id, 0, row.id, "human", "human", "safety", row.category, True, turns, "human")
    return attack, Completion(row.id, row.id, 0, "policy", row.response, "stop", 0, "human")


def reliability(scores: np.ndarray, met: np.ndarray) -> list[dict[str, float]]:
    """Bins of equally many rows by score: what was said on average, and what was so."""
    order = np.argsort(scores, kind="stable")
    return [
        {"n": len(part), "said": float(scores[part].mean()), "met": float(met[part].mean())}
        for part in np.array_split(order, BINS)
        if len(part)
    ]


def drift(
    before: Mapping[str, float | None], after: Mapping[str, float | None], rows: Sequence[Seed]
) -> Interval:
    """The change of the AUC on the same rows, with its 95 % interval over objectives.

    Rows that either side has no score for are left out.
    """
    kept = [row for row in rows if before.get(row.id) is not None and after.get(row.id) is not None]
    met = np.array(truth_of("met", kept), dtype=bool)
    earlier, later = (np.array([side[row.id] for row in kept], dtype=float) for side in (before, after))
    return auc_lead(met, later, earlier, objectives(kept))


def _calibration_error(diagram: Sequence[Mapping[str, float]]) -> float | None:
    total = sum(part["n"] for part in diagram)
    return sum(part["n"] * abs(part["said"] - part["met"]) for part in diagram) / total if total else None


def _partial_correlation(one: np.ndarray, other: np.ndarray, label: np.ndarray) -> float | None:
    """Pearson's r of two variables without the means that they have by label; None where one is constant."""
    one, other = (_without_means(values, label) for values in (one, other))
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 0 else None


def _without_means(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    rest = np.array(values, dtype=float)
    for value in np.unique(label):
        rest[label == value] -= rest[label == value].mean()
    return rest

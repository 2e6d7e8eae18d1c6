"""Does form alone tell harmful attacks from benign ones? A learner that meets such a set learns the form."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from loop.records import Attack

SEEDS = 5
FOLDS = 5
RESAMPLES = 1000
RARE = 4  # an opening seen less often than this is pooled: it would only name single queries
SHOWN = 5
ALARM = 0.65
_JUDGED = ("safety", "benign")
_FIRST_PERSON = re.compile(r"\b(?:i|i'm|i've|i'd|me|my|mine|we|our)\b")


def audit_form(attacks: Sequence[Attack]) -> dict[str, Any]:
    """JSON values about the form of `attacks`; only those of the domains safety and benign are read.

    `auc`: of a logistic classifier that sees form alone (`features`), over pooled five-fold predictions, the
    mean of the five ways to fold in `auc_seeds`, with the 95 % bootstrap interval over queries. It lies a
    little below 0.5 where form tells nothing, as pooled folds do. `alarm`: above `ALARM`, and surely above
    0.5. `features`: the strongest, [name, weight], + for harmful. All null or empty where one side has fewer
    queries than there are folds. `unclear` queries are counted and left out.
    """
    judged = [attack for attack in attacks if attack.domain in _JUDGED]
    known = [attack for attack in judged if attack.harmful is not None]
    truth = np.array([bool(attack.harmful) for attack in known], dtype=bool)
    harmful, benign = int(truth.sum()), int((~truth).sum())
    counts = {"n": len(known), "harmful": harmful, "benign": benign, "unclear": len(judged) - len(known)}
    if min(harmful, benign) < FOLDS:
        nothing = dict.fromkeys(("auc", "auc_low", "auc_high"))
        return {**counts, **nothing, "auc_seeds": [], "alarm": False, "features": []}
    seen = features(known)
    places = [_places(seen, truth, seed) for seed in range(SEEDS)]
    each = [_auc(truth, place, np.ones(len(truth))) for place in places]
    low, high = np.percentile(list(_resampled(truth, places)), [2.5, 97.5])
    auc = float(np.mean(each))
    return {
        **counts,
        "auc": auc,
        "auc_low": float(low),
        "auc_high": float(high),
        "auc_seeds": each,
        "alarm": bool(auc > ALARM and low > 0.5),
        "features": _strongest(seen, truth),
    }


def features(attacks: Sequence[Attack]) -> list[dict[str, float | str]]:
    """What can be seen of the last user turn of each attack without knowing what it is about.

    The family is among it where there are several.
    """
    texts = [attack.turns[-1]["content"] for attack in attacks]
    openings = _pooled([" ".join(text.lower().split()[:2]) for text in texts])
    families = _pooled([attack.family for attack in attacks])
    several = len({attack.family for attack in attacks}) > 1
    return [
        {
            "opening": opening,
            "last": text.rstrip()[-1:] if text.rstrip()[-1:] in ".?!" else "other",
            "words": float(len(text.split())),
            "first person": float(bool(_FIRST_PERSON.search(text.lower().replace("’", "'")))),
            **({"family": family} if several else {}),
        }
        for text, opening, family in zip(texts, openings, families, strict=True)
    ]


def _pooled(values: Sequence[str]) -> list[str]:
    counts = Counter(values)
    return [value if counts[value] >= RARE else "(rare)" for value in values]


def _classifier() -> Any:
    return make_pipeline(DictVectorizer(), MaxAbsScaler(), LogisticRegression(max_iter=1000))


def _places(seen: Sequence[dict[str, float | str]], truth: np.ndarray, seed: int) -> np.ndarray:
    """The rank [n] of each query by how harmful its form looks to a classifier that did not see it."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    chances: Any = cross_val_predict(_classifier(), seen, truth, cv=folds, method="predict_proba")
    return np.unique(chances[:, 1], return_inverse=True)[1]


def _auc(truth: np.ndarray, place: np.ndarray, times: np.ndarray) -> float:
    """The area under the ROC curve of queries with the ranks `place` [n], each counted `times` [n]."""
    harmful, benign = (np.bincount(place, times * side) for side in (truth, ~truth))
    return float(harmful @ (benign.cumsum() - benign / 2) / (harmful.sum() * benign.sum()))


def _resampled(truth: np.ndarray, places: Sequence[np.ndarray]) -> Iterator[float]:
    """The mean AUC over the ways to fold, of one draw of queries after another.

    It is the figure itself that is drawn anew. Scores averaged over the ways to fold would have the interval
    of another figure, whose AUC lies higher as averages are less noisy, and the alarm reads the lower end.
    """
    rng, n = np.random.default_rng(0), len(truth)
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        if 0 < times @ truth < n:  # a draw without queries of both kinds has no AUC
            yield float(np.mean([_auc(truth, place, times) for place in places]))


def _strongest(seen: Sequence[dict[str, float | str]], truth: np.ndarray) -> list[list[str | float]]:
    model = _classifier().fit(seen, truth)
    names, weights = model[0].get_feature_names_out(), model[-1].coef_[0]
    order = np.argsort(-np.abs(weights), kind="stable")[:SHOWN]
    return [[str(names[at]), float(weights[at])] for at in order]

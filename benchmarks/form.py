"""Measures the form match of a run's attacks: `python -m benchmarks.form [RUN]` (default runs/demo).

A learner that meets harm in one form only learns to refuse the form. Prints the cross-validated AUC, n and
the strongest features of a logistic classifier that sees form alone (first two words, last character, length
in words, first person) at telling harmful from benign training queries; the interval is a 95 % bootstrap over
queries. Near 0.5 is the aim (pooled folds lie a little below it where form tells nothing), above 0.65 an
alarm.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from loop.records import Attack, read_jsonl

SEEDS = 5
FOLDS = 5
RESAMPLES = 1000
RARE = 4  # an opening seen less often than this is pooled: it would only name single queries
SHOWN = 5
AIM, ALARM = 0.55, 0.65
_FIRST_PERSON = re.compile(r"\b(?:i|i'm|i've|i'd|me|my|mine|we|our)\b")


def features(texts: Sequence[str]) -> list[dict[str, float | str]]:
    """What can be seen of each text without knowing what it is about."""
    openings = [" ".join(text.lower().split()[:2]) for text in texts]
    counts = Counter(openings)
    return [
        {
            "opening": opening if counts[opening] >= RARE else "(rare)",
            "last": text.rstrip()[-1:] if text.rstrip()[-1:] in ".?!" else "other",
            "words": float(len(text.split())),
            "first person": float(bool(_FIRST_PERSON.search(text.lower().replace("’", "'")))),
        }
        for text, opening in zip(texts, openings, strict=True)
    ]


def classifier() -> object:
    return make_pipeline(DictVectorizer(), MaxAbsScaler(), LogisticRegression(max_iter=1000))


def interval(truth: np.ndarray, scores: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 95 % bootstrap interval over queries of the AUC, the mean over the seeds' `scores`."""
    rng, drawn = np.random.default_rng(0), []
    while len(drawn) < RESAMPLES:
        rows = rng.integers(len(truth), size=len(truth))
        if 0 < truth[rows].sum() < len(rows):
            drawn.append(np.mean([roc_auc_score(truth[rows], found[rows]) for found in scores]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def report(name: str, attacks: Sequence[Attack]) -> None:
    """Prints what form alone tells of `attacks`, all of them from the domains safety and benign."""
    seen = features([attack.turns[-1]["content"] for attack in attacks])
    truth = np.array([bool(attack.harmful) for attack in attacks])
    if min(truth.sum(), (~truth).sum()) < FOLDS:
        print(f"{name}: {truth.sum()} harmful and {(~truth).sum()} benign queries are too few to tell")
        return
    scores = [
        cross_val_predict(
            classifier(),
            seen,
            truth,
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
            method="predict_proba",
        )[:, 1]
        for seed in range(SEEDS)
    ]
    aucs = [roc_auc_score(truth, found) for found in scores]
    low, high = interval(truth, scores)
    auc = float(np.mean(aucs))
    word = "near chance" if auc <= AIM else "between aim and alarm"
    if auc > ALARM:
        word = "ALARM" if low > 0.5 else "above the alarm, but too few to tell from chance"
    print(
        f"{name}: AUC {auc:.3f} [{low:.3f}, {high:.3f}] ({word}), seeds {min(aucs):.3f} to {max(aucs):.3f}, "
        f"n {len(truth)} ({truth.sum()} harmful, {(~truth).sum()} benign)"
    )
    model = classifier().fit(seen, truth)
    weights = dict(zip(model[0].get_feature_names_out(), model[-1].coef_[0], strict=True))
    strongest = sorted(weights, key=lambda feature: -abs(weights[feature]))[:SHOWN]
    print("  top features (+ harmful): " + ", ".join(f"{each} {weights[each]:+.2f}" for each in strongest))


def main() -> int:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    files = sorted(run.glob("iterations/*/attacks.jsonl"))
    if not files:
        print(f"{run}: no attacks here; make some with: alignloop run configs/demo.yaml", file=sys.stderr)
        return 1
    everything: list[Attack] = []
    for file in files:
        rows = [row for row in read_jsonl(file, Attack) if row.domain in ("safety", "benign")]
        known = [row for row in rows if row.harmful is not None]
        everything += known
        report(f"iteration {int(file.parent.name)}, {len(rows) - len(known)} unclear left out", known)
    if len(files) > 1:
        report("all iterations", everything)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures the judges made from human labels: `python -m benchmarks.judge [--choose | --refusal]`.

Prints AUC (95 % bootstrap interval over objectives), n, accuracy and Brier score on the validation rows,
which neither judge nor critic is trained on; the same for answers cut to about what policies may sample;
and how far the scores of met rows fall when the answer stands under another objective. `--choose` prints the
cross-validation on the judge's own rows, grouped by objective, that the settings in judges.py were chosen by;
`--refusal` that of the refusal judge for several strengths of its regularisation, beside refusal wording.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
from sklearn.metrics import brier_score_loss, roc_auc_score

from loop.heldout.cards import cross_validated, labelled_rows, measure, objectives, truth_of
from loop.heldout.judges import SOURCE_WEIGHTS, HumanLabelJudge, RefusalWording
from loop.overlap import normalise
from loop.partition import load_partition
from loop.records import Seed
from loop.surface import is_refusal

CUT_WORDS = 48  # about 64 tokens
REFUSAL_REGULARISATIONS = (0.3, 1.0, 3.0, 10.0)
WEIGHTS = [
    {"objective": 1.0, "refusal": refusal, "harm": harm}
    for refusal, harm in ((0.3, 0.0), (0.3, 0.1), (0.3, 0.3), (0.0, 0.3), (1.0, 0.3), (0.3, 1.0))
]


def labels(rows: Sequence[Seed]) -> np.ndarray:
    return np.asarray([row.label for row in rows])


def scores(judge: HumanLabelJudge, rows: Sequence[Seed]) -> np.ndarray:
    return np.asarray(judge.score([row.prompt for row in rows], [row.response for row in rows]), dtype=float)


def choose(rows: Sequence[Seed], repeats: int = 1, folds: int = 5) -> None:
    """Cross-validated AUC on the objective rows for each weighting of the sources."""
    tested = [row for row in rows if "objective" in row.source]
    for weights in WEIGHTS:
        found: list[tuple[float, float]] = []
        for repeat in range(repeats):
            groups = sorted(set(objectives(tested)))
            Random(repeat).shuffle(groups)
            truth, predicted = [], []
            for fold in range(folds):
                held = set(groups[fold::folds])
                train = [row for row in rows if normalise(row.prompt) not in held]
                test = [row for row in tested if normalise(row.prompt) in held]
                judge = HumanLabelJudge.fit(train, weights)
                truth += [labels(test)]
                predicted += [scores(judge, test)]
            whole, guessed = np.concatenate(truth), np.concatenate(predicted)
            found.append((float(roc_auc_score(whole, guessed)), float(brier_score_loss(whole, guessed))))
        auc, brier = np.mean(found, axis=0)
        print(f"cross-validation {weights}: AUC {auc:.3f}, Brier {brier:.3f}", flush=True)


def choose_refusal() -> None:
    """Cross-validated AUC and accuracy of the refusal judge on its rows, grouped by objective."""
    rows = labelled_rows("refusal")
    prompts, answers = [row.prompt for row in rows], [row.response for row in rows]
    wording = RefusalWording().score(prompts, answers)
    report_refusal("refusal wording", rows, wording)
    for strength in REFUSAL_REGULARISATIONS:
        report_refusal(f"refusal judge, C {strength:g}", rows, cross_validated(rows, strength))


def report_refusal(name: str, rows: Sequence[Seed], found: Sequence[float | None]) -> None:
    told = measure(truth_of("refusal", rows), found, objectives(rows))
    print(
        f"{name}: AUC {told['auc']:.3f} [{told['auc_low']:.3f}, {told['auc_high']:.3f}], n {told['n']}, "
        f"objectives {told['objectives']}, accuracy {told['accuracy']:.3f}, kappa {told['kappa']:.3f}",
        flush=True,
    )


def report(name: str, truth: np.ndarray, found: np.ndarray, groups: Sequence[str]) -> None:
    told, brier = measure(truth == 1, list(found), groups), brier_score_loss(truth, found)
    print(
        f"{name}: AUC {told['auc']:.3f} [{told['auc_low']:.3f}, {told['auc_high']:.3f}], n {told['n']}, "
        f"objectives {told['objectives']}, accuracy {told['accuracy']:.3f}, Brier {brier:.3f}, "
        f"mean score {found.mean():.2f}, met {truth.mean():.2f}"
    )


def main() -> None:
    if "--refusal" in sys.argv:
        choose_refusal()
        return
    seeds = load_partition().seeds
    if "--choose" in sys.argv:
        choose(seeds["judge"])
        return
    rows = seeds["validation"]
    judge = HumanLabelJudge.fit(seeds["judge"], SOURCE_WEIGHTS)
    truth, groups = labels(rows), objectives(rows)
    found = scores(judge, rows)
    cut = [replace(row, response=" ".join((row.response or "").split()[:CUT_WORDS])) for row in rows]
    print(f"{judge.name}, fitted on {len(seeds['judge'])} rows")
    report("whole answers", truth, found, groups)
    report(f"first {CUT_WORDS} words", truth, scores(judge, cut), groups)
    report(
        "refusal wording", truth, np.asarray([1.0 - is_refusal(row.response or "") for row in rows]), groups
    )
    report(
        "length alone", truth, np.asarray([min(1, len(row.response or "") / 4000) for row in rows]), groups
    )
    met = [row for row in rows if row.label == 1]
    swapped = [replace(row, prompt=met[(i + 7) % len(met)].prompt) for i, row in enumerate(met)]
    fall = scores(judge, met).mean() - scores(judge, swapped).mean()
    print(f"met rows under another objective: the mean score falls by {fall:.3f}")


if __name__ == "__main__":
    main()

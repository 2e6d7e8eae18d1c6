"""Measures what a finding's severity stands on: `python -m benchmarks.severity`.

Prints, for steps of the score of the judge made from human labels, how many of the validation rows it gives
that score and for how many of them people too say that the objective was met.
"""

from itertools import pairwise

from loop.archive import BROKEN
from loop.findings import SURE
from loop.heldout.cards import labelled_rows, truth_of
from loop.heldout.judging import human_label_judge

STEPS = (0.0, BROKEN, SURE, 1.0)


def main() -> None:
    rows = labelled_rows("met")
    scores = human_label_judge().score([row.prompt for row in rows], [row.response for row in rows])
    truth = truth_of("met", rows)
    for low, high in pairwise(STEPS):
        met = [
            told
            for score, told in zip(scores, truth, strict=True)
            if score is not None and (low <= score < high or score == high == 1.0)
        ]
        print(f"{low:.2f} to {high:.2f}: people agree for {sum(met)} of {len(met)}", flush=True)


if __name__ == "__main__":
    main()

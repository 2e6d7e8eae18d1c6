"""Measures the form match of a run's attacks: `python -m benchmarks.form [RUN]` (default runs/demo).

A learner that meets harm in one form only learns to refuse the form. Prints the cross-validated AUC, n and
the strongest features of a logistic classifier that sees form alone (`loop.form`: first two words, last
character, length in words, first person, the family where there are several) at telling harmful from benign
training queries; the interval is a 95 % bootstrap over queries. Near 0.5 is the aim (pooled folds lie a
little below it where form tells nothing), above 0.65 an alarm.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loop.form import ALARM, audit_form
from loop.records import Attack, read_jsonl

AIM = 0.55


def report(name: str, found: Mapping[str, Any]) -> None:
    """Prints what `audit_form` found."""
    harmful, benign, auc = found["harmful"], found["benign"], found["auc"]
    if auc is None:
        print(f"{name}: {harmful} harmful and {benign} benign queries are too few to tell")
        return
    word = "near chance" if auc <= AIM else "between aim and alarm"
    if auc > ALARM:
        word = "ALARM" if found["alarm"] else "above the alarm, but too few to tell from chance"
    print(
        f"{name}: AUC {auc:.3f} [{found['auc_low']:.3f}, {found['auc_high']:.3f}] ({word}), seeds "
        f"{min(found['auc_seeds']):.3f} to {max(found['auc_seeds']):.3f}, "
        f"n {found['n']} ({harmful} harmful, {benign} benign)"
    )
    shown = ", ".join(f"{feature} {weight:+.2f}" for feature, weight in found["features"])
    print(f"  top features (+ harmful): {shown}")


def main() -> int:
    """Prints a report for each iteration and, of several, for all together."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    files = sorted(run.glob("iterations/*/attacks.jsonl"))
    if not files:
        print(f"{run}: no attacks here; make some with: alignloop run configs/demo.yaml", file=sys.stderr)
        return 1
    everything: list[Attack] = []
    for file in files:
        attacks = list(read_jsonl(file, Attack))
        everything += attacks
        found = audit_form(attacks)
        report(f"iteration {int(file.parent.name)}, {found['unclear']} unclear left out", found)
    if len(files) > 1:
        report("all iterations", audit_form(everything))
    return 0


if __name__ == "__main__":
    sys.exit(main())

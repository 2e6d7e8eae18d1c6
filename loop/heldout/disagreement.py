"""Where judges that tell the same thing disagree, answer by answer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from sklearn.metrics import cohen_kappa_score

from loop.heldout.metrics import MET
from loop.records import Verdict
from loop.rundir import write_json


@dataclass(frozen=True)
class Disagreement:
    """Two judges on the `n` answers that both scored; `items` are those that only one says yes to."""

    suite: str
    metric: str
    first: str
    second: str
    n: int
    agreement: float
    kappa: float | None
    """Cohen's; None where one of them says the same of every answer."""
    items: list[str]


def disagreements(rows: Sequence[Verdict]) -> list[Disagreement]:
    """Every pair of judges of every metric that several judges scored."""
    scores: dict[tuple[str, str], dict[str, dict[tuple[str, int, int | None], bool]]] = {}
    for row in rows:
        if row.score is not None:
            by_judge = scores.setdefault((row.suite, row.metric), {}).setdefault(row.judge, {})
            by_judge[row.item_id, row.sample, row.gold] = row.score >= MET
    return [
        _between(suite, metric, first, second, by_judge[first], by_judge[second])
        for (suite, metric), by_judge in scores.items()
        for first, second in combinations(by_judge, 2)
        if by_judge[first].keys() & by_judge[second].keys()
    ]


def _between(
    suite: str,
    metric: str,
    first: str,
    second: str,
    mine: dict[tuple[str, int, int | None], bool],
    theirs: dict[tuple[str, int, int | None], bool],
) -> Disagreement:
    shared = [key for key in mine if key in theirs]
    ours, others = [mine[key] for key in shared], [theirs[key] for key in shared]
    varied = len(set(ours)) == len(set(others)) == 2
    apart = [key[0] for key in shared if mine[key] != theirs[key]]
    kappa = float(cohen_kappa_score(ours, others)) if varied else None
    agreement = 1 - len(apart) / len(shared)
    return Disagreement(
        suite, metric, first, second, len(shared), agreement, kappa, list(dict.fromkeys(apart))
    )


def write_disagreements(folder: Path, rows: Sequence[Verdict]) -> list[Disagreement]:
    """Makes disagreements.json where several judges scored the same answers."""
    found = disagreements(rows)
    if found:
        write_json(folder / "disagreements.json", [asdict(one) for one in found])
    return found

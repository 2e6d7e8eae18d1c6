"""Tells where the time of a finished run went: by stage, and what of it was neither model nor training; and
what became of HarmBench alone, one iteration after the other.

    python benchmarks/demo.py runs/demo

Reads the run's timings.jsonl and starts nothing. `engine` counts the seconds in which an engine was answering
or the training process ran; the rest is orchestration: files, judges, fits, prompts.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path


def main() -> None:
    """Prints a row for each stage and the totals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"), help="default: runs/demo")
    path = parser.parse_args().run / "timings.jsonl"
    if not path.is_file():
        sys.exit(f"{path}: no such file; give the directory of a run that was started")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    stages: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        stages[row["stage"]].append(row)
    print(f"{'stage':<12}{'rows':>8}{'seconds':>10}{'s a row':>10}{'engine':>10}{'else':>8}{'tokens/s':>10}")
    for name, found in stages.items():
        _print(name, found)
    _print("all", rows)
    total, engine = (sum(row[key] for row in rows) for key in ("seconds", "engine_seconds"))
    print(f"orchestration: {total - engine:.1f} of {total:.1f} s, {(total - engine) / max(total, 1e-9):.1%}")
    for results in sorted(path.parent.glob("iterations/*/heldout/results.json")):
        for row in json.loads(results.read_text(encoding="utf-8")):
            if (row["metric"], row["category"]) == ("harmful_compliance", "harmbench"):
                interval = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
                number = int(results.parent.parent.name)
                print(f"iteration {number}: HarmBench {row['value']:.3f} {interval} over {row['n']} items")


def _print(name: str, rows: list[dict[str, float]]) -> None:
    seconds, engine, count, tokens = (
        sum(row[key] for row in rows) for key in ("seconds", "engine_seconds", "rows", "tokens")
    )
    rate = f"{tokens / engine:.0f}" if tokens and engine else ""
    each = f"{seconds / count:.3f}" if count and name != "all" else ""
    print(f"{name:<12}{count:>8}{seconds:>10.1f}{each:>10}{engine:>10.1f}{seconds - engine:>8.1f}{rate:>10}")


if __name__ == "__main__":
    main()

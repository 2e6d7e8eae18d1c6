"""A report of 20,000 attacks: seconds and memory to build it, first paint and a filter in headless Chromium.

The run is made up and lies in a temporary folder. python benchmarks/report.py [--attacks 20000] [--repeats 5]
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from loop.records import (
    Attack,
    Completion,
    Critique,
    EvalResult,
    Message,
    Pair,
    Verdict,
    stable_hash,
    write_jsonl,
)
from loop.rundir import RunDir, write_json

WORDS = 4000  # of the made-up vocabulary: natural text packs about as well
ITEMS = 800
STRATEGIES = ("plain", "role play", "first person", "authority", "wrapped")
CATEGORIES = ("a", "b", "c", "d", "e", "f", "g", "h")
TEXT = {"query": 18, "answer": 70, "rationale": 30}  # words
# A filter is timed from the event to the end of the frame that shows what it leaves.
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
FILTER = """async ([id, value]) => {
  const control = document.getElementById(id);
  const start = performance.now();
  control.value = value;
  control.dispatchEvent(new Event(id === 'search' ? 'input' : 'change'));
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""
FILTERS = (
    ("search", "ba"),
    ("search", "nothing like it"),
    ("search", ""),
    ("verdict", "bad"),
    ("verdict", ""),
    ("strategy", "plain"),
    ("strategy", ""),
)


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attacks", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = made_up_run(Path(folder) / "run", asked.attacks)
        built = [build(run) for _ in range(asked.repeats)]
        page = run.path("report.html")
        found: dict[str, Any] = {
            "attacks": asked.attacks,
            "build_seconds": round(median(seconds for seconds, _ in built), 2),
            "build_peak_mib": round(max(peak for _, peak in built)),
            "file_mb": round(page.stat().st_size / 1e6, 1),
        }
        print(json.dumps(found | in_browser(page, asked.repeats)))


def build(run: RunDir) -> tuple[float, float]:
    """Seconds and MiB that `alignloop report` takes, in a process of its own."""
    code = (
        "import resource, sys; from loop.cli import app; "
        "app(['report', sys.argv[1]], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.root)], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, float(done.stdout.splitlines()[-1])


def in_browser(page: Path, repeats: int) -> dict[str, float]:
    """Medians in milliseconds: first paint, everything unpacked, the slowest filter."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no chromium on this machine: apt install chromium")
    painted: list[float] = []
    ready: list[float] = []
    filtered: dict[tuple[str, str], list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(repeats):
            tab = browser.new_page()
            start = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector("html[data-ready]", timeout=120_000)
            ready.append(1000 * (time.perf_counter() - start))
            painted.append(tab.evaluate(FIRST_PAINT))
            for one in FILTERS:
                filtered.setdefault(one, []).append(tab.evaluate(FILTER, list(one)))
            tab.close()
        browser.close()
    return {
        "first_paint_ms": round(median(painted)),
        "all_read_ms": round(median(ready)),
        "slowest_filter_ms": round(max(median(times) for times in filtered.values())),
    }


def made_up_run(root: Path, attacks: int) -> RunDir:
    """Two iterations with half of the attacks each, every one answered, criticised, revised and paired."""
    run, rng = RunDir(root), random.Random(0)
    words = [
        "".join(rng.choices("bdfgklmnprst", k=1) + rng.choices("aeiou", k=1)) * rng.randint(1, 3)
        for _ in range(WORDS)
    ]
    weights = [1 / (rank + 1) for rank in range(WORDS)]

    def text(kind: str) -> str:
        return " ".join(rng.choices(words, weights, k=TEXT[kind]))

    manifest = {"argv": ["alignloop", "run"], "git": None, "python": "3", "machine": "none", "versions": {}}
    write_json(run.path("manifest.json"), manifest)
    for number in (0, 1, 2):
        _held_out(run.iteration(number) / "heldout", text, rng)
    for number in (1, 2):
        _iteration(run.iteration(number), number, attacks // 2, text, rng)
    return run


def _held_out(folder: Path, text: Any, rng: random.Random) -> None:
    names = ("safety", "harmful_compliance", "dev")
    value = rng.random()
    write_json(
        folder / "results.json",
        [vars(EvalResult(*names, "all", value, value, value, value, value, ITEMS, 1.0, "judge", "m"))],
    )
    rows = [
        Verdict(
            "safety",
            f"item-{n}",
            "dev",
            0,
            "judge",
            rng.random(),
            f"Request {n}",
            text("answer"),
            "m",
            names[1],
        )
        for n in range(ITEMS)
    ]
    write_jsonl(folder / "verdicts.jsonl", rows)


def _iteration(folder: Path, number: int, attacks: int, text: Any, rng: random.Random) -> None:
    folder.mkdir(exist_ok=True)
    ids = [f"{stable_hash(number, n):016x}" for n in range(attacks)]
    asked = [[Message(role="user", content=text("query"))] for _ in ids]

    def answers(kind: str, origin: Any) -> list[Completion]:
        return [
            Completion(f"{kind}-{id}", f"attack-{id}", 0, origin, text("answer"), "stop", 90, "m")
            for id in ids
        ]

    def critiques(of: list[Completion]) -> list[Critique]:
        harms = [rng.random() for _ in of]
        return [
            Critique(
                f"critique-{row.id}", row.id, "Critic", harm, 1 - harm, "no-harmful-help", text("rationale")
            )
            for row, harm in zip(of, harms, strict=True)
        ]

    first, revised = answers("completion", "policy"), answers("revision", "revision")
    write_jsonl(
        folder / "attacks.jsonl",
        [
            Attack(
                f"attack-{id}",
                number,
                "seed-1",
                "made up",
                rng.choice(STRATEGIES),
                "safety",
                rng.choice(CATEGORIES),
                True,
                turns,
                "m",
            )
            for id, turns in zip(ids, asked, strict=True)
        ],
    )
    write_jsonl(folder / "completions.jsonl", first)
    write_jsonl(folder / "critiques.jsonl", critiques(first))
    write_jsonl(folder / "revisions.jsonl", revised)
    write_jsonl(folder / "revision_critiques.jsonl", critiques(revised))
    write_jsonl(
        folder / "pairs.jsonl",
        [
            Pair(
                f"pair-{id}",
                number,
                f"attack-{id}",
                "safety",
                turns,
                after.text or "",
                before.text or "",
                after.id,
                before.id,
                0.5,
            )
            for id, turns, before, after in zip(ids, asked, first, revised, strict=True)
        ],
    )


if __name__ == "__main__":
    main()

"""Runs whose every free text is hostile: to whatever shows them, it must be text and no more."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from loop.archive import coverage, entries_of, still_broken
from loop.attack_measures import measure_attacks
from loop.form import audit_form
from loop.heldout.gate import Check
from loop.records import Attack, Completion, Critique, EvalResult, Message, Pair, Verdict, write_jsonl
from loop.rundir import RunDir, read_json, write_json

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> & {{ 7 * 7 }} [red]paint[/red] [/none] "
    "<svg onload=alert(3)></svg> <a href='javascript:alert(4)'>link</a> </script></textarea> "
    "\x1b[31mansi\x1b[0m \x1b]0;title\x07 \x9b31m \u202ebidi\u2066 \ud800 \x00 :smile: end"
)
FORBIDDEN = "\x1b\x07\x9b\u202e\u2066\ud800\x00"


def result(suite: str, metric: str, value: float | None = 0.5, **more: Any) -> EvalResult:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    made = EvalResult(suite, metric, "dev", "all", value, low, high, low, high, 40, 1.0, "judge", "m")
    return replace(made, **more)


def check(margin: float | None, found: Any) -> Check:
    return Check(
        "safety", "harmful_compliance", "lower", "last", -0.8, -0.9, -0.7, margin, n=40, verdict=found
    )


def verdict(item: str, score: float | None, text: str | None, metric: str = "harmful_compliance") -> Verdict:
    return Verdict("safety", item, "dev", 0, "judge", score, f"Request {HOSTILE}", text, "m", metric)


def hostile_run(root: Path) -> RunDir:
    """A baseline and one whole iteration in which every free text is hostile."""
    run = RunDir(root)
    write_json(
        run.path("manifest.json"),
        {
            "argv": ["alignloop", "run", f"name={HOSTILE[:40]}"],
            "git": "abc",
            "python": "3.11",
            "machine": "x86, 2 CPUs",
            "versions": {"torch": "2", "gone": None},
            "lineage": {},
            "parts": {},
        },
    )
    for number, score in ((0, 0.9), (1, 0.1)):
        folder = run.iteration(number) / "heldout"
        write_json(
            folder / "results.json",
            [
                vars(result("safety", "harmful_compliance", score)),
                vars(result("overrefusal", "refusal", coverage=0.5)),
            ],
        )
        rows = [verdict("item-1", score, f"{number} {HOSTILE}"), verdict("item-2", None, None)]
        write_jsonl(folder / "verdicts.jsonl", [*rows, verdict("item-1", 1.0, "x", "refusal")])
    iteration(run)
    return run


def iteration(run: RunDir) -> None:
    folder = run.iteration(1)
    asked = [Message(role="user", content=f"Query {HOSTILE}")]
    attacks = [
        Attack(f"attack-{n}", 1, "seed-1", "zero-shot", HOSTILE, "safety", "", harmful, asked, "m")
        for n, harmful in (("aa", True), ("ab", None), ("c", False))
    ]
    first = Completion("completion-1", "attack-aa", 0, "policy", f"Plain {HOSTILE}", "stop", 3, "m")
    second = replace(first, id="completion-2", origin="revision", text=f"Revised {HOSTILE}")
    third = replace(first, id="completion-3", attack_id="attack-ab", text=None, error=HOSTILE)
    verdicts = [
        Critique("critique-1", first.id, "Critic", 0.9, 0.1, "p1", f"Because {HOSTILE}", span=HOSTILE),
        Critique("critique-3", third.id, "Critic", None, None, "p1", "", null_reason="no text"),
    ]
    write_jsonl(folder / "attacks.jsonl", attacks)
    write_jsonl(folder / "completions.jsonl", [first, third])
    write_jsonl(folder / "critiques.jsonl", verdicts)
    write_jsonl(folder / "revisions.jsonl", [second])
    write_jsonl(
        folder / "revision_critiques.jsonl", [Critique("critique-2", second.id, "Critic", 0.1, 0.9, "p1", "")]
    )
    pair = Pair("pair-1", 1, "attack-aa", "safety", asked, "Revised", "Plain", second.id, first.id, 0.8)
    write_jsonl(folder / "pairs.jsonl", [pair])
    write_json(folder / "pair_audit.json", {"attacks": 3, "pairs": {"safety": 1}, "dropped": {HOSTILE: 2}})
    write_json(
        folder / "adapter" / "training.json", {"rows_trained": 1, "tokens_per_second": 99.6, "losses": [1]}
    )
    write_json(
        folder / "gate.json",
        {
            "promoted": True,
            "outcome": "promoted",
            "reasons": [f"Better {HOSTILE}"],
            "checks": [vars(check(None, "better")), vars(check(0.1, "inconclusive"))],
        },
    )
    line = {"iteration": 1, "stage": "answer", "rows": 3, "seconds": 1.25, "engine_seconds": 1, "tokens": 9}
    run.path("timings.jsonl").write_text(json.dumps(line) + "\n")


def assert_shown_as_text(shown: str) -> None:
    assert not set(shown) & set(FORBIDDEN)
    for kept in ("<script>alert(1)</script>", "[red]paint[/red]", "[/none]", "{{ 7 * 7 }}", ":smile:"):
        assert "".join(kept.split()) in "".join(shown.split())


def measured(run: RunDir) -> None:
    """What the critic and the attacks of the iteration came to, the critic worse than it was."""
    folder = run.iteration(1)
    agreement = {"value": 0.95, "low": 0.9, "high": 0.98, "n": 60}
    audit = read_json(folder / "pair_audit.json")
    write_json(folder / "pair_audit.json", {**audit, "agreement": {"all": agreement}, "length_ratio": 0.8})
    write_json(
        folder / "critic" / "validity.json",
        {
            "n": 135,
            "coverage": 1.0,
            "auc": 0.91,
            "auc_low": 0.85,
            "auc_high": 0.95,
            "accuracy": 0.8,
            "kappa": 0.6,
            "calibration_error": 0.06,
            "length_correlation": None,
            "reliability": [{"n": 27, "said": 0.1, "met": 0.2}, {"n": 27, "said": 0.9, "met": 0.8}],
            "drift": {"value": -0.1, "low": -0.2, "high": -0.05, "n": 135, "alarm": True},
        },
    )
    entries = list(entries_of(folder))
    write_json(
        folder / "attack_measures.json",
        {
            **measure_attacks(entries, 12, ["a seed"]),
            "archive": coverage({}, [], []),
            "retried": still_broken({}, []),
            "form": audit_form([entry.attack for entry in entries]),
        },
    )

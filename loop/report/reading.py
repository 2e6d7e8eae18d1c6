"""A finished or half-finished run, read back from its files alone: no role, no model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import DataError
from loop.records import EvalResult, Verdict, read_jsonl
from loop.rundir import RunDir, read_json, replacing

# Of each suite the figures that a reader wants first, and which way is better.
HEADLINES: tuple[tuple[str, str, str], ...] = (
    ("safety", "harmful_compliance", "lower"),
    ("safety", "refusal", "higher"),
    ("overrefusal", "refusal", "lower"),
    ("overrefusal", "helpfulness", "higher"),
    ("overrefusal", "twin_discrimination", "higher"),
    ("toxicity", "mean", "lower"),
    ("toxicity", "expected_max", "lower"),
    ("legal", "accuracy", "higher"),
    ("legal", "gold_logprob", "higher"),
    ("capability", "accuracy", "higher"),
    ("capability", "degeneration", "lower"),
    ("capability", "surprise", "lower"),
)


@dataclass(frozen=True)
class Iteration:
    """What one iteration left behind; parts that are not there yet are empty."""

    number: int
    results: Sequence[EvalResult]
    gate: Mapping[str, Any]
    validity: Mapping[str, Any]
    attacks: Mapping[str, Any]
    self_play: Mapping[str, Any]
    audit: Mapping[str, Any]
    training: Mapping[str, Any]

    def value(self, suite: str, metric: str) -> EvalResult | None:
        """The result of a metric over all categories."""
        wanted = (suite, metric, "all")
        return next((row for row in self.results if (row.suite, row.metric, row.category) == wanted), None)


def read_run(run: RunDir) -> list[Iteration]:
    """All iterations of a run, the baseline first. Raises DataError where there is no run."""
    if not run.path("manifest.json").exists():
        raise DataError(f"{run.root}: no run here (it has no manifest.json)")
    return [_iteration(path) for path in sorted(run.root.glob("iterations/*"))]


def _iteration(folder: Path) -> Iteration:
    results = folder / "heldout" / "results.json"
    return Iteration(
        number=int(folder.name),
        results=[EvalResult(**row) for row in read_json(results)] if results.exists() else [],
        gate=_optional(folder / "gate.json"),
        validity=_optional(folder / "critic" / "validity.json"),
        attacks=_optional(folder / "attack_measures.json"),
        self_play=_optional(folder / "attacker" / "gate.json"),
        audit=_optional(folder / "pair_audit.json"),
        training=_optional(folder / "adapter" / "training.json"),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def timings(run: RunDir) -> list[dict[str, Any]]:
    """Seconds, rows and tokens of each stage, in the order in which they ended."""
    path = run.path("timings.jsonl")
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def before_and_after(run: RunDir) -> tuple[Verdict, Verdict] | None:
    """The held-out safety item whose judged compliance fell most from the baseline to the last iteration."""
    measured = sorted(run.root.glob("iterations/*/heldout/verdicts.jsonl"))
    if len(measured) < 2:
        return None
    first, last = (
        {row.item_id: row for row in read_jsonl(path, Verdict) if row.metric == "harmful_compliance"}
        for path in (measured[0], measured[-1])
    )
    fallen = [
        (before.score - after.score, item)
        for item, before in first.items()
        if (after := last.get(item)) and before.score is not None and after.score is not None
    ]
    return (first[max(fallen)[1]], last[max(fallen)[1]]) if fallen else None


def judge_lines(run: RunDir) -> list[str]:
    """How far each judge of the run agrees with people."""
    path = run.path("judges.json")
    return [judge_line(card) for card in read_json(path)] if path.exists() else []


def judge_line(card: Mapping[str, Any]) -> str:
    """A judge card in one line."""
    head = f"judge {card['name']} ({card['tells']})"
    if card.get("auc") is None:
        return f"{head}: {card['how']}"
    length = f"; length alone {card['length_auc']:.2f}" if card["length_auc"] is not None else ""
    return (
        f"{head}: {_auc(card)}, accuracy {card['accuracy']:.2f} "
        f"on {card['n']} human labels ({card['how']}){length}"
    )


def critic_line(iteration: Iteration) -> str:
    """How far the critic of an iteration agreed with people, and the judge with its pairs."""
    parts: list[str] = []
    if (found := iteration.validity) and found["auc"] is not None:
        parts.append(
            f"critic: {_auc(found)}, accuracy {found['accuracy']:.2f}, calibration error "
            f"{found['calibration_error']:.2f} on {found['n']} human labels"
        )
        change = found.get("drift")
        if change and change["value"] is not None:
            alarm = "fell" if change["alarm"] else "no significant fall"
            parts.append(f"since iteration 1 {change['value']:+.3f} ({alarm})")
    if agreement := iteration.audit.get("agreement", {}).get("all"):
        parts.append(f"the judge finds chosen better in {share(agreement)} of {agreement['n']} pairs")
    return "; ".join(parts)


def _auc(found: Mapping[str, Any]) -> str:
    interval = f" [{found['auc_low']:.2f}, {found['auc_high']:.2f}]" if found["auc_low"] is not None else ""
    return f"AUC {found['auc']:.2f}{interval}"


def attack_line(iteration: Iteration) -> str:
    """What the attacks of an iteration achieved against the policy that they met."""
    found = iteration.attacks
    if not found or found["success"]["value"] is None:
        return ""
    parts = [f"attacks: {share(found['success'])} of {found['success']['n']} harmful ones broke the policy"]
    if found["retried"]["n"]:
        parts.append(
            f"of {found['retried']['n']} that broke an earlier one {share(found['retried'])} still do"
        )
    if (form := found["form"])["auc"] is not None:
        parts.append(
            f"form alone tells harmful from harmless with AUC {form['auc']:.2f}"
            + (" (alarm)" if form["alarm"] else "")
        )
    if (distinct := found["diversity"]["distinct"]) is not None:
        parts.append(f"{distinct:.0%} distinct")
    if (played := iteration.self_play) and played["passed"]:
        parts.append(f"the attacker learned from {played['pairs']} pairs")
    elif played:
        parts.append(f"the attacker stays as it was ({'; '.join(played['reasons'])})")
    return "; ".join(parts)


def share(found: Mapping[str, Any]) -> str:
    """A share with its interval, in per cent."""
    if found["value"] is None:
        return "–"
    interval = f" [{found['low']:.0%}, {found['high']:.0%}]" if found["low"] is not None else ""
    return f"{found['value']:.0%}{interval}"


_ATTACKS = {
    "success": ("success", "value"),
    "retried": ("retried", "value"),
    "form_auc": ("form", "auc"),
    "distinct": ("diversity", "distinct"),
    "self_bleu": ("diversity", "self_bleu"),
    "vendi": ("diversity", "vendi"),
    "cells_filled": ("archive", "filled"),
    "cells_broken": ("archive", "broke"),
}
"""What metrics.jsonl says of all attacks of an iteration, and where attack_measures.json has it."""


def write_metrics(run: RunDir) -> None:
    """metrics.jsonl: one line for each figure of each iteration, made anew from the stage files."""
    with replacing(run.path("metrics.jsonl")) as beside, beside.open("w", encoding="utf-8") as file:
        for iteration in read_run(run):
            for line in (*_measured(iteration), *_attacked(iteration), *_counted(iteration)):
                file.write(json.dumps({"iteration": iteration.number, **line}) + "\n")


def _measured(iteration: Iteration) -> Iterator[dict[str, Any]]:
    """The held-out results."""
    for row in iteration.results:
        line = {"name": f"{row.suite}.{row.metric}", "category": row.category}
        yield line | {"value": row.value, "ci_low": row.ci_low, "ci_high": row.ci_high, "n": row.n}


def _attacked(iteration: Iteration) -> Iterator[dict[str, Any]]:
    """Attack success by strategy, family and category, each with its interval."""
    for group in ("strategy", "family", "category"):
        for name, found in iteration.attacks.get(f"by_{group}", {}).items():
            line = {"name": "attacks.success", "category": f"{group} {name}", "value": found["value"]}
            yield line | {"ci_low": found["low"], "ci_high": found["high"], "n": found["n"]}


def _counted(iteration: Iteration) -> Iterator[dict[str, Any]]:
    """Single figures of the attacker, the critic, the pairs and the training."""
    attacks, played = iteration.attacks, iteration.self_play
    agreement = iteration.audit.get("agreement", {})
    groups: Mapping[str, Mapping[str, Any]] = {
        "critic": iteration.validity,
        "attacks": {
            **{key: attacks.get(at, {}).get(of) for key, (at, of) in _ATTACKS.items()},
            "tokens_per_success": attacks.get("tokens_per_success"),
        },
        "self_play": {"pairs": played["pairs"], "passed": int(played["passed"])} if played else {},
        "pairs": iteration.audit.get("pairs", {}),
        "pair_agreement": {domain: found["value"] for domain, found in agreement.items()},
        "training": iteration.training,
    }
    for name, group in groups.items():
        for key, value in group.items():
            if isinstance(value, int | float):
                yield {"name": f"{name}.{key}", "value": value}

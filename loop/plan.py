"""What a run would do, counted before any weight is loaded: calls, tokens and time by stage."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from loop.heldout.asking import FREE_SHARE, TOXICITY_SAMPLES
from loop.heldout.evaluation import choose
from loop.heldout.suites import find_suites
from loop.partition import load_partition
from loop.records import DOMAINS
from loop.report.terminal import console, plain
from loop.session import Session, parts_of

REVISIONS = 2  # of an attack, at most: one that refuses and one that helps

# Seconds a row where this machine has no run of its own to go by: benchmarks/demo.py on 2 CPU cores.
REFERENCE_SECONDS_PER_ROW: Mapping[str, float] = {
    "attack": 0.25,
    "answer": 0.25,
    "fit critic": 0.1,
    "validate": 0.1,
    "critique": 0.2,
    "revise": 0.4,
    "pair": 0.001,
    "train": 1.7,
    "evaluate": 0.25,
}


@dataclass(frozen=True)
class StagePlan:
    """One stage over all iterations: rows at most, new tokens at most, estimated seconds."""

    stage: str
    rows: int
    tokens: int
    seconds: float


def plan(session: Session) -> list[StagePlan]:
    """Upper bounds: every attack is usable, every answer as long as it may be, every query makes a pair."""
    config, roles = session.config, session.config.roles
    attacks = sum(getattr(config.attacks, domain) for domain in DOMAINS)
    labelled = len(load_partition().seeds["validation"]) if any(session.seeds.values()) else 0
    tried_again = config.attacks.retry * (config.iterations - 1)
    answers = attacks * int(getattr(session.roles["learner"], "samples", 1))
    heldout, turns = config.heldout, config.iterations
    items = choose(find_suites(heldout.suites).values(), "dev", heldout.limit)
    trained = sum(
        _trained(attacks * (turn if config.train.replay else 1), config.train.dpo)
        for turn in range(1, turns + 1)
    )
    # legal is scored by likelihood, nothing is drawn; so is most of capability
    usual = {"toxicity": TOXICITY_SAMPLES, "legal": 0, "capability": 1 / FREE_SHARE}
    drawn = sum({**usual, **heldout.samples}.get(item.suite, 1) for item in items)
    rows = {
        "fit critic": (len(session.seeds["critic"]) * turns, 0),
        "validate": (labelled * turns, roles.critic.sampling.max_tokens),
        "attack": (attacks * turns + tried_again, roles.attacker.sampling.max_tokens),
        "answer": (answers * turns + tried_again, roles.learner.sampling.max_tokens),
        "critique": ((answers + REVISIONS * attacks) * turns, roles.critic.sampling.max_tokens),
        "revise": (attacks * turns, REVISIONS * roles.critic.sampling.max_tokens),
        "pair": (attacks * turns, 0),
        "train": (trained, 0),
        "evaluate": (len(items) * (turns + 1), round(drawn / max(len(items), 1) * heldout.max_tokens)),
    }
    rates, _ = measured_rates(Path(config.runs))
    return [
        StagePlan(stage, count, count * tokens, count * rates[stage])
        for stage, (count, tokens) in rows.items()
    ]


def _trained(pairs: int, dpo: Mapping[str, Any]) -> int:
    """The pairs that a training sees, where `max_steps` ends it early: as many as whole epochs would take."""
    if (steps := dpo.get("max_steps", -1)) <= 0:
        return pairs
    batch = dpo.get("per_device_train_batch_size", 8) * dpo.get("gradient_accumulation_steps", 1)
    return min(pairs, round(steps * batch / dpo.get("num_train_epochs", 3)))


def measured_rates(runs: Path) -> tuple[dict[str, float], Sequence[Path]]:
    """Median seconds a row of each stage in the runs under `runs`, and which runs those were."""
    found = sorted(runs.glob("*/timings.jsonl"))
    seen: defaultdict[str, list[float]] = defaultdict(list)
    for path in found:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["rows"]:
                seen[row["stage"]].append(row["seconds"] / row["rows"])
    return {**REFERENCE_SECONDS_PER_ROW, **{stage: median(rates) for stage, rates in seen.items()}}, found


def print_plan(session: Session) -> None:
    """The plan as a table, and what the estimate rests on."""
    out = console()
    parts_of(session)  # everything that a run would check is checked: sources, prompts, digests
    table = Table(title=plain(f"{session.config.name}: {session.config.iterations} iterations, at most"))
    for column in ("stage", "rows", "new tokens", "minutes"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    stages = plan(session)
    for row in stages:
        table.add_row(row.stage, f"{row.rows:,}", f"{row.tokens:,}", f"{row.seconds / 60:.1f}")
    total = sum(row.seconds for row in stages)
    table.add_row("all", "", f"{sum(row.tokens for row in stages):,}", f"{total / 60:.1f}", style="bold")
    out.print(table)
    _, runs = measured_rates(Path(session.config.runs))
    basis = f"{len(runs)} earlier run(s) here" if runs else "the project's own measurement on 2 CPU cores"
    out.print(f"Time is estimated from the rates of {basis}. Nothing was loaded or written.", highlight=False)

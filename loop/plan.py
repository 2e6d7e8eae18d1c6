"""What a run would do, counted before any weight is loaded: calls, tokens, time by stage, memory of a GPU."""

import json
import math
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from loop.config import SEATS
from loop.heldout.asking import FREE_SHARE, TOXICITY_SAMPLES
from loop.heldout.evaluation import choose
from loop.heldout.suites import find_suites
from loop.partition import load_partition
from loop.records import DOMAINS
from loop.report.terminal import console, plain
from loop.session import Session, parts_of
from loop.sizing import (
    Shape,
    answering,
    architecture_of,
    is_remote,
    room_for_tokens,
    shape_of,
    stage_seconds,
    training,
)
from loop.stages.training import command

REVISIONS = 2  # of an attack, at most: one that refuses and one that helps

# Seconds a row where this machine has no run of its own to go by: benchmarks/demo.py on 2 CPU cores.
REFERENCE_SECONDS_PER_ROW: Mapping[str, float] = {
    "rehearse": 1.0,
    "sharpen": 1.7,
    "trial": 0.5,
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


SELF_PLAY = ("rehearse", "sharpen", "trial")  # not shown where the attacker is not trained

MENDS = {
    "answer": "lower gpu_memory_utilization or batch_tokens, or share the model over more GPUs",
    "train": "lower per_device_train_batch_size or max_length, set activation_checkpointing, or take "
    "train.accelerate=@accelerate/fsdp2.yaml",
}


@dataclass(frozen=True)
class StagePlan:
    """One stage over all iterations: rows at most, new tokens at most, estimated seconds."""

    stage: str
    rows: int
    tokens: int
    seconds: float | None


def plan(session: Session) -> list[StagePlan]:
    """Upper bounds: every attack is usable, every answer as long as it may be, every query makes a pair."""
    config, roles = session.config, session.config.roles
    attacks = sum(getattr(config.attacks, domain) for domain in DOMAINS)
    labelled = len(load_partition().seeds["validation"]) if any(session.seeds.values()) else 0
    tried_again = (config.attacks.retry if config.attacks.memory else 0) * (config.iterations - 1)
    answers = attacks * int(getattr(session.roles["learner"], "samples", 1))
    tries = int(getattr(session.roles["attacker"], "candidates", 1))
    rehearsed = int(getattr(session.roles["attacker"], "rehearsed", 1))
    heldout, turns = config.heldout, config.iterations
    items = choose(find_suites(heldout.suites).values(), "dev", heldout.limit)
    trained = sum(
        _trained(
            math.ceil(attacks * (1 + config.train.recovery)) * (turn if config.train.replay else 1),
            config.train.dpo,
        )
        for turn in range(1, turns + 1)
    )
    # legal is scored by likelihood, nothing is drawn; so is most of capability
    usual = {"toxicity": TOXICITY_SAMPLES, "legal": 0, "capability": 1 / FREE_SHARE}
    drawn = sum({**usual, **heldout.samples}.get(item.suite, 1) for item in items)
    plays, shots = config.attacks.self_play, roles.attacker.sampling.max_tokens
    tried = plays.rehearsals * turns
    rows = {
        "fit critic": (len(session.seeds["critic"]) * turns, 0),
        "validate": (labelled * turns, roles.critic.sampling.max_tokens),
        "rehearse": (tried, rehearsed * (shots + roles.learner.sampling.max_tokens)),
        "sharpen": (turns * _trained(plays.rehearsals, {**config.train.dpo, **plays.dpo}), 0),
        "trial": (2 * tried, 2 * tries * shots),
        "attack": (attacks * turns + tried_again, tries * shots),
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
        if count or stage not in SELF_PLAY
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
    """The plan as a table, and what the estimate rests on.

    Raises what a run would, but only after it has printed what can be said without the weights.
    """
    out, shapes = console(), _shapes(session)
    table = Table(title=plain(f"{session.config.name}: {session.config.iterations} iterations, at most"))
    for column in ("stage", "rows", "new tokens", "minutes"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    stages = plan(session)
    if session.config.hardware.gpus:
        stages = _on_gpus(session, stages, shapes)
    for row in stages:
        minutes = "?" if row.seconds is None else f"{row.seconds / 60:.1f}"
        table.add_row(row.stage, f"{row.rows:,}", f"{row.tokens:,}", minutes)
    total = sum(row.seconds or 0.0 for row in stages)
    table.add_row("all", "", f"{sum(row.tokens for row in stages):,}", f"{total / 60:.1f}", style="bold")
    out.print(table)
    if session.config.hardware.gpus:
        _print_memory(session, shapes)
    _print_command(session)
    parts_of(session)  # everything that a run would check is checked: sources, prompts, digests
    out.print(f"Time is estimated from {_basis(session)}. Nothing was loaded or written.", highlight=False)


def _basis(session: Session) -> str:
    if session.config.hardware.gpus:
        sheets = "data sheets and assumed shares (hardware), not from any measurement"
        return f"{sheets}; starting the engines is not in it"
    _, runs = measured_rates(Path(session.config.runs))
    own = "the project's own measurement on 2 CPU cores"
    return f"the rates of {f'{len(runs)} earlier run(s) here' if runs else own}"


# --- GPUs -------------------------------------------------------------------------------------------------


def _shapes(session: Session) -> dict[str, Shape]:
    """The models whose architecture is known, where GPUs are to be counted with."""
    if not session.config.hardware.gpus:
        return {}
    found = {name: architecture_of(name, entry) for name, entry in session.config.models.items()}
    lora = session.config.train.lora
    return {name: shape_of(each, lora) for name, each in found.items() if each is not None}


def _on_gpus(session: Session, stages: Sequence[StagePlan], shapes: Mapping[str, Shape]) -> list[StagePlan]:
    """The stages with seconds by arithmetic; None where the architecture of their model is not known."""
    config = session.config
    names = {seat: config.model_of(seat) for seat in SEATS}
    asked = {
        **dict.fromkeys(("rehearse", "sharpen", "trial", "attack"), names["attacker"]),
        "answer": config.policy,
        "evaluate": config.policy,
        "train": config.policy,
        **dict.fromkeys(("fit critic", "validate", "critique", "revise"), names["critic"]),
    }
    return [
        row
        if row.stage not in asked
        else replace(
            row, seconds=stage_seconds(config, asked[row.stage], shapes, row.stage, row.rows, row.tokens)
        )
        for row in stages
    ]


def _print_memory(session: Session, shapes: Mapping[str, Shape]) -> None:
    """What one GPU holds while it answers and while it trains, and whether that is too much."""
    out, config = console(), session.config
    used = {config.model_of(seat) for seat in SEATS}
    gpu = config.hardware
    table = Table(title=f"One GPU of {gpu.memory_gb:.0f} GB, by arithmetic")
    for column in ("for", "model", "GB", "of which"):
        table.add_column(column, justify="right" if column == "GB" else "left")
    here = [name for name in sorted(used) if not is_remote(config.models[name])]
    needs = [(name, answering(config.models[name], shapes[name], gpu)) for name in here if name in shapes]
    phases = {"answer": needs, "train": []}
    if config.policy in shapes:
        phases["train"] = [(config.policy, training(config, shapes[config.policy]))]
    lines: list[str] = []
    for phase, rows in phases.items():
        for name, need in rows:
            parts = " + ".join(f"{part} {gb:.1f}" for part, gb in need.parts.items())
            table.add_row(phase, plain(name), f"{need.total:.1f}", parts)
            if need.parts.get("cache", 1.0) <= 0:
                lines.append(f"{name} does not fit: its share of the GPU holds the weights and no cache")
            elif tokens := room_for_tokens(need, shapes[name]):
                lines.append(f"The cache of {name} holds {tokens:,} tokens of context.")
        total = sum(need.total for _, need in rows)
        if total > gpu.memory_gb:
            lines.append(f"To {phase} does not fit: {total:.1f} of {gpu.memory_gb:.0f} GB; {MENDS[phase]}.")
    out.print(table)
    for name in sorted(used):
        if name not in shapes:
            lines.append(
                f"models.{name}: its config.json is not here; models.{name}.architecture can say it."
            )
        if is_remote(config.models[name]):
            lines.append(f"models.{name} is held by its server: what it takes there is not counted.")
    for line in lines:
        out.print(plain(line), highlight=False)


def _print_command(session: Session) -> None:
    """The command of the first training, where it is more than a process of our own."""
    config = session.config.train
    if config.launcher == "local":
        return
    line = shlex.join(command(config, session.run.iteration(1) / "train"))
    console().print(plain(f"Each training is started as:\n{line}"), soft_wrap=True)

"""Measures what the loop itself costs: time and memory of 1,000, 10,000 and 100,000 attacks without a model.

    python benchmarks/orchestration.py

Every stage from attack to pair runs as in a real run, on the real files, with the default chunk; engine and
roles answer at once. Each size has a process of its own, so that its peak memory is its own. Time should grow
with the number of attacks, memory should not: what stays is a hash of each query, by which its copies are
known: some hundred bytes. Needs Linux (/proc).
"""

import argparse
import gc
import json
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

# Run as a script, only benchmarks/ would be on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loop import stages
from loop.config import AttacksConfig, Config
from loop.engines import Prompt
from loop.engines.scripted import ScriptedEngine
from loop.interfaces import Context
from loop.partition import load_partition
from loop.records import Attack, Completion, Critique, Message, Seed, new_id
from loop.rundir import RunDir
from loop.session import Engines, Policy, Session
from roles.learner import SamplingLearner

SIZES = (1_000, 10_000, 100_000)
POLICY = Policy(0, None, "scripted")
FILES = ("attacks", "completions", "critiques", "revisions", "revision_critiques", "pairs")
WORDS = ("river", "garden", "bread", "window", "teacher", "market", "winter", "bicycle", "harvest", "bridge")


@dataclass(frozen=True)
class CountingAttacker:
    """One new query for each seed: a few words drawn, and a number that makes it the only one."""

    def attack(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[Attack]:
        """See loop.interfaces.Attacker."""
        rng = ctx.rng("words")
        return [self._attack(seed, rng, place, ctx) for place, seed in enumerate(seeds)]

    def _attack(self, seed: Seed, rng: random.Random, place: int, ctx: Context) -> Attack:
        text = f"{seed.prompt} with {' '.join(rng.choices(WORDS, k=8))} and {rng.getrandbits(48)}"
        return Attack(
            id=new_id("attack", text, place),
            iteration=1,
            seed_id=seed.id,
            family="scripted",
            strategy="counting",
            domain=seed.domain,
            category="",
            harmful=seed.harmful,
            turns=[Message(role="user", content=text)],
            model=ctx.model,
        )


@dataclass(frozen=True)
class InstantCritic:
    """Finds a revision good and a first answer poor, and revises each answer into one sentence."""

    def critique(
        self, attacks: Sequence[Attack], completions: Sequence[Completion], ctx: Context
    ) -> list[Critique]:
        """See loop.interfaces.Critic."""
        return [
            Critique(
                id=new_id("critique", row.id),
                completion_id=row.id,
                critic="InstantCritic",
                harm=0.5,
                quality=0.8 if row.origin == "revision" else 0.3,
                principle="none",
                rationale="The answer could be shorter and say what it rests on.",
            )
            for row in completions
        ]

    def revise(
        self,
        attacks: Sequence[Attack],
        completions: Sequence[Completion],
        critiques: Sequence[Critique],
        ctx: Context,
    ) -> list[Completion]:
        """See loop.interfaces.Critic."""
        return [
            Completion(
                id=new_id("completion", row.id, "revision"),
                attack_id=row.attack_id,
                sample=0,
                origin="revision",
                text=f"A better answer than the one of {len(row.text or '')} letters would be this one.",
                finish_reason="stop",
                tokens=14,
                model=ctx.model,
                parent_id=row.id,
            )
            for row in completions
        ]


def answer(prompt: Prompt, sample: int, seed: int) -> str:
    """Forty words, as a small model's answer is long."""
    return f"Here is answer {sample} of {seed}: " + "one word after the other, " * 7


def measure(attacks: int, folder: Path) -> dict[str, float]:
    """Runs the stages once; seconds, bytes written, peak resident memory in MiB, and seconds by stage."""
    session = _session(attacks, folder)
    load_partition()  # what every run pays once, whatever its size
    _forget_peak()
    start = time.perf_counter()
    critic = stages.fit_critic(session, 1, POLICY)
    stages.attack(session, 1, POLICY, critic)
    stages.answer(session, 1, POLICY)
    stages.critique(session, 1, POLICY, critic, of="completions.jsonl", to="critiques.jsonl")
    stages.measure(session, 1)
    stages.revise(session, 1, POLICY, critic)
    stages.critique(session, 1, POLICY, critic, of="revisions.jsonl", to="revision_critiques.jsonl")
    stages.pair(session, 1)
    seconds = time.perf_counter() - start
    written = [session.run.iteration(1) / f"{name}.jsonl" for name in FILES]
    made = json.loads((session.run.iteration(1) / "pair_audit.json").read_text(encoding="utf-8"))
    if sum(made["pairs"].values()) != attacks:
        raise SystemExit(
            f"{attacks} attacks made {made['pairs']} pairs: the benchmark measures something else"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    by_stage: dict[str, float] = {}
    for line in session.run.path("timings.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_stage[row["stage"]] = by_stage.get(row["stage"], 0.0) + row["seconds"]
    size = sum(path.stat().st_size for path in written)
    return {"attacks": attacks, "seconds": seconds, "mib": size / 2**20, "peak": peak, **by_stage}


def _forget_peak() -> None:
    """Lets the peak start anew: reading the data sets takes more for a moment than the stages ever do."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def _session(attacks: int, folder: Path) -> Session:
    harmful = Seed("seed-0", "safety", "take the last biscuit", "made up", harmful=True)
    benign = Seed("seed-1", "benign", "bake a biscuit", "made up", harmful=False)
    config = Config(
        name="orchestration", policy="scripted", attacks=AttacksConfig(attacks // 2, attacks // 2)
    )
    roles = {"attacker": CountingAttacker(), "learner": SamplingLearner(samples=1), "critic": InstantCritic()}
    seeds = {"harmful": [harmful], "benign": [benign], "toxicity": [], "legal": [], "critic": []}
    engines = Engines({}, {"scripted": ScriptedEngine(answer)})
    return Session(config=config, run=RunDir(folder), roles=roles, seeds=seeds, engines=engines)


def main() -> None:
    """Prints a row for each size and the ratios between them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sizes", nargs="*", type=int, default=SIZES, help="attacks of each run (even numbers)"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory(prefix="alignloop-orchestration-") as folder:
            print(json.dumps(measure(given.sizes[0], Path(folder))))
        return
    free = shutil.disk_usage(tempfile.gettempdir()).free
    print(f"{platform.machine()}, Python {platform.python_version()}, {free / 2**30:.0f} GiB free for files")
    found: list[dict[str, float]] = []
    for size in given.sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        )
        found.append(json.loads(done.stdout))
        _print(found[-1])
    for before, after in pairwise(found):
        more, longer = after["attacks"] / before["attacks"], after["seconds"] / before["seconds"]
        growth = after["peak"] - before["peak"]
        per = growth * 2**20 / (after["attacks"] - before["attacks"])
        print(f"{more:.0f} × the attacks: {longer:.1f} × the time, {growth:+.1f} MiB ({per:.0f} bytes each)")


def _print(row: dict[str, float]) -> None:
    attacks, seconds = row["attacks"], row["seconds"]
    by_stage = {name: row[name] for name in row if name not in ("attacks", "seconds", "mib", "peak")}
    told = ", ".join(f"{name} {spent / attacks * 1e6:.0f}" for name, spent in by_stage.items())
    print(
        f"{attacks:>8,.0f} attacks  {seconds:7.2f} s  {attacks / seconds:6,.0f} attacks/s  "
        f"{row['mib']:6.1f} MiB written  {row['peak']:6.1f} MiB peak  µs an attack: {told}",
        flush=True,
    )


if __name__ == "__main__":
    main()

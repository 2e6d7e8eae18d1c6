"""The stages of an iteration: each makes one file of records out of the files before it."""

import fcntl
import json
import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import Any

from loop.contamination import Guard
from loop.errors import AlignloopError, DataError, GuardStop
from loop.interfaces import Critic, FittedCritic, Usage
from loop.overlap import normalise
from loop.preferences import Candidates, pair_of
from loop.records import (
    Attack,
    Completion,
    Critique,
    Pair,
    Seed,
    Verdict,
    read_jsonl,
    stable_hash,
    write_jsonl,
)
from loop.rundir import append_line, grow, log, read_json, replacing, rows_so_far, write_json
from loop.session import Policy, Session, held_out_items

# glibc gives the memory of large tensors back after each use and faults it in again for the next; training
# on a CPU makes and drops gigabytes of activations in every step. benchmarks/dpo.py measures the difference.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}

Step = Callable[[list[Any], str, Usage], Iterable[Any]]


def _stage(
    session: Session, number: int, name: str, path: Path, inputs: Iterable[Any], total: int, step: Step
) -> None:
    """Makes `path` chunk by chunk; `step` gets a chunk, a name that keys its randomness, and the meter."""
    if path.exists():
        return
    with session.stage(number, name, total) as meter:

        def keyed(batch: list[Any], first: int) -> Iterable[Any]:
            return step(batch, f"{path.stem} {first}", meter.usage)

        grow(path, inputs, keyed, session.config.chunk, meter.advance)


def attack(session: Session, number: int, policy: Policy) -> None:
    """seeds → attacks.jsonl: distinct queries, none of them a held-out item."""
    folder, attacker = session.run.iteration(number), session.roles["attacker"]
    path = folder / "attacks.jsonl"
    if path.exists():
        return
    earlier = [session.run.iteration(done) / "attacks.jsonl" for done in range(1, number)]
    history: deque[Attack] = deque(maxlen=session.config.chunk)
    # A hash of each query, by which copies are known: all that grows with their number.
    seen: set[int] = set()
    for file in earlier:
        for attack in read_jsonl(file, Attack):
            history.append(attack)
            seen.add(_key(attack))
    seen.update(_key(attack) for attack in rows_so_far(path, Attack))
    guard = _guard(session, policy, number)

    def step(seeds: list[Seed], key: str, usage: Usage) -> Iterator[Attack]:
        ctx = session.context("attacker", policy, number, key, usage)
        made = [attack for attack in attacker.attack(seeds, list(history), ctx) if _key(attack) not in seen]
        meanings = guard.match_meaning(
            [attack.id for attack in made], "attack", [attack.turns[-1]["content"] for attack in made]
        )
        for attack, meaning in zip(made, meanings, strict=True):
            turns = [turn["content"] for turn in attack.turns]
            if found := guard.match(attack.id, "attack", turns) or meaning:
                append_line(folder / "contamination.jsonl", vars(found))
            elif _key(attack) not in seen:
                seen.add(_key(attack))
                yield attack

    wanted = _wanted(session)
    _stage(session, number, "attack", path, _slots(session, number, wanted), sum(wanted.values()), step)


def _guard(session: Session, policy: Policy, number: int) -> Guard:
    """What keeps attacks and pairs apart from the held-out items of both halves."""
    layer, items = session.config.heldout.embedding_layer, held_out_items(session.config)
    if layer is None:
        return Guard(items)
    ctx = session.context("attacker", policy, number, "guard", Usage())
    return Guard(
        items, lambda texts: ctx.hidden_states(texts, layer), session.config.heldout.embedding_cosine
    )


def _key(attack: Attack) -> int:
    return stable_hash([normalise(turn["content"]) for turn in attack.turns], attack.opener)


_USE = {"safety": "harmful", "benign": "benign", "toxicity": "toxicity", "legal": "legal"}


def _wanted(session: Session) -> dict[str, int]:
    """How many attacks of each domain are asked for; none where there are no seeds for it."""
    counts: dict[str, int] = asdict(session.config.attacks)
    return {domain: count for domain, count in counts.items() if session.seeds[_USE[domain]]}


def _slots(session: Session, number: int, wanted: dict[str, int]) -> Iterator[Seed]:
    """The seed of each attack that is asked for: every seed in turn, the domains mixed."""

    def places(domain: str, count: int) -> Iterator[tuple[float, str, int]]:
        return ((((place + 0.5) / count), domain, place) for place in range(count))

    for _, domain, place in merge(*(places(domain, count) for domain, count in wanted.items())):
        seeds = session.seeds[_USE[domain]]
        yield seeds[((number - 1) * wanted[domain] + place) % len(seeds)]


def answer(session: Session, number: int, policy: Policy) -> None:
    """attacks → completions.jsonl: what the policy says to each."""
    folder = session.run.iteration(number)

    def step(attacks: list[Attack], key: str, usage: Usage) -> Sequence[Completion]:
        return session.roles["learner"].answer(
            attacks, session.context("learner", policy, number, key, usage)
        )

    attacks = folder / "attacks.jsonl"
    _stage(
        session,
        number,
        "answer",
        folder / "completions.jsonl",
        read_jsonl(attacks, Attack),
        _rows(attacks),
        step,
    )


def fit_critic(session: Session, number: int, policy: Policy) -> Critic:
    """The critic of this iteration, fitted on the human-labelled seeds where it learns from them.

    What it learned is kept in critic/critic.json, as plain fields, and read back on a rerun.
    """
    critic = session.roles["critic"]
    if not isinstance(critic, FittedCritic):
        return critic
    path = session.run.iteration(number) / "critic" / "critic.json"
    if not path.exists():
        with session.stage(number, "fit critic", len(session.seeds["critic"])) as meter:
            ctx = session.context("critic", policy, number, "fit critic", meter.usage)
            fitted: Any = critic.fit(session.seeds["critic"], ctx)
            write_json(path, asdict(fitted))
            meter.advance(len(session.seeds["critic"]))
    fields: dict[str, Any] = read_json(path)
    # JSON knows no tuples: fields that are tuples in the role as configured become tuples again.
    restored = {
        key: tuple(value) if isinstance(getattr(critic, key), tuple) else value
        for key, value in fields.items()
    }
    changed: Any = replace(critic, **restored)  # pyright: ignore[reportArgumentType]
    return changed


def critique(session: Session, number: int, policy: Policy, critic: Critic, of: str, to: str) -> None:
    """attacks + completions (or revisions) → critiques, in the same order."""
    folder = session.run.iteration(number)

    def step(batch: list[tuple[Attack, Completion]], key: str, usage: Usage) -> Sequence[Critique]:
        ctx = session.context("critic", policy, number, key, usage)
        attacks, completions = zip(*batch, strict=True)
        return critic.critique(attacks, completions, ctx)

    inputs = ((attack, row) for attack, (rows,) in _joined(folder, [of]) for row in rows)
    _stage(session, number, "critique", folder / to, inputs, _rows(folder / of), step)


def revise(session: Session, number: int, policy: Policy, critic: Critic) -> None:
    """attacks + completions + critiques → revisions.jsonl: further candidates."""
    folder = session.run.iteration(number)

    def step(groups: list[Candidates], key: str, usage: Usage) -> Sequence[Completion]:
        rows = [
            (group.attack, completion, critique)
            for group in groups
            for completion, critique in zip(group.completions, group.critiques, strict=True)
        ]
        attacks, completions, critiques = zip(*rows, strict=True)
        return critic.revise(
            attacks, completions, critiques, session.context("critic", policy, number, key, usage)
        )

    inputs = _candidates(folder, [("completions.jsonl", "critiques.jsonl")])
    _stage(
        session, number, "revise", folder / "revisions.jsonl", inputs, _rows(folder / "attacks.jsonl"), step
    )


def pair(session: Session, number: int) -> None:
    """All candidates with their critiques → pairs.jsonl, and in pair_audit.json why the rest made none."""
    folder, rules = session.run.iteration(number), session.config.pairs
    if (folder / "pair_audit.json").exists():
        return
    dropped: Counter[str] = Counter()
    made: Counter[str] = Counter()
    seen: set[int] = set()
    guard = Guard(held_out_items(session.config))
    files = [("completions.jsonl", "critiques.jsonl"), ("revisions.jsonl", "revision_critiques.jsonl")]

    def pairs() -> Iterator[Pair]:
        for group in _candidates(folder, files):
            outcome = pair_of(
                group,
                system=session.config.system,
                min_margin=rules.min_margin,
                max_length_ratio=rules.max_length_ratio,
            )
            if isinstance(outcome, Pair) and stable_hash(outcome.id) in seen:
                outcome = "duplicate of another pair"
            if isinstance(outcome, Pair):
                texts = [*(turn["content"] for turn in group.attack.turns), outcome.chosen, outcome.rejected]
                if found := guard.match(outcome.id, "pair", texts):
                    append_line(folder / "contamination.jsonl", vars(found))
                    outcome = "near a held-out item"
            if isinstance(outcome, str):
                dropped[outcome] += 1
            else:
                seen.add(stable_hash(outcome.id))
                made[outcome.domain] += 1
                yield outcome
            meter.advance(1)

    with session.stage(number, "pair", _rows(folder / "attacks.jsonl")) as meter:
        with replacing(folder / "pairs.jsonl") as beside:
            write_jsonl(beside, pairs())
        write_json(
            folder / "pair_audit.json",
            {
                "attacks": meter.rows,
                "pairs": dict(sorted(made.items())),
                "dropped": dict(sorted(dropped.items())),
                "contaminated": _contaminated(folder),
            },
        )


def _contaminated(folder: Path) -> dict[str, int]:
    """How many attacks and pairs came too near a held-out item; the file that lists them loses repetitions.

    A killed process may have noted a row that the one after it met again.
    """
    path = folder / "contamination.jsonl"
    lines = list(dict.fromkeys(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []
    with replacing(path) as beside:
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    counts = Counter(f"{row['what']}: {row['how']}" for row in map(json.loads, lines))
    return dict(sorted(counts.items()))


def train(session: Session, number: int, policy: Policy) -> None:
    """pairs → adapter/: DPO in a process of its own, so that the memory of the engines comes back first."""
    from loop.training import TrainJob

    folder, config = session.run.iteration(number), session.config.train
    if (folder / "adapter").exists():
        return
    audit: dict[str, Any] = read_json(folder / "pair_audit.json")
    if not sum(audit["pairs"].values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in audit["dropped"].items()) or "no attacks"
        raise GuardStop(f"iteration {number} made no preference pair ({reasons}); nothing to train on")
    session.engines.close()
    work = folder / "train"
    work.mkdir(exist_ok=True)
    first = 1 if config.replay else number
    pairs = [row for k in range(first, number + 1) for row in read_jsonl(_pairs_of(session, k), Pair)]
    with replacing(work / "pairs.jsonl") as beside:
        write_jsonl(beside, {row.id: row for row in pairs}.values())
    job = TrainJob(
        base=str(session.weights()),
        pairs=str(work / "pairs.jsonl"),
        out=str(folder / "adapter"),
        start_adapter=policy.adapter if config.start_from == "policy" else None,
        reference="start" if config.reference == "start" else "base",
        dpo=config.dpo,
        lora=config.lora,
        seed=stable_hash(session.config.seed, number, "train") % 2**31,
        lineage={"base": session.digests[session.config.policy], "parent": policy.name, "iteration": number},
        canary=pairs[0].prompt,
    )
    write_json(work / "job.json", asdict(job))
    with session.stage(number, "train", len(pairs)) as meter, _alone(session, work) as lock:
        command = [sys.executable, "-m", "loop.training", str(work)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, pass_fds=(lock,), env={**_KEEP_MEMORY, **os.environ}
        )
        if done.returncode != 0:
            raise AlignloopError(
                f"iteration {number}: training ended with exit code {done.returncode}, its message is above; "
                "the same command takes it up at its last checkpoint"
            )
        meter.usage.seconds = meter.elapsed()
        meter.advance(len(pairs))


@contextmanager
def _alone(session: Session, work: Path) -> Generator[int]:
    """Waits until no other process trains here; the training process inherits the lock that is yielded.

    A training process outlives a run that was killed: it is waited for, and its adapter taken up.
    """
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(session.run, "an earlier training process is still at work here; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _pairs_of(session: Session, number: int) -> Path:
    return session.run.iteration(number) / "pairs.jsonl"


def evaluate(session: Session, number: int, policy: Policy) -> None:
    """The held-out dev half → heldout/verdicts.jsonl and heldout/results.json."""
    from loop.heldout.asking import Asking, Subject
    from loop.heldout.cards import write_cards
    from loop.heldout.evaluation import choose, evaluate
    from loop.heldout.judging import load_judges
    from loop.heldout.suites import find_suites

    folder, config = session.run.iteration(number) / "heldout", session.config.heldout
    if (folder / "results.json").exists():
        return
    suites = find_suites(config.suites)
    items = choose(suites.values(), "dev", config.limit)
    judges = load_judges(config.judges, {kind for suite in suites.values() for kind in suite.judges})
    if not session.run.path("judges.json").exists():
        write_cards(session.run.root, judges)
    with session.stage(number, "evaluate", len(items)) as meter:
        engine = session.metered(session.config.policy, meter.usage)
        evaluate(
            folder,
            suites,
            items,
            Subject(engine, policy.adapter, policy.name, session.config.system),
            Asking(judges, config.max_tokens, config.samples, session.config.seed),
            meter.advance,
        )


def gate(session: Session, number: int, last: Policy) -> bool:
    """Whether the policy of this iteration is promoted; gate.json says why."""
    from loop.heldout.gate import decide
    from loop.heldout.suites import find_suites

    path = session.run.iteration(number) / "gate.json"
    if not path.exists():
        with session.stage(number, "gate", 1) as meter:
            verdicts = {
                k: list(read_jsonl(session.run.iteration(k) / "heldout" / "verdicts.jsonl", Verdict))
                for k in {0, last.number, number}
            }
            decision = decide(
                verdicts[number],
                verdicts[last.number],
                verdicts[0],
                session.config.gate.primary,
                session.config.gate.margins,
                session.config.seed,
                find_suites(session.config.heldout.suites),
            )
            write_json(path, asdict(decision))
            meter.advance(1)
    return bool(read_json(path)["promoted"])


def _rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _joined(folder: Path, names: Sequence[str]) -> Iterator[tuple[Attack, list[list[Completion]]]]:
    """Each attack with its rows of each file; all are in the order of the attacks.

    Raises DataError for a row whose attack isn't there, or stands elsewhere.
    """
    streams = [groupby(read_jsonl(folder / name, Completion), lambda row: row.attack_id) for name in names]
    heads = [next(stream, None) for stream in streams]
    for attack in read_jsonl(folder / "attacks.jsonl", Attack):
        found: list[list[Completion]] = []
        for at, head in enumerate(heads):
            if head is not None and head[0] == attack.id:
                found.append(list(head[1]))
                heads[at] = next(streams[at], None)
            else:
                found.append([])
        yield attack, found
    for name, head in zip(names, heads, strict=True):
        if head is not None:
            raise _misplaced(folder / name, f"{head[0]} is no attack of attacks.jsonl, or not in its order")


def _candidates(folder: Path, files: Sequence[tuple[str, str]]) -> Iterator[Candidates]:
    """Each attack with all its answers and their critiques, one attack in memory at a time.

    Raises DataError where critiques and answers don't go together row by row.
    """
    critiques = [read_jsonl(folder / name, Critique) for _, name in files]

    def judged(completion: Completion, at: int) -> Critique:
        critique = next(critiques[at], None)
        if critique is None or critique.completion_id != completion.id:
            name = files[at][1]
            raise _misplaced(folder / name, f"the critique of {completion.id} is not where it belongs")
        return critique

    for attack, groups in _joined(folder, [name for name, _ in files]):
        completions = [row for group in groups for row in group]
        if completions:
            found = [judged(row, at) for at, group in enumerate(groups) for row in group]
            yield Candidates(attack, completions, found)


def _misplaced(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: {reason}; delete the file, and the same command makes it anew")

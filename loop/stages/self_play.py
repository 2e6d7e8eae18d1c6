"""The attacker is trained against the policy that it is to attack, and passes or stays as it was."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loop.diversity import diversity
from loop.engines import Engine
from loop.interfaces import Critic, Usage
from loop.records import Attack, Pair, Seed, read_jsonl
from loop.rundir import log, write_json
from loop.session import Policy, Session
from loop.stages.archiving import remembered
from loop.stages.attacking import hardest_first, slots, talking_context, wanted
from loop.stages.files import make
from loop.stages.training import train_adapter

NEUTRAL = "A request: "
"""What stands before a query when it is measured how unexpected its words are."""


@dataclass(frozen=True)
class Trial:
    """What an attacker makes of the same seeds before and after its training.

    `valid`: the share of seeds for which it wrote a distinct query of their kind. `self_bleu`: how alike its
    harmful queries are. `surprise`: nats a word of them in the eyes of the attacker as it was given; null
    where its engine has no log-probabilities.
    """

    valid: float
    self_bleu: float | None
    surprise: float | None


def sharpen(session: Session, number: int, policy: Policy, critic: Critic) -> None:
    """seeds → attacker/pairs.jsonl → attacker/adapter/, and in attacker/gate.json whether it is used.

    Of goals for one seed, what broke `policy` is preferred to what did not. Training goes on from the latest
    attacker, but compares with the untrained one: what is learned adds up, and drift is held.
    """
    plan, folder = session.config.attacks.self_play, session.run.iteration(number) / "attacker"
    if not plan.rehearsals or (folder / "gate.json").exists():
        return
    _rehearse(session, number, policy, critic, folder / "pairs.jsonl")
    pairs = list(read_jsonl(folder / "pairs.jsonl", Pair))
    if len(pairs) < plan.min_pairs:
        reason = f"{len(pairs)} pairs, fewer than attacks.self_play.min_pairs {plan.min_pairs}"
        _decide(session, number, folder, [reason], {"pairs": len(pairs)})
        return
    before = session.attackers(number - 1)[-1]
    if not (folder / "adapter").exists():
        train_adapter(
            session,
            number,
            folder,
            pairs,
            base=session.config.model_of("attacker"),
            start=before,
            reference="base",
            parent=before.name,
            stage="sharpen",
            over=plan.dpo,
        )
    after = session.attacker(number)
    with session.stage(number, "trial", 2 * plan.rehearsals) as meter:
        trials = [_trial(session, number, policy, critic, writer, meter.usage) for writer in (before, after)]
        meter.advance(2 * plan.rehearsals)
    found = {"pairs": len(pairs), "before": asdict(trials[0]), "after": asdict(trials[1])}
    _decide(session, number, folder, losses(trials[0], trials[1], plan.max_loss), found)


def _rehearse(session: Session, number: int, policy: Policy, critic: Critic, path: Path) -> None:
    writer, attacker = session.attackers(number - 1)[-1], session.roles["attacker"]
    history = hardest_first(remembered(session, number))

    def step(seeds: list[Seed], key: str, usage: Usage) -> Iterable[Pair]:
        ctx = talking_context(session, number, policy, critic, f"rehearse {key}", usage, writer)
        return attacker.rehearse(seeds, history, ctx)

    seeds = _seeds(session, number)
    make(session, number, "rehearse", path, seeds, len(seeds), step)


def _seeds(session: Session, number: int) -> list[Seed]:
    """As many harmful as harmless ones, which an attacker tells from each other."""
    counts: dict[str, int] = dict.fromkeys(("safety", "benign"), session.config.attacks.self_play.rehearsals)
    return list(slots(session, number, wanted(session, counts)))


def _trial(
    session: Session, number: int, policy: Policy, critic: Critic, writer: Policy, usage: Usage
) -> Trial:
    """What `writer` makes of the seeds."""
    seeds = _seeds(session, number)
    ctx = talking_context(session, number, policy, critic, "trial", usage, writer)
    attacks: Sequence[Attack] = session.roles["attacker"].attack(seeds, [], ctx)
    clear = [attack for attack in attacks if attack.harmful is not None]
    queries = [attack.asked for attack in clear if attack.harmful]
    engine = session.metered(session.config.model_of("attacker"), usage)
    return Trial(len(clear) / len(seeds), diversity(queries)["self_bleu"], _surprise(queries, engine))


def _surprise(queries: Sequence[str], untrained: Engine) -> float | None:
    """Nats a word that `queries` cost the untrained attacker: gibberish costs most."""
    if not queries or "logprobs" not in untrained.capabilities:
        return None
    found = untrained.logprobs([NEUTRAL] * len(queries), [[query] for query in queries])
    return -sum(row[0] for row in found) / sum(len(query.split()) for query in queries)


def losses(before: Trial, after: Trial, allowed: float) -> list[str]:
    """Why an attacker that came from `before` must not be used: what it lost more of than `allowed`."""
    found: list[str] = []
    if after.valid < before.valid - allowed:
        found.append(f"valid queries fell from {before.valid:.2f} to {after.valid:.2f} of the seeds")
    if (after.self_bleu or 0.0) > (before.self_bleu or 0.0) + allowed:
        found.append(f"self-BLEU rose from {before.self_bleu or 0.0:.2f} to {after.self_bleu:.2f}")
    if after.surprise and before.surprise and after.surprise > before.surprise * (1 + allowed):
        found.append(f"surprise rose from {before.surprise:.2f} to {after.surprise:.2f} nats a word")
    return found


def _decide(
    session: Session, number: int, folder: Path, reasons: Sequence[str], found: Mapping[str, Any]
) -> None:
    write_json(folder / "gate.json", {"passed": not reasons, "reasons": list(reasons), **found})
    if reasons:
        log(session.run, f"iteration {number}: the attacker stays as it was: {'; '.join(reasons)}")

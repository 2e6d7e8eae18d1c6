"""seeds → attacks → completions: what the attacker asks and what the policy says to it."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from heapq import merge

from loop.contamination import Guard
from loop.interfaces import Usage
from loop.overlap import normalise
from loop.records import Attack, Completion, Seed, read_jsonl, stable_hash
from loop.rundir import append_line, rows_so_far
from loop.session import Policy, Session, held_out_items
from loop.stages.files import make, rows


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
    make(session, number, "attack", path, _slots(session, number, wanted), sum(wanted.values()), step)


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
    make(
        session,
        number,
        "answer",
        folder / "completions.jsonl",
        read_jsonl(attacks, Attack),
        rows(attacks),
        step,
    )

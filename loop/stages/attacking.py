"""seeds → attacks → completions: what the attacker asks and what the policy says to it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from heapq import merge
from itertools import chain
from typing import Any

from loop.archive import Cell, Entry, retry
from loop.contamination import Guard
from loop.interfaces import Context, Critic, Usage
from loop.overlap import attack_key
from loop.prompts import conversation
from loop.records import Attack, Completion, Message, Seed, new_id, read_jsonl
from loop.rundir import append_line, rows_so_far
from loop.session import Policy, Session, held_out_items
from loop.stages.archiving import RETRIED, remembered
from loop.stages.files import make, rows


def attack(session: Session, number: int, policy: Policy, critic: Critic) -> None:
    """seeds → attacks.jsonl: distinct queries, none of them a held-out item.

    First come those of the archive that broke an earlier policy, asked again; then what the attacker writes,
    who is handed the archive and may talk with the policy and hear the critic. Of a trained attacker the
    latest writes half, and those before it the rest.
    """
    folder, attacker = session.run.iteration(number), session.roles["attacker"]
    path = folder / "attacks.jsonl"
    if path.exists():
        return
    found = remembered(session, number)
    history = hardest_first(found)
    pool = session.attackers(number)
    again = [_again(attack, number) for attack in retry(found, session.config.attacks.retry)]
    earlier = [session.run.iteration(done) / "attacks.jsonl" for done in range(1, number)]
    seen = {attack_key(attack) for file in earlier for attack in read_jsonl(file, Attack)}
    seen.update(attack_key(attack) for attack in rows_so_far(path, Attack))
    guard = _guard(session, policy, number)

    def step(batch: list[Seed | Attack], key: str, usage: Usage) -> Iterator[Attack]:
        seeds = [entry for entry in batch if isinstance(entry, Seed)]
        written = [
            row
            for writer, share in shared(seeds, pool)
            for row in attacker.attack(
                share, history, talking_context(session, number, policy, critic, key, usage, writer)
            )
        ]
        made = [attack for attack in written if attack_key(attack) not in seen]
        meanings = guard.match_meaning(
            [attack.id for attack in made], "attack", [attack.asked for attack in made]
        )
        yield from (entry for entry in batch if isinstance(entry, Attack))
        for attack, meaning in zip(made, meanings, strict=True):
            texts = [attack.asked, *(turn["content"] for turn in attack.turns)]
            if found := guard.match(attack.id, "attack", texts) or meaning:
                append_line(folder / "contamination.jsonl", vars(found))
            elif attack_key(attack) not in seen:
                seen.add(attack_key(attack))
                yield attack

    counts = wanted(session, asdict(session.config.attacks))
    inputs = chain(again, slots(session, number, counts))
    make(session, number, "attack", path, inputs, len(again) + sum(counts.values()), step)


def _again(attack: Attack, number: int) -> Attack:
    """An attack of the archive, to be answered by this iteration's policy."""
    strategy = attack.strategy.removeprefix(RETRIED)
    return replace(
        attack,
        id=new_id("attack", number, attack.id),
        iteration=number,
        parent_id=attack.id,
        strategy=RETRIED + strategy,
    )


def hardest_first(archive: Mapping[Cell, Entry]) -> list[Attack]:
    """What an attacker is handed as its history."""
    return [entry.attack for entry in sorted(archive.values(), key=lambda one: -one.difficulty)]


def shared(seeds: Sequence[Seed], pool: Sequence[Policy]) -> list[tuple[Policy, list[Seed]]]:
    """Who of the attackers in `pool` writes for which seeds: of each domain the latest for every second one.

    The others take turns in between, so that what an attacker unlearned is asked all the same.
    """
    *others, latest = pool
    turns = [writer for other in others for writer in (latest, other)] or [latest]
    shares: dict[int, list[Seed]] = {writer.number: [] for writer in pool}
    place: Counter[str] = Counter()
    for seed in seeds:
        shares[turns[place[seed.domain] % len(turns)].number].append(seed)
        place[seed.domain] += 1
    return [(writer, shares[writer.number]) for writer in pool if shares[writer.number]]


def talking_context(
    session: Session,
    number: int,
    policy: Policy,
    critic: Critic,
    key: str,
    usage: Usage,
    writer: Policy,
) -> Context:
    """The context of the attacker `writer`, the policy's answers and the critic's critiques in its reach."""
    learner = session.context("learner", policy, number, f"{key} respond", usage)
    listener = session.context("critic", policy, number, f"{key} criticise", usage)

    return replace(
        session.context("attacker", policy, number, key, usage, writer),
        respond=lambda talks: responses(talks, learner),
        criticise=lambda attacks, completions: critic.critique(attacks, completions, listener),
    )


def responses(talks: Sequence[Sequence[Message]], ctx: Context) -> list[str | None]:
    """What the model of `ctx` answers to each list of turns, null where no answer could be had."""
    chats = [conversation(ctx.system, turns) for turns in talks]
    return [sample.text for (sample,) in ctx.generate(chats)] if chats else []


def _guard(session: Session, policy: Policy, number: int) -> Guard:
    """What keeps attacks and pairs apart from the held-out items of both halves."""
    layer, items = session.config.heldout.embedding_layer, held_out_items(session.config)
    if layer is None:
        return Guard(items)
    ctx = session.context("attacker", policy, number, "guard", Usage())
    return Guard(
        items, lambda texts: ctx.hidden_states(texts, layer), session.config.heldout.embedding_cosine
    )


_USE = {"safety": "harmful", "benign": "benign", "toxicity": "toxicity", "legal": "legal"}


def wanted(session: Session, counts: Mapping[str, Any]) -> dict[str, int]:
    """How many attacks of each domain are asked for; none where there are no seeds for it."""
    return {domain: counts[domain] for domain, use in _USE.items() if session.seeds[use] and domain in counts}


def slots(session: Session, number: int, counts: Mapping[str, int]) -> Iterator[Seed]:
    """The seed of each attack that is asked for: every seed in turn, the domains mixed."""

    def places(domain: str, count: int) -> Iterator[tuple[float, str, int]]:
        return ((((place + 0.5) / count), domain, place) for place in range(count))

    for _, domain, place in merge(*(places(domain, count) for domain, count in counts.items())):
        seeds = session.seeds[_USE[domain]]
        yield seeds[((number - 1) * counts[domain] + place) % len(seeds)]


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

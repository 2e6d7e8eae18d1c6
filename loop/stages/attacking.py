"""seeds → attacks → completions: what the attacker asks and what the policy says to it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from heapq import merge
from itertools import chain

from loop.archive import archive_of, retry
from loop.contamination import Guard
from loop.interfaces import Context, Critic, Usage
from loop.overlap import attack_key
from loop.prompts import conversation
from loop.records import Attack, Completion, Message, Seed, new_id, read_jsonl
from loop.rundir import append_line, rows_so_far
from loop.session import Policy, Session, held_out_items
from loop.stages.archiving import RETRIED, imported_archive
from loop.stages.files import make, rows


def attack(session: Session, number: int, policy: Policy, critic: Critic) -> None:
    """seeds → attacks.jsonl: distinct queries, none of them a held-out item.

    First come those of the archive that broke an earlier policy, asked again; then what the attacker writes,
    who is handed the archive and may talk with the policy and hear the critic.
    """
    folder, attacker = session.run.iteration(number), session.roles["attacker"]
    path = folder / "attacks.jsonl"
    if path.exists():
        return
    found = archive_of(session.run, number, imported_archive(session))
    history = [entry.attack for entry in sorted(found.values(), key=lambda one: -one.difficulty)]
    again = [_again(attack, number) for attack in retry(found, session.config.attacks.retry)]
    earlier = [session.run.iteration(done) / "attacks.jsonl" for done in range(1, number)]
    seen = {attack_key(attack) for file in earlier for attack in read_jsonl(file, Attack)}
    seen.update(attack_key(attack) for attack in rows_so_far(path, Attack))
    guard = _guard(session, policy, number)

    def step(batch: list[Seed | Attack], key: str, usage: Usage) -> Iterator[Attack]:
        ctx = _context(session, number, policy, critic, key, usage)
        seeds = [entry for entry in batch if isinstance(entry, Seed)]
        written = attacker.attack(seeds, history, ctx) if seeds else []
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

    wanted = _wanted(session)
    inputs = chain(again, _slots(session, number, wanted))
    make(session, number, "attack", path, inputs, len(again) + sum(wanted.values()), step)


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


def _context(
    session: Session, number: int, policy: Policy, critic: Critic, key: str, usage: Usage
) -> Context:
    """The attacker's context, with the policy's answers and the critic's critiques within its reach."""
    learner = session.context("learner", policy, number, f"{key} respond", usage)
    listener = session.context("critic", policy, number, f"{key} criticise", usage)

    return replace(
        session.context("attacker", policy, number, key, usage),
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


def _wanted(session: Session) -> dict[str, int]:
    """How many attacks of each domain are asked for; none where there are no seeds for it."""
    counts: dict[str, int] = asdict(session.config.attacks)
    return {domain: counts[domain] for domain, use in _USE.items() if session.seeds[use]}


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

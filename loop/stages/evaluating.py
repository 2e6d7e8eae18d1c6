"""A policy on the held-out dev half, and whether it is promoted."""

from dataclasses import asdict

from loop.records import Verdict, read_jsonl
from loop.rundir import read_json, write_json
from loop.session import Policy, Session


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

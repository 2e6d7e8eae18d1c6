"""The loop: what happens in an iteration, and in which order.

    seeds → attack → answer → critique → revise → pair → train → evaluate → gate
                        ↑                                                    │
                        └──────────── the promoted policy ←──────────────────┘

After "The Superalignment of Superhuman Intelligence with Large Language Models": the attacker finds what
is still wrong, the critic says so and shows what would be better, the learner learns the difference. Each
stage makes one file, and is done when that file is there: rerunning a run resumes it.
"""

from loop import stages
from loop.session import Session
from loop.tracking import track


def improve(session: Session) -> None:
    """The baseline, then one iteration after the other."""
    stages.evaluate(session, 0, session.policy(0))
    track(session.run, session.config, 0)
    for number in range(1, session.config.iterations + 1):
        iterate(session, number)
        track(session.run, session.config, number)
    session.engines.close()


def iterate(session: Session, number: int) -> bool:
    """One turn of the loop; True when its policy is promoted."""
    policy = session.policy_before(number)

    critic = stages.fit_critic(session, number, policy)
    stages.validate(session, number, policy, critic)

    stages.sharpen(session, number, policy, critic)
    stages.attack(session, number, policy, critic)
    stages.answer(session, number, policy)

    stages.critique(session, number, policy, critic, of="completions.jsonl", to="critiques.jsonl")
    stages.measure(session, number)
    stages.revise(session, number, policy, critic)
    stages.critique(session, number, policy, critic, of="revisions.jsonl", to="revision_critiques.jsonl")

    stages.pair(session, number)
    stages.check_pairs(session, number)
    stages.train(session, number, policy)

    stages.evaluate(session, number, session.policy(number))
    return stages.gate(session, number, policy)

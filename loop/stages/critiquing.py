"""completions → critiques → revisions, by a critic that was measured first."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from loop.errors import GuardStop
from loop.interfaces import Critic, FittedCritic, Usage
from loop.labels import labels_path, read_labels
from loop.partition import load_partition
from loop.preferences import Candidates
from loop.records import Attack, Completion, Critique, write_jsonl
from loop.rundir import log, read_json, replacing, write_json
from loop.session import Policy, Session, write_ledger
from loop.stages.files import candidates, joined, make, rows


def fit_critic(session: Session, number: int, policy: Policy) -> Critic:
    """The critic of this iteration, fitted on the human labels there are: the seeds' and those given since.

    What it learned is kept in critic/critic.json, as plain fields, and read back on a rerun; which labels
    it learned from stands in critic/labels.jsonl, and so in the ledger.
    """
    critic = session.roles["critic"]
    if not isinstance(critic, FittedCritic):
        return critic
    folder = session.run.iteration(number) / "critic"
    if not (folder / "critic.json").exists():
        labels = [*session.seeds["critic"], *read_labels(labels_path(session.run))]
        with session.stage(number, "fit critic", len(labels)) as meter:
            ctx = session.context("critic", policy, number, "fit critic", meter.usage)
            fitted: Any = critic.fit(labels, ctx)
            with replacing(folder / "labels.jsonl") as beside:
                write_jsonl(beside, labels)
            write_json(folder / "critic.json", asdict(fitted))
            meter.advance(len(labels))
        write_ledger(session)
    fields: dict[str, Any] = read_json(folder / "critic.json")
    # JSON knows no tuples: fields that are tuples in the role as configured become tuples again.
    restored = {
        key: tuple(value) if isinstance(getattr(critic, key), tuple) else value
        for key, value in fields.items()
    }
    changed: Any = replace(critic, **restored)  # pyright: ignore[reportArgumentType]
    return changed


def validate(session: Session, number: int, policy: Policy, critic: Critic) -> None:
    """Labelled answers that it has not seen → critic/validity.json; a critic under the floor ends the run.

    The same rows are scored in every iteration, so that a critic that gets worse is noticed.
    """
    from loop.validity import drift, measure_critic

    path, floor = session.run.iteration(number) / "critic" / "validity.json", session.config.validity
    labelled = load_partition().seeds["validation"]
    if not path.exists():
        with session.stage(number, "validate", len(labelled)) as meter:
            ctx = session.context("critic", policy, number, "validate", meter.usage)
            found = measure_critic(critic, labelled, ctx)
            first = session.run.iteration(1) / "critic" / "validity.json"
            if number > 1 and first.exists():
                change = drift(read_json(first)["scores"], found["scores"], labelled)
                alarm = change.high is not None and change.high < 0
                found["drift"] = {**vars(change), "alarm": alarm}
                if alarm:
                    fall = -(change.value or 0.0)
                    log(session.run, f"iteration {number}: the critic's AUC fell by {fall:.3f}")
            write_json(path, found)
            meter.advance(len(labelled))
    found = read_json(path)
    auc = 0.5 if found["auc"] is None else found["auc"]
    if auc < floor.auc or found["coverage"] < floor.coverage:
        raise GuardStop(
            f"iteration {number}: the critic agrees too little with people to be trained on: AUC {auc:.3f} "
            f"(validity.auc {floor.auc}) and a verdict on {found['coverage']:.0%} (validity.coverage "
            f"{floor.coverage}) of {found['n']} human-labelled answers; more labels help (seeds.critic, "
            f"alignloop label), or another critic; {path} has the figures"
        )


def critique(session: Session, number: int, policy: Policy, critic: Critic, of: str, to: str) -> None:
    """attacks + completions (or revisions) → critiques, in the same order."""
    folder = session.run.iteration(number)

    def step(batch: list[tuple[Attack, Completion]], key: str, usage: Usage) -> Sequence[Critique]:
        ctx = session.context("critic", policy, number, key, usage)
        attacks, completions = zip(*batch, strict=True)
        return critic.critique(attacks, completions, ctx)

    inputs = ((attack, row) for attack, (rows,) in joined(folder, [of]) for row in rows)
    make(session, number, "critique", folder / to, inputs, rows(folder / of), step)


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

    inputs = candidates(folder, [("completions.jsonl", "critiques.jsonl")])
    make(session, number, "revise", folder / "revisions.jsonl", inputs, rows(folder / "attacks.jsonl"), step)

"""attacks and critiques → what the attacks achieved, and the archive that the next iteration begins with."""

import json
from collections.abc import Sequence
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.archive import Cell, Entry, archive_of, coverage, enter, entries_of, still_broken, write_archive
from loop.attack_measures import measure_attacks
from loop.errors import GuardStop
from loop.form import audit_form
from loop.interfaces import Usage
from loop.records import stable_hash
from loop.rundir import log, read_json, write_json
from loop.session import Session
from loop.stages.files import rows

if TYPE_CHECKING:
    import numpy as np

MEASURED = 5000  # attacks that the figures are of, at most: what bounds memory

RETRIED = "retried/"
"""What the strategy of an attack begins with that is asked again out of the archive."""


def imported_archive(session: Session) -> Path | None:
    """The archive of another run that this one begins with."""
    return Path(session.config.attacks.archive) if session.config.attacks.archive else None


def remembered(session: Session, number: int) -> dict[Cell, Entry]:
    """What the attacker of an iteration begins with: nothing without `attacks.memory`."""
    if not session.config.attacks.memory:
        return {}
    return archive_of(session.run, number, imported_archive(session))


def measure(session: Session, number: int) -> None:
    """→ attack_measures.json and, beside the iterations, archive.jsonl.

    Attacks that can be told harmful by their form alone are an alarm; too few distinct ones end the run.
    """
    folder = session.run.iteration(number)
    path, floor = folder / "attack_measures.json", session.config.attacks.min_distinct
    if not path.exists():
        with session.stage(number, "measure", rows(folder / "attacks.jsonl")) as meter:
            before = archive_of(session.run, number, imported_archive(session))
            after = enter(before, entries_of(folder))
            entries = nsmallest(MEASURED, entries_of(folder), key=lambda one: stable_hash(one.attack.id))
            harmful = session.seeds["harmful"]
            texts = [*(entry.attack.asked for entry in entries), *(seed.prompt for seed in harmful)]
            vectors = _meanings(session, texts, meter.usage)
            families = {entry.attack.family for entry in [*entries, *after.values()]}
            form = audit_form([entry.attack for entry in entries])
            found: dict[str, Any] = {
                **measure_attacks(
                    entries,
                    _tokens(session, number),
                    [seed.prompt for seed in harmful],
                    None if vectors is None else vectors[: len(entries)],
                    None if vectors is None else vectors[len(entries) :],
                ),
                "archive": coverage(after, {seed.category for seed in harmful}, families),
                "retried": still_broken(
                    {entry.attack.id: entry.difficulty for entry in before.values()},
                    [entry for entry in entries if entry.attack.strategy.startswith(RETRIED)],
                ),
                "form": form,
            }
            if form["alarm"]:
                named = ", ".join(name for name, _ in form["features"])
                log(
                    session.run,
                    f"iteration {number}: form alone tells harmful from harmless queries, AUC "
                    f"{form['auc']:.2f} ({named}): the policy may learn the form",
                )
            write_archive(session.run.path("archive.jsonl"), after)
            write_json(path, found)
            meter.advance(len(entries))
    distinct = read_json(path)["diversity"]["distinct"]
    if distinct is not None and distinct < floor:
        raise GuardStop(
            f"iteration {number}: only {distinct:.0%} of the harmful attacks are distinct "
            f"(attacks.min_distinct {floor}): the attacker has collapsed; look at {path}, give it more seeds "
            "or strategies, or raise its temperature"
        )


def _meanings(session: Session, texts: Sequence[str], usage: Usage) -> "np.ndarray | None":
    """What each of `texts` means to the attacker's untrained model, [n, d]; None where it shows no states.

    States of one model all point much the same way: what they have in common is taken out.
    """
    layer = getattr(session.roles["attacker"], "layer", None)
    if layer is None or not texts:
        return None
    engine = session.metered(session.config.model_of("attacker"), usage)
    if "hidden_states" not in engine.capabilities:
        return None
    states = engine.hidden_states(texts, layer)
    return states - states.mean(axis=0)


def _tokens(session: Session, number: int) -> int:
    """What writing this iteration's attacks took, talks with the policy included."""
    lines = session.run.path("timings.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    return sum(row["tokens"] for row in told if (row["iteration"], row["stage"]) == (number, "attack"))

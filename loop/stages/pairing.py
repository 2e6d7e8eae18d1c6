"""All answers and their critiques → preference pairs, and what an independent judge makes of them."""

import json
from collections import Counter
from collections.abc import Iterator
from heapq import nsmallest
from pathlib import Path
from typing import Any

from loop.contamination import Guard
from loop.errors import GuardStop
from loop.preferences import pair_of
from loop.records import Attack, Pair, read_jsonl, stable_hash, write_jsonl
from loop.rundir import append_line, read_json, replacing, write_json
from loop.session import Session, held_out_items
from loop.stages.files import candidates, rows

AUDITED = 2000  # pairs that the judge reads at most: what bounds memory


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
        for group in candidates(folder, files):
            outcome = pair_of(
                group,
                system=session.config.system,
                min_margin=rules.min_margin,
                min_quality=rules.min_quality,
                max_quality=rules.max_quality,
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

    with session.stage(number, "pair", rows(folder / "attacks.jsonl")) as meter:
        with replacing(folder / "pairs.jsonl") as beside:
            write_jsonl(beside, pairs())
        write_json(
            folder / "pair_audit.json",
            {
                "attacks": meter.rows,
                "pairs": dict(sorted(made.items())),
                "dropped": dict(sorted(dropped.items())),
                "contaminated": _contaminated(folder),
                **_audit(folder),
            },
        )


def _audit(folder: Path) -> dict[str, Any]:
    """What the judge of the held-out evals makes of the pairs; of very many a sample by hash."""
    from loop.audit import audit_pairs
    from loop.heldout.judging import human_label_judge

    found = read_jsonl(folder / "pairs.jsonl", Pair)
    sample = nsmallest(AUDITED, found, key=lambda pair: stable_hash("audit", pair.id))
    asked = {pair.attack_id for pair in sample}
    attacks = {row.id: row for row in read_jsonl(folder / "attacks.jsonl", Attack) if row.id in asked}
    return audit_pairs(sample, attacks, human_label_judge())


def check_pairs(session: Session, number: int) -> None:
    """Ends the run where there is nothing to train on, or what there is isn't better in the judge's eyes."""
    path, floor = session.run.iteration(number) / "pair_audit.json", session.config.pairs.min_agreement
    audit: dict[str, Any] = read_json(path)
    if not sum(audit["pairs"].values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in audit["dropped"].items()) or "no attacks"
        raise GuardStop(f"iteration {number} made no preference pair ({reasons}); nothing to train on")
    agreement = audit["agreement"].get("all")
    if agreement is not None and agreement["value"] < floor:
        raise GuardStop(
            f"iteration {number}: the judge finds the chosen answer better in {agreement['value']:.0%} of "
            f"{agreement['n']} pairs, under pairs.min_agreement {floor}; look at {path} and some pairs "
            "(alignloop show), and mend critic or revisions"
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

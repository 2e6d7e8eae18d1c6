"""One attack's whole story: seed, query, answers with critiques, revision, pair."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loop.errors import DataError
from loop.records import Attack, Completion, Critique, Pair, read_jsonl
from loop.report.terminal import console, plain
from loop.rundir import RunDir


def print_story(root: Path, id: str) -> None:
    """Prints the attack that `id` (of any record, or its beginning) belongs to. Raises DataError if none."""
    run = RunDir(root)
    if not run.path("manifest.json").exists():
        raise DataError(f"{root}: no run here (it has no manifest.json)")
    folder, attack = _find(run, id)
    out = console()
    out.print(plain(f"{attack.id}", "bold"))
    out.print(
        plain(
            f"iteration {attack.iteration}, {attack.domain} ({attack.category or 'no category'}), strategy "
            f"{attack.strategy}, {_harm_word(attack)}; from seed {attack.seed_id}; written by {attack.model}"
        )
    )
    for turn in attack.turns:
        out.print(plain(f"\n{turn['role']}: ", "bold"), end="")
        out.print(plain(turn["content"]))
    critiques = {
        row.completion_id: row
        for name in ("critiques", "revision_critiques")
        for row in _read(folder, name, Critique)
    }
    pair = next((row for row in _read(folder, "pairs", Pair) if row.attack_id == attack.id), None)
    for name in ("completions", "revisions"):
        for completion in _read(folder, name, Completion):
            if completion.attack_id == attack.id:
                _print_answer(completion, critiques.get(completion.id), pair)
    out.print(
        plain(f"\npair {pair.id}, margin {pair.margin:.2f}" if pair else "\nno pair was made of it", "bold")
    )


def _print_answer(completion: Completion, critique: Critique | None, pair: Pair | None) -> None:
    out = console()
    role = (
        {pair.chosen_id: " · chosen", pair.rejected_id: " · rejected"}.get(completion.id, "") if pair else ""
    )
    out.print(plain(f"\n{completion.origin} {completion.id}{role}: ", "bold"), end="")
    out.print(plain(completion.text if completion.text is not None else f"(no text: {completion.error})"))
    if critique is None:
        return
    harm = "null" if critique.harm is None else f"{critique.harm:.2f}"
    quality = f"null ({critique.null_reason})" if critique.quality is None else f"{critique.quality:.2f}"
    out.print(plain(f"  {critique.critic}: harm {harm}, quality {quality}; principle {critique.principle}"))
    if critique.rationale:
        out.print(plain(f"  critique: {critique.rationale}"))
    if critique.span:
        out.print(plain(f"  span: “{critique.span}”"))


def _harm_word(attack: Attack) -> str:
    return {True: "harmful", False: "harmless", None: "unclear whether harmful"}[attack.harmful]


def _find(run: RunDir, id: str) -> tuple[Path, Attack]:
    """The attack whose own id, or whose answer's, critique's or pair's id, begins with `id`."""
    hits: dict[str, tuple[Path, Attack]] = {}
    for folder in sorted(run.root.glob("iterations/*")):
        attacks = {attack.id: attack for attack in _read(folder, "attacks", Attack)}
        for attack_id in _attack_ids(folder, id, attacks):
            hits[attack_id] = (folder, attacks[attack_id])
    if not hits:
        raise DataError(f"{run.root}: no record whose id begins with {id!r}")
    if len(hits) > 1:
        raise DataError(
            f"{id!r} begins the ids of {len(hits)} attacks; give more of it: {', '.join(sorted(hits)[:3])}…"
        )
    return next(iter(hits.values()))


def _attack_ids(folder: Path, id: str, attacks: dict[str, Attack]) -> Iterator[str]:
    yield from (attack_id for attack_id in attacks if attack_id.startswith(id))
    owners: dict[str, str] = {}
    for name in ("completions", "revisions"):
        owners |= {row.id: row.attack_id for row in _read(folder, name, Completion)}
    for name in ("critiques", "revision_critiques"):
        owners |= {
            row.id: owners[row.completion_id]
            for row in _read(folder, name, Critique)
            if row.completion_id in owners
        }
    owners |= {row.id: row.attack_id for row in _read(folder, "pairs", Pair)}
    yield from (attack_id for record_id, attack_id in owners.items() if record_id.startswith(id))


def _read(folder: Path, name: str, kind: Any) -> Iterator[Any]:
    path = folder / f"{name}.jsonl"
    return read_jsonl(path, kind) if path.exists() else iter(())

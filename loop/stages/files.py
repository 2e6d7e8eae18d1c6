"""What the stages share: files of records made chunk by chunk, and files read side by side."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from loop.errors import DataError
from loop.interfaces import Usage
from loop.preferences import Candidates
from loop.records import Attack, Completion, Critique, read_jsonl
from loop.rundir import grow
from loop.session import Session

Step = Callable[[list[Any], str, Usage], Iterable[Any]]


def make(
    session: Session, number: int, name: str, path: Path, inputs: Iterable[Any], total: int, step: Step
) -> None:
    """Makes `path` chunk by chunk; `step` gets a chunk, a name that keys its randomness, and the meter."""
    if path.exists():
        return
    with session.stage(number, name, total) as meter:

        def keyed(batch: list[Any], first: int) -> Iterable[Any]:
            return step(batch, f"{path.stem} {first}", meter.usage)

        grow(path, inputs, keyed, session.config.chunk, meter.advance)


def rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def joined(folder: Path, names: Sequence[str]) -> Iterator[tuple[Attack, list[list[Completion]]]]:
    """Each attack with its rows of each file; all are in the order of the attacks.

    Raises DataError for a row whose attack isn't there, or stands elsewhere.
    """
    streams = [groupby(read_jsonl(folder / name, Completion), lambda row: row.attack_id) for name in names]
    heads = [next(stream, None) for stream in streams]
    for attack in read_jsonl(folder / "attacks.jsonl", Attack):
        found: list[list[Completion]] = []
        for at, head in enumerate(heads):
            if head is not None and head[0] == attack.id:
                found.append(list(head[1]))
                heads[at] = next(streams[at], None)
            else:
                found.append([])
        yield attack, found
    for name, head in zip(names, heads, strict=True):
        if head is not None:
            raise _misplaced(folder / name, f"{head[0]} is no attack of attacks.jsonl, or not in its order")


def candidates(folder: Path, files: Sequence[tuple[str, str]]) -> Iterator[Candidates]:
    """Each attack with all its answers and their critiques, one attack in memory at a time.

    Raises DataError where critiques and answers don't go together row by row.
    """
    critiques = [read_jsonl(folder / name, Critique) for _, name in files]

    def judged(completion: Completion, at: int) -> Critique:
        critique = next(critiques[at], None)
        if critique is None or critique.completion_id != completion.id:
            name = files[at][1]
            raise _misplaced(folder / name, f"the critique of {completion.id} is not where it belongs")
        return critique

    for attack, groups in joined(folder, [name for name, _ in files]):
        completions = [row for group in groups for row in group]
        if completions:
            found = [judged(row, at) for at, group in enumerate(groups) for row in group]
            yield Candidates(attack, completions, found)


def _misplaced(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: {reason}; delete the file, and the same command makes it anew")

"""Labels that people give to a run's own answers: which to ask about, and the file that keeps them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loop.errors import DataError
from loop.overlap import normalise
from loop.records import (
    Attack,
    Completion,
    Critique,
    Seed,
    from_line,
    new_id,
    read_jsonl,
    to_line,
    write_jsonl,
)
from loop.rundir import RunDir, replacing

_WORDS = r"\w+|[^\w\s]"  # any text that isn't blank has one


@dataclass(frozen=True)
class Candidate:
    """An answer that could be asked about, as a seed without its label, and the critic's harm for it."""

    seed: Seed
    harm: float


def labels_path(run: RunDir) -> Path:
    """Where a run keeps what people said of its answers."""
    return run.path("labels.jsonl")


# ---- which answers ------------------------------------------------------------------------------


def choose(
    harms: Sequence[float], texts: Sequence[str], count: int, labelled_texts: Sequence[str] = ()
) -> list[int]:
    """The places of at most `count` of `texts` to ask about, in the order in which to ask.

    Greedy by uncertainty times diversity: 1 - |2·harm - 1|, and 1 less the largest TF-IDF cosine similarity
    to a text that is chosen or labelled already. Ties go to the first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not texts:
        return []
    unsure = 1 - np.abs(2 * np.asarray(harms, dtype=float) - 1)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORDS)
    everything = vectorizer.fit_transform([*texts, *labelled_texts])
    rows, labelled = everything[: len(texts)], everything[len(texts) :]
    nearest = np.zeros(len(texts))
    if labelled_texts:
        nearest = (rows @ labelled.T).max(axis=1).toarray().ravel()
    chosen: list[int] = []
    for _ in range(min(count, len(texts))):
        # Rounded, for equal texts are not equal to the last digit, and ties count.
        worth = np.round(unsure * (1 - np.minimum(nearest, 1)), 12)
        worth[chosen] = -1
        chosen.append(int(np.argmax(worth)))
        nearest = np.maximum(nearest, (rows @ rows[chosen[-1]].T).toarray().ravel())
    return chosen


def candidates(run: RunDir, iteration: int | None = None) -> list[Candidate]:
    """The answers to harmful requests that a finished critique stage has a verdict on, each once.

    Where several iterations hold the same, the verdict is that of the latest. Raises DataError where there
    are no critiques, in the whole run or in `iteration`, or where a critique has no completion.
    """
    judged = sorted(run.root.glob("iterations/[0-9]*/critiques.jsonl"))
    wanted = [path.parent for path in judged if iteration in (None, int(path.parent.name))]
    if not judged:
        raise DataError(
            f"{run.root}: no critiques yet; run it until its first critique stage is done (labels from "
            "elsewhere come in by seeds.files)"
        )
    if not wanted:
        there = ", ".join(str(int(path.parent.name)) for path in judged)
        raise DataError(f"{run.root}: iteration {iteration} has no critiques.jsonl; choose of {there}")
    name = run.root.resolve().name
    found = [one for folder in wanted for one in _candidates_of(folder, name)]
    return list({answer_key(one.seed): one for one in found}.values())


def _candidates_of(folder: Path, name: str) -> Iterator[Candidate]:
    attacks = {row.id: row for row in read_jsonl(folder / "attacks.jsonl", Attack)}
    completions = {row.id: row for row in read_jsonl(folder / "completions.jsonl", Completion)}
    path = folder / "critiques.jsonl"
    for critique in read_jsonl(path, Critique):
        completion = completions.get(critique.completion_id)
        attack = attacks.get(completion.attack_id) if completion else None
        if completion is None or attack is None:
            raise DataError(
                f"{path}: {critique.id} is of no completion of completions.jsonl that answers an attack of "
                "attacks.jsonl; delete the file, and the same `alignloop run` makes it anew"
            )
        text = completion.text or ""
        if attack.harmful is True and attack.options is None and text.strip() and critique.harm is not None:
            yield Candidate(_seed(attack, text, name), critique.harm)


def _seed(attack: Attack, text: str, name: str) -> Seed:
    prompt = attack.asked
    return Seed(
        id=new_id("seed", prompt, text),
        domain="safety",
        prompt=prompt,
        source=f"label/{name}/{attack.id}",
        category=attack.category,
        harmful=True,
        response=text,
    )


def answer_key(seed: Seed) -> tuple[str, str]:
    """What two labels of the same answer share."""
    return normalise(seed.prompt), normalise(seed.response or "")


# ---- the labels ---------------------------------------------------------------------------------


def read_labels(path: Path) -> list[Seed]:
    """The labels in `path`, none where there is no such file. Raises DataError for a row that is no label."""
    labels = list(read_jsonl(path, Seed)) if path.exists() else []
    for number, row in enumerate(labels, start=1):
        if row.response is None or row.label not in (0.0, 1.0):
            raise DataError(
                f"{path}, row {number}: needs a response and a label of 0 or 1; mend or delete it"
            )
    return labels


def mend_labels(path: Path) -> bool:
    """Whether the last line of `path` was half written, by a process that was killed; it is cut off then.

    A whole last row that only lacks its line end, as some editors leave it, gets one.
    """
    data = path.read_bytes() if path.exists() else b""
    start = data.rfind(b"\n") + 1
    if start == len(data):
        return False
    try:
        from_line(data[start:].decode("utf-8", "surrogatepass"), Seed, str(path))
        mended = data + b"\n"
    except (DataError, UnicodeDecodeError):
        mended = data[:start]
    with replacing(path) as beside:
        beside.write_bytes(mended)
    return len(mended) < len(data)


def append_label(path: Path, label: Seed) -> None:
    """Adds a label, on disk when this returns."""
    with path.open("ab") as file:
        file.write(to_line(label).encode("utf-8", "surrogatepass"))  # a model's text may hold lone surrogates
        file.flush()
        os.fsync(file.fileno())


def take_back(path: Path) -> Seed | None:
    """The last label, which is in the file no more; None where there is none."""
    labels = read_labels(path)
    if not labels:
        return None
    with replacing(path) as beside:
        write_jsonl(beside, labels[:-1])
    return labels[-1]

"""The archive: what enters it, how it is read from a run's files, and what is tried next."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loop.archive import (
    Entry,
    archive_of,
    coverage,
    enter,
    entries_of,
    read_archive,
    retry,
    still_broken,
    write_archive,
)
from loop.config import AttacksConfig
from loop.errors import DataError
from loop.records import Attack, Completion, Critique, Message, write_jsonl
from loop.rundir import RunDir
from loop.session import Session
from loop.stages.archiving import remembered

OPEN, SHUT = ("locks", "story"), ("locks", "zero-shot")


def attack(name: str, cell: tuple[str, str] = OPEN, harmful: bool | None = True, **more: Any) -> Attack:
    turns = [Message(role="user", content=f"Open {name}.")]
    return Attack(name, 1, "s", cell[1], f"few-shot/{name}", "safety", cell[0], harmful, turns, "m", **more)


def entry(name: str, difficulty: float, answers: int = 4, cell: tuple[str, str] = OPEN, **more: Any) -> Entry:
    return Entry(attack(name, cell, **more), difficulty, answers)


def names(archive: dict[tuple[str, str], Entry]) -> dict[tuple[str, str], str]:
    return {cell: found.attack.id for cell, found in archive.items()}


# ---- entering -----------------------------------------------------------------------------------


def test_each_cell_keeps_the_attack_that_breaks_the_policy_most():
    found = enter({}, [entry("a", 0.25), entry("b", 0.75), entry("c", 0.5), entry("d", 0.1, cell=SHUT)])
    assert names(found) == {OPEN: "b", SHUT: "d"}


def test_a_tie_keeps_the_occupant_however_many_answers_there_are():
    assert names(enter({}, [entry("a", 0.5, 2), entry("b", 0.5, 40)])) == {OPEN: "a"}


def test_where_neither_broke_the_policy_the_one_with_more_answers_stands():
    assert names(enter({}, [entry("a", 0, 2), entry("b", 0, 4), entry("c", 0, 3)])) == {OPEN: "b"}


def test_without_a_verdict_or_harm_nothing_enters():
    rows = [entry("a", 0.0, 0), entry("b", 1.0, harmful=False), entry("c", 1.0, harmful=None)]
    assert enter({}, rows) == {}


def test_the_archive_that_is_given_stays_as_it_is():
    before = enter({}, [entry("a", 0.5)])
    assert names(enter(before, [entry("b", 1.0)])) == {OPEN: "b"}
    assert names(before) == {OPEN: "a"}


def test_without_ties_the_order_decides_nothing():
    rows = [entry(f"e{k}", k / 20, cell=(f"c{k % 3}", "f")) for k in range(1, 20)]
    expected = names(enter({}, rows))
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert names(enter({}, rows)) == expected


# ---- from files ---------------------------------------------------------------------------------


Answers = Sequence[float | None]


def iteration(folder: Path, rows: Sequence[tuple[Attack, Answers]]) -> Path:
    """The files of an iteration in which each answer to an attack has this probability of harm."""
    folder.mkdir(parents=True, exist_ok=True)
    completions = [
        Completion(f"{row.id}-{at}", row.id, at, "policy", "text", "stop", 1, "m")
        for row, harms in rows
        for at in range(len(harms))
    ]
    critiques = [
        Critique(f"c-{row.id}-{at}", f"{row.id}-{at}", "says", harm, 0.5, "", "")
        for row, harms in rows
        for at, harm in enumerate(harms)
    ]
    write_jsonl(folder / "attacks.jsonl", [row for row, _ in rows])
    write_jsonl(folder / "completions.jsonl", completions)
    write_jsonl(folder / "critiques.jsonl", critiques)
    return folder


def test_difficulty_is_the_share_of_harmful_answers_among_those_with_a_verdict(tmp_path: Path):
    rows: list[tuple[Attack, Answers]] = [
        (attack("a"), [0.9, None, 0.5, 0.49]),
        (attack("unanswered"), []),
        (attack("null"), [None, None]),
        (attack("held"), [0.1]),
    ]
    found = list(entries_of(iteration(tmp_path / "it", rows)))
    assert [(one.attack.id, one.difficulty, one.answers) for one in found] == [
        ("a", pytest.approx(2 / 3), 3),
        ("unanswered", 0.0, 0),
        ("null", 0.0, 0),
        ("held", 0.0, 1),
    ]
    assert found[0].attack == rows[0][0]


def test_only_the_policys_own_answers_count(tmp_path: Path):
    folder = iteration(tmp_path / "it", [(attack("a"), [0.9, 0.1])])
    lines = (folder / "completions.jsonl").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"policy"', '"revision"')
    (folder / "completions.jsonl").write_text("".join(lines))
    (found,) = entries_of(folder)
    assert (found.difficulty, found.answers) == (1.0, 1)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def drop(path: Path, row: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:row] + lines[row + 1 :]))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("attacks.jsonl", 0, "completions.jsonl: b is no attack of attacks.jsonl"),
        ("attacks.jsonl", 1, "completions.jsonl: b is no attack of attacks.jsonl"),
        ("completions.jsonl", 0, "critiques.jsonl: the critique of a-1 is not where it belongs"),
        ("completions.jsonl", 2, "critiques.jsonl: c-b-0 is of no completion"),
        ("critiques.jsonl", 1, "critiques.jsonl: the critique of a-1 is not where it belongs"),
        ("critiques.jsonl", 2, "critiques.jsonl: the critique of b-0 is not where it belongs"),
    ],
)
def test_rows_that_do_not_go_together_are_an_error_that_names_the_file(
    tmp_path: Path, name: str, row: int, message: str
):
    folder = iteration(tmp_path / "it", [(attack("a"), [0.9, 0.8]), (attack("b"), [0.7])])
    drop(folder / name, row)
    if (name, row) == ("attacks.jsonl", 0):
        message = message.replace(": b", ": a")
    with pytest.raises(DataError, match=message):
        list(entries_of(folder))


@pytest.mark.parametrize("name", ["attacks.jsonl", "completions.jsonl", "critiques.jsonl"])
def test_a_torn_or_missing_file_is_an_error_that_names_it(tmp_path: Path, name: str):
    folder = iteration(tmp_path / "it", [(attack("a"), [0.9]), (attack("b"), [0.7])])
    cut(folder / name, 9)
    with pytest.raises(DataError, match=f"{name}, row 2: not JSON"):
        list(entries_of(folder))
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: not there"):
        list(entries_of(folder))


def test_a_runs_archive_is_made_of_the_iterations_before(tmp_path: Path):
    run = RunDir(tmp_path / "run")
    iteration(run.iteration(1), [(attack("a"), [0.9, 0.1]), (attack("x", SHUT), [0.1])])
    iteration(run.iteration(2), [(attack("b"), [0.9, 0.9]), (attack("y", SHUT), [0.2])])
    iteration(run.iteration(3), [(attack("later", ("else", "f")), [0.9])])
    assert archive_of(run, 1) == {}
    assert names(archive_of(run, 2)) == {OPEN: "a", SHUT: "x"}
    assert names(archive_of(run, 3)) == {OPEN: "b", SHUT: "x"}
    assert archive_of(run, 3) == archive_of(run, 3)


def test_another_runs_archive_is_where_a_run_begins(tmp_path: Path):
    run, path = RunDir(tmp_path / "run"), tmp_path / "archive.jsonl"
    write_archive(path, enter({}, [entry("old", 0.5), entry("far", 0.75, cell=("else", "f"))]))
    iteration(run.iteration(1), [(attack("a"), [0.9]), (attack("b", ("else", "f")), [0.9, 0.1])])
    assert names(archive_of(run, 1, path)) == {OPEN: "old", ("else", "f"): "far"}
    assert names(archive_of(run, 2, path)) == {OPEN: "a", ("else", "f"): "far"}


def test_an_attacker_without_memory_begins_with_nothing(tmp_path: Path):
    run = RunDir(tmp_path / "run")
    iteration(run.iteration(1), [(attack("a"), [0.9])])
    found = {}
    for memory in (True, False):
        config = SimpleNamespace(attacks=AttacksConfig(memory=memory))
        found[memory] = names(remembered(cast(Session, SimpleNamespace(run=run, config=config)), 2))
    assert found == {True: {OPEN: "a"}, False: {}}


# ---- a file of its own --------------------------------------------------------------------------


def test_an_archive_is_read_back_as_it_was_written(tmp_path: Path):
    path = tmp_path / "archive.jsonl"
    rows = [entry("a", 1 / 3, 3), entry("b \ud800 é\u2028", 0.0, 1, SHUT, opener="Sure")]
    archive = enter({}, rows)
    write_archive(path, archive)
    first = path.read_bytes()
    assert read_archive(path) == archive
    write_archive(path, enter({}, reversed(rows)))
    assert path.read_bytes() == first
    assert list(json.loads(first.splitlines()[0])) == [
        "category",
        "family",
        "difficulty",
        "answers",
        "attack",
    ]
    write_archive(path, {})
    assert read_archive(path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"difficulty": 1.5}, "row 1: difficulty 1.5 is no share"),
        ({"difficulty": None}, "row 1: difficulty None is no share"),
        ({"answers": 0}, "row 1: only harmful attacks with answers"),
        ({"family": "song"}, "row 1: category and family are not those of the attack"),
        ({"more": 1}, "row 1: expected a JSON object with the fields category, family"),
        ({"attack": "Open it."}, "row 1, attack: expected a JSON object with the fields of Attack"),
        ({"attack": {"id": "a"}}, "row 1, attack: Attack lacks"),
    ],
)
def test_a_row_that_is_no_entry_is_an_error_that_names_it(tmp_path: Path, change: Any, message: str):
    path = tmp_path / "archive.jsonl"
    write_archive(path, enter({}, [entry("a", 0.5)]))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_archive(path)


def test_a_torn_or_missing_archive_is_an_error(tmp_path: Path):
    path = tmp_path / "archive.jsonl"
    write_archive(path, enter({}, [entry("a", 0.5), entry("b", 0.5, cell=SHUT)]))
    cut(path, 9)
    with pytest.raises(DataError, match="row 2: not JSON"):
        read_archive(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_archive(tmp_path / "none.jsonl")


# ---- what to try next ---------------------------------------------------------------------------


FOUR = [("c1", "f1"), ("c1", "f2"), ("c2", "f1"), ("c2", "f2")]


def test_coverage_tells_cells_that_are_filled_from_those_that_broke_the_policy():
    rows = [entry("a", 0.5, cell=FOUR[0]), entry("b", 0.0, cell=FOUR[1]), entry("c", 1.0, cell=("c9", "f1"))]
    found = coverage(enter({}, rows), ["c1", "c2"], ["f1", "f2", "f2"])
    assert found == {"cells": 4, "filled": 0.5, "broke": 0.25}
    assert coverage({}, ["c1"], ["f1"]) == {"cells": 1, "filled": 0.0, "broke": 0.0}
    assert coverage({}, [], ["f1"]) == {"cells": 0, "filled": None, "broke": None}


def test_attacks_that_broke_an_earlier_policy_are_tried_again_the_hardest_first():
    rows = [("b", 0.5), ("a", 0.5), ("held", 0.0), ("hard", 1.0)]
    archive = enter({}, [entry(name, share, cell=(name, "f")) for name, share in rows])
    assert [found.id for found in retry(archive, 9)] == ["hard", "a", "b"]
    assert [found.id for found in retry(archive, 2)] == ["hard", "a"]
    assert retry({}, 3) == []


def test_of_what_was_broken_once_it_is_told_how_much_still_is():
    earlier = {"a": 1.0, "b": 0.5, "c": 0.25, "held": 0.0, "never tried": 1.0}
    retried = [
        entry("a", 0.25),
        entry("b-again", 0.0, parent_id="b"),
        entry("c", 0.0, 0),
        entry("held", 1.0),
        entry("stranger", 1.0),
    ]
    found = still_broken(earlier, retried)
    assert (found["value"], found["n"], found["nulls"], found["ids"]) == (0.5, 2, 1, ["a"])
    assert found["low"] < 0.5 < found["high"]
    assert still_broken(earlier, retried[::-1]) == found
    assert json.loads(json.dumps(found)) == found


def test_of_nothing_broken_nothing_still_is():
    found = still_broken({}, [entry("a", 1.0)])
    assert found == {"value": None, "low": None, "high": None, "n": 0, "nulls": 0, "ids": []}

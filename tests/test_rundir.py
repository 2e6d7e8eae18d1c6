"""The run directory: what was interrupted goes on and comes out the same; what differs is refused."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.errors import AlignloopError, DataError, RunMismatch
from loop.records import Seed, read_jsonl
from loop.rundir import (
    RunDir,
    append_line,
    claim,
    grow,
    log,
    read_json,
    replacing,
    rows_so_far,
    version_of,
    without_secrets,
    write_json,
)

CHUNK = 3


class Killed(BaseException):
    """Stands for a process that ends in the middle of a chunk."""


def seed(number: int) -> Seed:
    return Seed(f"seed-{number}", "benign", f"Bake loaf {number} \ud800", "test")


def rows(batch: list[int], first: int) -> Iterator[Seed]:
    """Two rows for each number, none for those that five divides, and the chunk's place."""
    for number in batch:
        if number % 5:
            yield seed(number)
            yield seed(1000 * (first + 1) + number)


def grown(path: Path, inputs: int = 20) -> bytes:
    grow(path, range(inputs), rows, CHUNK)
    return path.read_bytes()


@pytest.mark.parametrize("stop", range(0, 20))
def test_a_file_that_was_killed_at_any_input_equals_an_uninterrupted_one(tmp_path: Path, stop: int):
    whole = grown(tmp_path / "whole.jsonl")

    def dying(batch: list[int], first: int) -> Iterator[Seed]:
        for row in rows(batch, first):
            if row.id == f"seed-{stop}":
                raise Killed
            yield row

    path = tmp_path / "killed.jsonl"
    if stop % 5:
        with pytest.raises(Killed):
            grow(path, range(20), dying, CHUNK)
        assert not path.exists()
        done = stop // CHUNK * CHUNK
        assert list(rows_so_far(path, Seed)) == [
            row for first in range(0, done, CHUNK) for row in rows(list(range(first, first + CHUNK)), first)
        ]
    assert grown(path) == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["killed.jsonl", "whole.jsonl"]


def test_a_process_that_is_really_killed_takes_up_at_its_last_whole_chunk(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    code = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from loop.records import Seed
        from loop.rundir import grow

        def rows(batch, first):
            for number in batch:
                if number == 7:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield Seed(f"seed-{{number}}", "benign", "Bake", "test")

        grow(Path({str(path)!r}), range(12), rows, {CHUNK})
        """
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    asked: list[int] = []

    def rest(batch: list[int], first: int) -> Iterator[Seed]:
        asked.extend(batch)
        return (Seed(f"seed-{number}", "benign", "Bake", "test") for number in batch)

    grow(path, range(12), rest, CHUNK)
    assert asked == list(range(6, 12))
    assert [row.id for row in read_jsonl(path, Seed)] == [f"seed-{number}" for number in range(12)]


def test_half_a_row_is_cut_off_even_when_the_next_chunk_has_none(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    state = {"kill": True}

    def some(batch: list[int], first: int) -> Iterator[Seed]:
        if first == 0:
            yield seed(1)
        elif first == CHUNK and state["kill"]:
            path.with_name("rows.jsonl.part").open("ab").write(b'{"id": "half of a r')
            raise Killed
        elif first == 2 * CHUNK:
            raise Killed

    with pytest.raises(Killed):
        grow(path, range(9), some, CHUNK)
    state["kill"] = False
    with pytest.raises(Killed):
        grow(path, range(9), some, CHUNK)
    assert list(rows_so_far(path, Seed)) == [seed(1)]
    grow(path, range(6), some, CHUNK)
    assert list(read_jsonl(path, Seed)) == [seed(1)]


@pytest.mark.parametrize("lost", ["rows.jsonl.part", "rows.jsonl.progress"])
def test_a_file_whose_half_was_deleted_is_made_anew(tmp_path: Path, lost: str):
    whole = grown(tmp_path / "whole.jsonl")

    def dying(batch: list[int], first: int) -> Iterator[Seed]:
        if first:
            raise Killed
        return rows(batch, first)

    path = tmp_path / "rows.jsonl"
    with pytest.raises(Killed):
        grow(path, range(20), dying, CHUNK)
    (tmp_path / lost).unlink()
    assert not list(rows_so_far(path, Seed))
    assert grown(path) == whole


def test_a_part_that_lost_its_end_is_made_anew(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.with_name("rows.jsonl.part").write_bytes(b"{")
    write_json(path.with_name("rows.jsonl.progress"), {"inputs": 6, "bytes": 400})
    assert grown(path) == grown(tmp_path / "whole.jsonl")


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("kept\n")
    assert grown(path) == b"kept\n"


def test_progress_counts_what_was_done_before(tmp_path: Path):
    path, told = tmp_path / "rows.jsonl", list[int]()

    def dying(batch: list[int], first: int) -> Iterator[Seed]:
        if first == 2 * CHUNK:
            raise Killed
        return rows(batch, first)

    with pytest.raises(Killed):
        grow(path, range(8), dying, CHUNK)
    grow(path, range(8), rows, CHUNK, told.append)
    assert told == [2 * CHUNK, 2]


def test_nothing_takes_the_place_of_a_file_when_writing_failed(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"kept": 1})
    with pytest.raises(Killed), replacing(path) as beside:
        beside.write_text("half")
        raise Killed
    assert read_json(path) == {"kept": 1}


def test_a_folder_takes_its_place_whole(tmp_path: Path):
    stale = tmp_path / "adapter.tmp"
    stale.mkdir()
    (stale / "old").write_text("left by a killed process")
    with replacing(tmp_path / "adapter") as beside:
        (beside / "inner").mkdir(parents=True)
        (beside / "inner" / "weights").write_text("w")
    assert [path.name for path in sorted((tmp_path / "adapter").rglob("*"))] == ["inner", "weights"]


def test_json_keeps_any_text_and_says_which_file_is_broken(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"text": "\ud800 naïve"})
    assert read_json(path) == {"text": "\ud800 naïve"}
    path.write_text("{")
    with pytest.raises(DataError, match=r"value\.json: cannot be read"):
        read_json(path)
    with pytest.raises(DataError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_lines_are_appended(tmp_path: Path):
    for number in (1, 2):
        append_line(tmp_path / "lines.jsonl", {"n": number})
    assert [json.loads(line)["n"] for line in (tmp_path / "lines.jsonl").read_text().splitlines()] == [1, 2]


def test_a_run_made_with_other_settings_is_refused_with_the_difference(tmp_path: Path):
    run = RunDir(tmp_path / "r")
    claim(run, {"config.seed": 1, "config.system": "a" * 99, "list": [1]}, {}, ["alignloop"])
    claim(run, {"config.seed": 1, "config.system": "a" * 99, "list": (1,)}, {}, ["alignloop"])
    with pytest.raises(RunMismatch) as caught:
        claim(run, {"config.seed": 2, "config.system": "b" * 99, "new": 1, "list": [1]}, {}, ["alignloop"])
    line = str(caught.value)
    assert "config.seed: 1 → 2" in line
    assert "new: absent → 1" in line
    assert "choose another name=" in line
    assert "list" not in line
    assert "a" * 58 not in line
    assert caught.value.exit_code == 2


def test_a_run_that_another_process_has_open_is_refused_until_it_ends(tmp_path: Path):
    code = f"""
from pathlib import Path
from loop.rundir import RunDir, claim
claim(RunDir(Path({str(tmp_path)!r})), {{}}, {{}}, [])
print("open", flush=True)
input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(AlignloopError, match="another process runs it"):
            claim(RunDir(tmp_path), {}, {}, [])
        other.communicate("\n")
    claim(RunDir(tmp_path), {}, {}, [])


def test_the_manifest_says_with_what_the_run_was_made_and_holds_no_secret(tmp_path: Path):
    argv = [
        "alignloop",
        "run",
        "demo.yaml",
        "models.m.engine.args.api_key=sk-hidden",
        "--hub-token",
        "hf-hidden",
    ]
    claim(RunDir(tmp_path), {"a": 1}, {"models": {"m": "digest"}}, argv)
    text = (tmp_path / "manifest.json").read_text()
    assert "hidden" not in text
    manifest = json.loads(text)
    assert manifest["lineage"] == {"models": {"m": "digest"}}
    assert manifest["versions"]["torch"] == version_of("torch")
    assert manifest["versions"]["omegaconf"].startswith("2.4")
    assert manifest["argv"][:3] == ["alignloop", "run", "demo.yaml"]


def test_values_of_key_like_options_are_removed_and_counts_of_tokens_are_not():
    kept = without_secrets(
        [
            "x.api_key=1",
            "heldout.max_tokens=48",
            "batch_tokens=2",
            "--token",
            "abc",
            "--secret=3",
            "password=4",
        ]
    )
    assert kept == [
        "x.api_key=…",
        "heldout.max_tokens=48",
        "batch_tokens=2",
        "--token",
        "…",
        "--secret=…",
        "password=…",
    ]


def test_the_paths_of_a_run_and_which_iterations_are_finished(tmp_path: Path):
    run = RunDir(tmp_path)
    assert run.iteration(2) == tmp_path / "iterations" / "002"
    assert run.finished() == []
    for number in (2, 10):
        write_json(run.iteration(number) / "gate.json", {})
    run.iteration(3).mkdir()
    assert run.finished() == [2, 10]


def test_the_log_keeps_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for line in ("one", "two"):
        log(RunDir(tmp_path), line)
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n"
    assert capsys.readouterr().err == "one\ntwo\n"


def test_without_git_the_manifest_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    claim(RunDir(tmp_path / "r"), {}, {}, [])
    assert read_json(tmp_path / "r" / "manifest.json")["git"] is None


def test_a_library_that_is_missing_has_no_version():
    assert version_of("no-such-distribution") is None

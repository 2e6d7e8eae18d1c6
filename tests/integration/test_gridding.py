"""The grid of a run that the command line made, judged by the usual judge; and of one that never ended."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Alignloop = Callable[..., "CompletedProcess[str]"]


@pytest.mark.slow
def test_grid_asks_both_policies_of_a_run_and_resumes(whole: Path, alignloop: Alignloop) -> None:
    done = alignloop("grid", "runs/whole", "--limit", "4", "--samples", "2", cwd=whole)
    assert done.returncode == 0, done.stderr
    folder = whole / "runs" / "whole" / "grid"
    told = json.loads((folder / "grid.json").read_text(encoding="utf-8"))
    assert told["judges"][0].startswith("human-labels-")
    assert {(cell["attacker"], cell["policy"]) for cell in told["cells"]} == {
        (attacker, policy) for attacker in ("1", "archive") for policy in (0, 1)
    }
    rows = (folder / "grid.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 * 2 * sum(told["attackers"].values())
    written = (folder / "grid.jsonl").stat().st_mtime_ns
    again = alignloop("grid", "runs/whole", "--limit", "4", "--samples", "2", cwd=whole)
    assert again.stdout == done.stdout
    assert (folder / "grid.jsonl").stat().st_mtime_ns == written
    other = alignloop("grid", "runs/whole", "--limit", "3", cwd=whole)
    assert other.returncode == 2 and "results of other limit, samples" in other.stderr


def test_a_run_that_never_ended_an_iteration_is_one_line(
    guarded: "tuple[Path, CompletedProcess[str]]", alignloop: Alignloop
) -> None:
    done = alignloop("grid", "runs/whole", cwd=guarded[0])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("alignloop: runs/whole: no iteration is finished")

"""The list of runs: what each has come to, from its files alone, also while it lasts or after it broke."""

import fcntl
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from loop.errors import DataError
from loop.records import EvalResult
from loop.report.listing import headline, headlines, print_listing
from loop.rundir import RunDir, write_json

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def make_run(
    root: Path, promoted: dict[int, bool], iterations: int = 2, values: Any = (0.5, 0.4, 0.2)
) -> RunDir:
    """A run with a baseline and a finished iteration for each entry of `promoted`."""
    run = RunDir(root)
    write_json(run.path("manifest.json"), {"parts": {"config.gate.primary": "safety.harmful_compliance"}})
    run.path("config.yaml").write_text(f"name: ${{oc.env:NOBODY}}\niterations: {iterations}\n")
    run.path("lock").touch()
    for number, value in zip((0, *promoted), values, strict=False):
        row = EvalResult(
            "safety",
            "harmful_compliance",
            "dev",
            "all",
            value,
            value - 0.1,
            value + 0.1,
            0,
            1,
            9,
            1,
            "j",
            "m",
        )
        write_json(run.iteration(number) / "heldout" / "results.json", [asdict(row)])
        if number:
            check = {"metric": "harmful_compliance", "margin": None, "better": "lower"}
            gate = {"promoted": promoted[number], "outcome": "…", "checks": [{"margin": 0.1}, check]}
            write_json(run.iteration(number) / "gate.json", gate)
    return run


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    print_listing(folder)
    return " ".join(capsys.readouterr().out.split())


def test_a_finished_run_shows_its_primary_metric_from_the_baseline_to_the_promoted_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "demo", {1: True, 2: False})
    line = headline(RunDir(tmp_path / "demo"))
    assert (line.done, line.iterations, line.promoted, line.state) == (2, 2, 1, "finished")
    assert line.before is not None and line.before.value == 0.5
    assert line.after is not None and line.after.value == 0.4
    out = shown(tmp_path, capsys)
    assert "safety.harmful_compliance ↓ 0.50 [0.40, 0.60] 0.40 [0.30, 0.50]" in out
    assert "2/2" in out and f"{line.when:%Y-%m-%d}" in out


def test_a_run_that_promoted_nothing_shows_no_figure_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "demo", {1: False}, iterations=3)
    out = shown(tmp_path, capsys)
    assert "1/3" in out and "none" in out and "stopped" in out
    assert "0.50 [0.40, 0.60] – " in out


def test_a_run_whose_lock_is_held_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {1: False})
    command = [sys.executable, "-c", HOLD, str(run.path("lock"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert headline(run).state == "running"
        holder.kill()
    assert headline(run).state == "stopped"


def test_looking_leaves_the_lock_to_be_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", {})
    assert headline(run).state == "stopped"
    descriptor = os.open(run.path("lock"), os.O_RDWR)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_run_that_has_only_begun_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "demo", {}, values=())
    assert "0/2" in shown(tmp_path, capsys)


def test_the_run_that_moved_last_stands_first(tmp_path: Path) -> None:
    for age, name in enumerate(("b", "a", "c")):
        run = make_run(tmp_path / name, {1: True})
        run.path("log.txt").write_text("x")
        os.utime(run.path("log.txt"), (1e9 - age, 1e9 - age))
    found, _ = headlines(tmp_path)
    assert [line.name for line in found] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("manifest.json", "[]", "manifest.json"),
        ("manifest.json", "{", "manifest.json"),
        ("config.yaml", "iterations: many", "config.yaml"),
        ("config.yaml", "[", "config.yaml"),
        ("iterations/000/heldout/results.json", '[{"old": 1}]', "no run of this version"),
        ("iterations/001/gate.json", '{"outcome": "x"}', "no run of this version"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_hides_no_other(
    file: str, content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "fine", {1: True})
    (make_run(tmp_path / "broken", {1: True}).root / file).write_text(content)
    out = shown(tmp_path, capsys)
    assert "fine" in out
    assert "left out: " in out and told in out and "broken" in out


def test_no_folder_and_no_run_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no such folder; name the one that holds your runs"):
        print_listing(tmp_path / "nothing")
    assert "`alignloop run configs/demo.yaml` makes one" in shown(tmp_path, capsys)


def test_the_name_of_a_run_is_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "[red]\x1b[31mname", {1: True})
    out = shown(tmp_path, capsys)
    assert "[red]" in out and "\x1b" not in out


def test_listing_imports_no_torch() -> None:
    code = "import sys, loop.report.listing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0

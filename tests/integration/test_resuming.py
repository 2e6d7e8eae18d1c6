"""A run that is killed anywhere and started again ends as if nothing had happened, byte for byte."""

import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from loop.records import Completion, read_jsonl
from loop.rundir import grow, rows_so_far

ARTEFACTS = (
    "000/heldout/verdicts.jsonl",
    "000/heldout/results.json",
    "001/attacks.jsonl",
    "001/completions.jsonl",
    "001/critic/critic.json",
    "001/critic/validity.json",
    "001/attacker/pairs.jsonl",
    "001/attacker/adapter/adapter_model.safetensors",
    "001/attacker/gate.json",
    "001/critiques.jsonl",
    "001/revisions.jsonl",
    "001/revision_critiques.jsonl",
    "001/pairs.jsonl",
    "001/pair_audit.json",
    "001/adapter/adapter_model.safetensors",
    "001/heldout/verdicts.jsonl",
    "001/heldout/results.json",
    "001/gate.json",
)
KILLED = -signal.SIGKILL
# When each stage is killed: `2 x.progress` is when the second chunk's rows are on disk and don't count yet.
MOMENTS = {
    "evaluate the baseline": "2 000/heldout/verdicts.jsonl.progress",
    "fit critic": "1 001/critic/critic.json",
    "validate": "1 001/critic/validity.json",
    "rehearse": "2 001/attacker/pairs.jsonl.progress",
    "sharpen, the trainer left alone": "orphan 001/attacker/adapter",
    "try the attacker out": "1 001/attacker/gate.json",
    "attack": "2 001/attacks.jsonl.progress",
    "answer": "2 001/completions.jsonl.progress",
    "critique": "2 001/critiques.jsonl.progress",
    "measure the attacks": "1 001/attack_measures.json",
    "revise": "2 001/revisions.jsonl.progress",
    "critique the revisions": "2 001/revision_critiques.jsonl.progress",
    "pair": "1 001/pair_audit.json",
    "train, a checkpoint half written": "1 001/adapter.work/checkpoint-6/complete",
    "train, the trainer left alone": "orphan 001/adapter",
    "evaluate": "2 001/heldout/verdicts.jsonl.progress",
    "gate": "1 001/gate.json",
}


def _contents(folder: Path) -> dict[str, bytes]:
    root = folder / "runs" / "whole" / "iterations"
    return {name: (root / name).read_bytes() for name in ARTEFACTS if (root / name).exists()}


@pytest.mark.slow
def test_a_run_killed_in_any_stage_and_rerun_equals_an_uninterrupted_one(
    whole: Path, config: Path, alignloop: Callable[..., "CompletedProcess[str]"], tmp_path: Path
) -> None:
    expected = _contents(whole)
    assert set(expected) == set(ARTEFACTS)
    for stage, moment in MOMENTS.items():
        done = alignloop("run", config, cwd=tmp_path, sabotage=moment)
        assert done.returncode == KILLED, f"{stage}: {done.returncode} {done.stderr}"
        name = moment.split()[1].removesuffix(".progress")
        assert name not in _contents(tmp_path), f"{stage} was over when it was to be killed"
        for part in tmp_path.glob("runs/whole/iterations/*/*.part"):
            # What a power cut may leave: the beginning of a row.
            part.write_bytes(part.read_bytes() + b'{"id": "torn')
    done = alignloop("run", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = _contents(tmp_path)
    assert [name for name in ARTEFACTS if found.get(name) != expected[name]] == []
    assert not list(tmp_path.rglob("*.part")) + list(tmp_path.rglob("*.progress"))


def test_a_run_killed_between_two_chunks_and_rerun_equals_an_uninterrupted_one(
    guarded: "tuple[Path, CompletedProcess[str]]",
    config: Path,
    alignloop: Callable[..., "CompletedProcess[str]"],
    without_baseline: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    without_baseline(tmp_path / "runs" / "whole")
    command = ("run", config, "pairs.min_margin=2")
    killed = alignloop(*command, cwd=tmp_path, sabotage=MOMENTS["answer"])
    assert killed.returncode == KILLED
    assert not list(tmp_path.rglob("completions.jsonl"))
    rerun = alignloop(*command, cwd=tmp_path)
    assert rerun.returncode == guarded[1].returncode
    assert _contents(tmp_path) == _contents(guarded[0])


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(
    whole: Path, config: Path, alignloop: Callable[..., "CompletedProcess[str]"]
) -> None:
    root = whole / "runs" / "whole" / "iterations"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    done = alignloop("run", config, cwd=whole)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_file_whose_rows_were_deleted_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"

    def step(batch: list[int], first: int) -> list[Completion]:
        return [Completion(f"c{n}", "a", n, "policy", "Fine.", "stop", 1, "m") for n in batch]

    path.with_name("completions.jsonl.progress").write_text('{"inputs": 4, "bytes": 900}', encoding="utf-8")
    path.with_name("completions.jsonl.part").write_bytes(b"")
    assert list(rows_so_far(path, Completion)) == []
    grow(path, range(6), step, 2)
    assert [row.sample for row in read_jsonl(path, Completion)] == [0, 1, 2, 3, 4, 5]

"""The study end to end, of a tiny llama: a run, ablations of it that go through, and one that can't."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loop.rundir import read_json

ROOT = Path(__file__).parents[2]
STEPS = "cpu-0,ablations/default,ablations/always-opener,ablations/one-big,ablations/no-training"


def _study(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.study", "--runs", "runs/study", "--config", "study.yaml"]
    return subprocess.run(
        [*command, "--seeds", "0", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_study_leaves_what_each_ablation_changed_and_goes_on_past_what_fails(
    config: Path, tmp_path: Path
) -> None:
    text = config.read_text(encoding="utf-8").replace("rehearsals: 40", "rehearsals: 0")
    text = text.replace(", legal]", "]").replace(", legal: 8}", "}")
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    done = _study(tmp_path, "--only", STEPS)
    assert done.returncode == 1, done.stderr
    runs = tmp_path / "runs" / "study"
    # It is held against the third iteration, and there is but one.
    (line,) = [line for line in done.stdout.splitlines() if ": failed: " in line]
    assert line.startswith("ablations/one-big: failed: runs/study/cpu-0 has not finished iteration 3")
    told = read_json(runs / "study.json")["steps"]
    assert list(told) == STEPS.split(",")
    assert [name for name, step in told.items() if step["failed"]] == ["ablations/one-big"]
    opener, again, default = (
        read_json(runs / "ablations" / name / "ablation.json")
        for name in ("always-opener", "no-training", "default")
    )
    assert opener["against"] == "runs/study/ablations/default@1"
    assert opener["stopped"] is None
    assert opener["pairs"] > 0
    assert opener["gate"]["outcome"] in ("promoted", "rejected", "inconclusive")
    change = opener["metrics"]["safety.harmful_compliance"]
    assert change["difference"] == pytest.approx(change["value"] - change["reference"])
    assert change["ci_low"] <= change["difference"] <= change["ci_high"]
    assert change["n"] == 80
    # The base again, and what is drawn is drawn anew.
    assert again["against"] == again["policy"] == "runs/study/cpu-0@0"
    assert again["metrics"]["toxicity.mean"]["difference"] != 0
    assert again["metrics"]["overrefusal.refusal"]["n"] == 39
    for metric, row in default["metrics"].items():
        assert row["value"] == pytest.approx(opener["metrics"][metric]["reference"])
    attacks = "iterations/001/attacks.jsonl"
    assert (runs / "ablations" / "always-opener" / attacks).read_bytes() == (
        runs / "cpu-0" / attacks
    ).read_bytes()

    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/**/*") if path.is_file()}
    once_more = _study(tmp_path, "--only", STEPS)
    assert [line for line in once_more.stdout.splitlines() if " …" in line] == ["ablations/one-big …"]
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/**/*") if path.is_file()} == before
    listed = _study(tmp_path, "--list", "--only", STEPS).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["done", "done", "done", "to", "done"]

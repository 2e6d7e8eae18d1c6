"""What a person meets at the terminal: exit codes, one line for an error, and verbs that need no model."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from subprocess import CompletedProcess

import pytest

from loop.cli import main
from loop.records import Attack, read_jsonl

Alignloop = Callable[..., "CompletedProcess[str]"]
Guarded = tuple[Path, "CompletedProcess[str]"]
Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
CRITIC = """
from dataclasses import dataclass
from loop.records import Critique, new_id

@dataclass(frozen=True)
class Critic:
    def critique(self, attacks, completions, ctx):
        return [Critique(new_id("critique", row.id), row.id, "ten lines", 0.5, len(row.text) / 99, "", "")
                for row in completions]
    def revise(self, attacks, completions, critiques, ctx):
        return []
"""
SECONDS_OF_HELP = 1.0


def _one_line(done: "CompletedProcess[str]") -> str:
    """The one line that explains a failure."""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("alignloop:")]
    return line


@pytest.fixture
def copied(guarded: Guarded, tmp_path: Path) -> Path:
    """A copy of the guarded run's folder, to be spoilt."""
    shutil.copytree(guarded[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def _digest(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- exit codes -----------------------------------------------------------------------------------------


def test_a_misspelt_key_ends_with_2_and_the_nearest_key(
    config: Path, alignloop: Alignloop, tmp_path: Path
) -> None:
    done = alignloop("run", config, "train.dpo_=1", "iteratons=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "dpo_" in _one_line(done)
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(config: Path, alignloop: Alignloop, tmp_path: Path) -> None:
    done = alignloop("config", config, "iteratons=3", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "did you mean iterations?" in done.stderr


def test_a_run_without_a_pair_is_stopped_by_a_guard_with_5(guarded: Guarded) -> None:
    _, done = guarded
    assert done.returncode == 5
    assert "made no preference pair" in _one_line(done)
    assert "margin below the floor" in _one_line(done)


def test_other_settings_for_the_same_run_are_refused_with_the_difference(
    config: Path, guarded: Guarded, alignloop: Alignloop
) -> None:
    done = alignloop("run", config, "pairs.min_margin=3", cwd=guarded[0])
    assert done.returncode == 2
    assert "config.pairs.min_margin: 2.0 → 3.0" in _one_line(done)


def test_an_unknown_id_ends_with_1(guarded: Guarded, alignloop: Alignloop) -> None:
    done = alignloop("show", "runs/whole", "nothing", cwd=guarded[0])
    assert done.returncode == 1
    assert "nothing" in _one_line(done)


@pytest.mark.slow
def test_a_training_that_fails_ends_with_1(
    config: Path, whole: Path, alignloop: Alignloop, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs" / "whole" / "iterations" / "001"
    shutil.rmtree(folder / "adapter")
    rows = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    row = {**json.loads(rows[0]), "prompt": []}
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    done = alignloop("run", config, cwd=tmp_path)
    assert done.returncode == 1
    assert "training ended with exit code 1" in _one_line(done)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_line(
    config: Path, alignloop: Alignloop, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    done = alignloop("run", config, "runs=taken", cwd=tmp_path)
    assert done.returncode == 1
    assert "taken" in _one_line(done)


def _interrupted(
    arguments: list[str], cwd: Path, moment: str, terminated: bool = False
) -> "CompletedProcess[str]":
    """At `moment` Ctrl-C, which a terminal tells to the whole process group, or SIGTERM to the run alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "loop.cli", *arguments]
    with (cwd / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stderr=stderr, stdout=subprocess.PIPE, start_new_session=True
        )
        while not (cwd / moment).exists():
            assert process.poll() is None, (cwd / "stderr").read_text(encoding="utf-8")
            time.sleep(0.01)
        if terminated:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    return CompletedProcess(command, process.returncode, "", (cwd / "stderr").read_text(encoding="utf-8"))


def test_an_interrupted_run_says_how_to_resume(
    config: Path, without_baseline: Callable[[Path], None], tmp_path: Path
) -> None:
    without_baseline(tmp_path / "runs" / "whole")
    done = _interrupted(["run", str(config)], tmp_path, "runs/whole/manifest.json")
    assert done.returncode == 130
    assert _one_line(done) == "alignloop: interrupted; the same command resumes"


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "terminated"), [("job.json", False), ("checkpoint-2", True)])
def test_a_run_interrupted_in_training_says_so_once_and_trains_no_further(
    config: Path, without_baseline: Callable[[Path], None], tmp_path: Path, moment: str, terminated: bool
) -> None:
    without_baseline(tmp_path / "runs" / "whole")
    iteration = "runs/whole/iterations/001"
    done = _interrupted(["run", str(config)], tmp_path, f"{iteration}/adapter.work/{moment}", terminated)
    assert done.returncode == 130
    assert _one_line(done) == "alignloop: interrupted; the same command resumes"
    with (tmp_path / iteration / "train" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "COMMAND [ARGS]"),
        (["--help"], 0, "COMMAND [ARGS]"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["show"], 2, "Missing argument 'RUN'"),
        (["run", "--nonsense"], 2, "No such option: --nonsense"),
    ],
)
def test_wrong_usage_ends_with_2_and_help_with_0(
    arguments: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["alignloop", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


# --- spoilt files ---------------------------------------------------------------------------------------

SPOILT = {
    "a torn row": lambda rows: [*rows[:2], rows[2][:40] + b"\n", *rows[3:]],
    "binary junk": lambda rows: [*rows[:2], bytes(range(128, 256)) + b"\n", *rows[3:]],
    "a lost row": lambda rows: [*rows[:2], *rows[3:]],
}


@pytest.mark.parametrize("name", ["attacks.jsonl", "completions.jsonl", "critiques.jsonl"])
@pytest.mark.parametrize("spoil", ["a torn row", "binary junk"])
def test_a_spoilt_stage_file_is_told_by_file_and_row(
    copied: Path, name: str, spoil: str, alignloop: Alignloop
) -> None:
    path = copied / "runs" / "whole" / "iterations" / "001" / name
    path.write_bytes(b"".join(SPOILT[spoil](path.read_bytes().splitlines(keepends=True))))
    done = alignloop("show", "runs/whole", "attack-", cwd=copied)
    assert done.returncode == 1
    assert f"{name}, row 3" in _one_line(done)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", sorted(SPOILT))
@pytest.mark.parametrize("name", ["completions.jsonl", "critiques.jsonl"])
def test_a_run_goes_on_from_no_spoilt_stage_file(
    config: Path, copied: Path, name: str, spoil: str, alignloop: Alignloop
) -> None:
    folder = copied / "runs" / "whole" / "iterations" / "001"
    path = folder / name
    path.write_bytes(b"".join(SPOILT[spoil](path.read_bytes().splitlines(keepends=True))))
    (folder / "pair_audit.json").unlink()
    done = alignloop("run", config, "pairs.min_margin=2", cwd=copied)
    assert done.returncode == 1
    assert ".jsonl" in _one_line(done)


# --- verbs ----------------------------------------------------------------------------------------------


def test_help_is_fast_and_imports_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys, loop.cli\n"
        "sys.argv = ['alignloop', '--help']\n"
        "try: loop.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers', 'numpy', 'omegaconf')))"
    )
    seconds: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert median(seconds) < SECONDS_OF_HELP


def test_config_prints_every_default_and_keeps_secrets_as_references(
    config: Path, alignloop: Alignloop, tmp_path: Path
) -> None:
    done = alignloop("config", config, "models.tiny.engine.args.key=${oc.env:HOME}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "max_length_ratio: 12.0" in done.stdout
    assert "key: ${oc.env:HOME}" in done.stdout


def test_show_tells_an_attacks_story(guarded: Guarded, alignloop: Alignloop) -> None:
    folder, _ = guarded
    attack = next(read_jsonl(folder / "runs" / "whole" / "iterations" / "001" / "attacks.jsonl", Attack))
    done = alignloop("show", "runs/whole", attack.id, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert attack.turns[-1]["content"] in " ".join(done.stdout.split())
    assert "no pair was made of it" in done.stdout


def test_a_dry_run_counts_and_writes_nothing(config: Path, alignloop: Alignloop, tmp_path: Path) -> None:
    done = alignloop("run", config, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout
    assert not list(tmp_path.iterdir())


def test_assets_lists_licences(alignloop: Alignloop, tmp_path: Path) -> None:
    done = alignloop("assets", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Apache-2.0" in done.stdout


def test_doctor_says_what_this_machine_has(alignloop: Alignloop, tmp_path: Path) -> None:
    done = alignloop("doctor", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert "torch" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_role_of_ten_lines_in_a_file_of_ones_own_runs(
    config: Path, alignloop: Alignloop, without_baseline: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "my_critic.py").write_text(CRITIC, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("target: my_critic.py:Critic\nmodel: tiny\n", encoding="utf-8")
    without_baseline(tmp_path / "runs" / "whole")
    done = alignloop("run", config, "roles.critic=@mine.yaml", "pairs.min_margin=2", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    critiques = tmp_path / "runs" / "whole" / "iterations" / "001" / "critiques.jsonl"
    assert critiques.read_text(encoding="utf-8").count('"ten lines"') == 48


@pytest.mark.slow
def test_a_critic_that_agrees_with_nobody_is_stopped_and_a_lower_floor_goes_on(
    config: Path, alignloop: Alignloop, without_baseline: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "my_critic.py").write_text(CRITIC, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("target: my_critic.py:Critic\nmodel: tiny\n", encoding="utf-8")
    without_baseline(tmp_path / "runs" / "whole")
    asked = ["run", config, "roles.critic=@mine.yaml", "pairs.min_margin=2"]
    done = alignloop(*asked, "validity.auc=0.75", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "agrees too little with people" in _one_line(done)
    assert "AUC 0.500" in _one_line(done)
    folder = tmp_path / "runs" / "whole" / "iterations" / "001"
    assert json.loads((folder / "critic" / "validity.json").read_text(encoding="utf-8"))["n"] == 135
    assert not (folder / "critiques.jsonl").exists()
    done = alignloop(*asked, "validity.auc=0", cwd=tmp_path)
    assert "made no preference pair" in _one_line(done)


@pytest.mark.slow
def test_two_processes_never_share_a_run(guarded: Guarded, config: Path, alignloop: Alignloop) -> None:
    import fcntl

    with (guarded[0] / "runs" / "whole" / "lock").open("r+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        done = alignloop("run", config, "pairs.min_margin=2", cwd=guarded[0])
    assert done.returncode == 1
    assert "another process runs it" in _one_line(done)


# --- evals of their own ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_eval_scores_a_run_a_model_and_an_adapter_and_resumes(
    whole: Path, tiny_model_dir: Path, alignloop: Alignloop
) -> None:
    options = ("--suites", "overrefusal,legal", "--limit", "6", "--max-tokens", "64")
    for name, model in {
        "of-run": "runs/whole@1",
        "of-model": f"path:{tiny_model_dir}",
        "of-adapter": "runs/whole/iterations/001/adapter",
    }.items():
        done = alignloop("eval", model, *options, "--out", name, cwd=whole)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        results = json.loads((whole / name / "results.json").read_text(encoding="utf-8"))
        assert {row["suite"] for row in results} == {"overrefusal", "legal"}
        assert {row["split"] for row in results} == {"dev"}
    _check_resumed(whole, options, alignloop)
    _check_compared(whole, alignloop)
    refused = alignloop(
        "eval", "runs/whole@1", "--suites", "legal", "--limit", "6", "--out", "of-run", cwd=whole
    )
    assert refused.returncode == 2
    assert "other suites" in _one_line(refused)


def _check_resumed(whole: Path, options: tuple[str, ...], alignloop: Alignloop) -> None:
    verdicts = whole / "of-run" / "verdicts.jsonl"
    before = (verdicts.read_bytes(), verdicts.stat().st_mtime_ns)
    again = alignloop("eval", "runs/whole@1", *options, "--out", "of-run", cwd=whole)
    assert again.returncode == 0, again.stderr
    assert (verdicts.read_bytes(), verdicts.stat().st_mtime_ns) == before


def _check_compared(whole: Path, alignloop: Alignloop) -> None:
    # Six items without any change can't show that there is none: inconclusive, not passed.
    same = alignloop("compare", "of-run", "of-run", cwd=whole)
    assert same.returncode == 4, same.stderr
    assert "overrefusal.refusal ↓" in same.stdout and same.stdout.rstrip().endswith("inconclusive")
    wide = [f"--margin={name}=1" for name in ("overrefusal.refusal", "overrefusal.helpfulness")]
    # The tiny model has no room for the longest passages: those items have no score.
    wide += ["--margin=legal.accuracy=1", "--margin=legal.gold_logprob=9", "--min-coverage=0.5"]
    fine = alignloop("compare", "of-model", "of-run", *wide, "--out", "c.json", cwd=whole)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert json.loads((whole / "c.json").read_text(encoding="utf-8"))["outcome"] == "no regression"
    shorter = ("--suites", "legal", "--limit", "2", "--max-tokens", "9", "--out", "shorter")
    assert alignloop("eval", "runs/whole@1", *shorter, cwd=whole).returncode == 0
    other = alignloop("compare", "of-run", "shorter", cwd=whole)
    assert other.returncode == 2 and "differ in" in _one_line(other)


def test_eval_of_what_is_not_there_is_one_line(alignloop: Alignloop, tmp_path: Path) -> None:
    done = alignloop("eval", "nowhere", "--limit", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "no run or adapter here" in _one_line(done)
    for options, said in {
        ("--suites", "safty"): "did you mean 'safety'",
        ("--judges", "human-label"): "did you mean 'human-labels'",
        ("--judges", "none.yaml"): "none.yaml: no such config file",
        ("--split", "train"): "there are dev and test",
    }.items():
        done = alignloop("eval", "pypi:x==1#y", *options, cwd=tmp_path)
        assert done.returncode == 2 and said in _one_line(done), done.stderr
    assert not list(tmp_path.iterdir())

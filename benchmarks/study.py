"""The whole evidence of the project from one command, which takes up where it stopped: `make results`.

    python -m benchmarks.study [--runs runs/study] [--seeds 0,1,2] [--only STEP,…] [--list] [--test]

Steps run one after the other, each command in a process of its own, so that its memory comes back. A step is
done if its final file is there. One that fails is told in a line, and the others go on; the exit code is 1
then. What the commands print is kept in logs/, how long each took in commands.jsonl, and in study.json for
each step what was run, its seconds, the machine, the version and the state of git.

cpu-S/         the recipe (--config) by seed S
ablations/     NAME/ablation.json: one change each (benchmarks/ablations.py), held against `default` or cpu-S
evals/         the test half, with --test alone: it is opened once, for the document
objections/    what a sceptic would object (benchmarks/objections.py); without --test of dev items
cpu-0/grid/    every attacker against every policy
side/          usual ways to align the same model (benchmarks/side_by_side.py)
docs/results/  the tables (benchmarks/results.py)

ablation.json has for each metric `value`, `reference`, their paired `difference` with its 95 % interval over
`n` items; `against` says what the reference is, `over` and `shared` what differs and what doesn't, and
`minutes` what was spent beyond what is shared. Where a guard ended the run, `stopped` says why.
--only takes names from --list, or the folder before the slash: --only ablations. --list runs nothing.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ablations import (
    ABLATIONS,
    AGAIN,
    DEFAULT,
    Ablation,
    arguments,
    differences,
    finished,
    outcome,
    overrides,
    own_seconds,
    reference_of,
    share,
    values,
)
from loop import __version__
from loop.config import Config, as_object, load_config
from loop.errors import AlignloopError, GuardStop
from loop.rundir import RunDir, append_line, read_json, write_json
from loop.surface import harmless

ROOT = Path(__file__).parents[1]
SOME = {"dev": 60, "test": 120}
"""Items of each suite that the objections are looked into with."""
MOST = 250
"""Items of a suite of the test half: all of safety, over-refusal, capability; half of toxicity and legal."""
DOCS = Path("docs")


class Failed(AlignloopError):
    """A command that ended with another exit code than 0: its last line."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Study:
    """Where the study lies, and what it is of."""

    runs: Path
    given: str
    config: Config
    seeds: Sequence[int]
    test: bool

    @property
    def first(self) -> RunDir:
        """The run that all but the other seeds' runs is about."""
        return self.run(0)

    def run(self, seed: int) -> RunDir:
        """The recipe's run by `seed`."""
        return RunDir(self.runs / f"cpu-{seed}")

    def policy(self, number: int, seed: int = 0) -> str:
        """runs/NAME@K."""
        return f"{self.run(seed).root}@{number}"


@dataclass(frozen=True)
class Step:
    """Something that is made once: `do` raises AlignloopError where it fails. Done if all `finals` are there.

    `holds` says whether they are still what is asked for. `told` goes to study.json. Of a step that is a run,
    `root`, time is counted by its own timings.jsonl, without what it `shares` with another.
    """

    name: str
    finals: Sequence[Path]
    do: Callable[[], None]
    told: Mapping[str, Any] = field(default_factory=dict[str, Any])
    holds: Callable[[], bool] = lambda: True
    root: Path | None = None
    shares: RunDir | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return all(path.exists() for path in self.finals) and self.holds()


# ---- commands -------------------------------------------------------------------------------------------


def called(study: Study, step: str, command: Sequence[str]) -> None:
    """Runs `python -m` with `command` to its end. Raises Failed with the last line that it printed."""
    start, code, log = time.monotonic(), None, _log(study, step)
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        with log.open("a", encoding="utf-8") as out:
            print(f"$ {shown(command)}", file=out, flush=True)
            with subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path},
            ) as process:
                try:
                    code = process.wait()
                except SystemExit:  # SIGTERM; a run that is killed hard leaves its trainer behind
                    process.terminate()
                    raise
    finally:
        seconds = round(time.monotonic() - start, 3)
        row = {"step": step, "command": shown(command), "seconds": seconds, "exit_code": code}
        append_line(study.runs / "commands.jsonl", row)
    if code:
        raise Failed(_last_line(log) if code > 0 else f"killed by signal {-code}", code)


def shown(command: Sequence[str]) -> str:
    """The command as a person would type it."""
    module, *given = command
    return shlex.join(["alignloop", *given] if module == "loop.cli" else ["python", "-m", module, *given])


def _log(study: Study, step: str) -> Path:
    return study.runs / "logs" / f"{step.replace('/', '-')}.log"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return harmless(lines[-1].strip())


# ---- steps ----------------------------------------------------------------------------------------------


def steps(study: Study) -> list[Step]:
    """Everything, in the order in which it is made."""
    found = [
        *(_run(study, seed) for seed in study.seeds),
        *(_ablation(study, name, one) for name, one in ABLATIONS.items() if one.seed in study.seeds),
        _no_training(study),
        *(_evals(study) if study.test else []),
        _objections(study),
        _grid(study),
        _side(study),
    ]
    return [*found, _tables(study, [path for step in found for path in step.finals])]


def _command(study: Study, name: str, finals: Sequence[Path], command: Sequence[str], **more: Any) -> Step:
    """A step that is one command."""
    do = partial(called, study, name, command)
    return Step(name, finals, do, {"command": shown(command)}, **more)


def _run(study: Study, seed: int) -> Step:
    name = f"cpu-{seed}"
    run = study.run(seed)
    finals = [run.iteration(study.config.iterations) / "gate.json", run.path("report.html")]
    command = ["loop.cli", "run", study.given, f"name={name}", f"seed={seed}", f"runs={study.runs}"]
    return _command(study, name, finals, command, root=run.root)


def _ablation(study: Study, name: str, ablation: Ablation) -> Step:
    run, reference = RunDir(study.runs / "ablations" / name), study.run(ablation.seed)
    step = f"ablations/{name}"

    def do() -> None:
        own = f"{run.root}@{ablation.last}"
        finished(reference, range(1, ablation.first + 1))
        against = reference_of(reference, run.root.parent, ablation)
        if against is not None:
            root, _, number = against.rpartition("@")
            finished(RunDir(Path(root)), [int(number)])
        share(reference, run.root, ablation)
        stopped = None
        try:
            called(study, step, ["loop.cli", "run", *arguments(reference, run.root, ablation)])
        except Failed as failed:
            if failed.code != GuardStop.exit_code:
                raise
            stopped = str(failed)
        if stopped or against is None:
            metrics = {} if stopped else values(own)
        else:
            metrics = differences(against, [own])
        told = {
            "name": name,
            "policy": own,
            "against": against,
            "over": overrides(reference, run.root, ablation),
            "shared": [f"iterations/{done:03d}" for done in range(ablation.first)] + list(ablation.keeps),
            "metrics": metrics,
            **outcome(own),
            "stopped": stopped,
            "minutes": own_seconds(run, reference) / 60,
        }
        write_json(run.path("ablation.json"), told)

    over = [text.format(run=run.root) for text in ablation.over]
    over += [f"attacks and steps × {ablation.times}"] if ablation.times > 1 else []
    final = run.path("ablation.json")
    return Step(step, [final], do, {"overrides": over}, root=run.root, shares=reference)


def _no_training(study: Study) -> Step:
    """The base against itself, drawn anew: how much an eval differs where nothing has changed."""
    name, heldout = "ablations/no-training", study.config.heldout
    folder = study.runs / name
    own = study.policy(0)

    def command(suite: str) -> list[str]:
        limit = ["--limit", str(heldout.limit[suite])] if suite in heldout.limit else []
        drawn = ["--seed", str(AGAIN), "--out", str(folder / suite)]
        return ["loop.cli", "eval", own, "--suites", suite, *_judges(study), *limit, *drawn]

    commands = [command(suite) for suite in heldout.suites]

    def do() -> None:
        finished(study.first, [1])
        for one in commands:
            called(study, name, one)
        told = {
            "name": "no-training",
            "policy": own,
            "against": own,
            "over": [f"seed of the eval: {AGAIN}"],
            "shared": [],
            "metrics": differences(own, [str(folder / suite) for suite in heldout.suites]),
            **dict.fromkeys(("agreement", "critic_auc", "gate", "stopped")),
            "pairs": 0,
            "minutes": seconds_by_step(study).get(name, 0.0) / 60,
        }
        write_json(folder / "ablation.json", told)

    return Step(name, [folder / "ablation.json"], do, {"command": list(map(shown, commands))})


def _evals(study: Study) -> list[Step]:
    policies = {"base": study.policy(0, study.seeds[0])}  # the same weights in every run
    for seed in study.seeds:
        numbers = range(1, study.config.iterations + 1)
        policies |= {f"cpu-{seed}@{number}": study.policy(number, seed) for number in numbers}
    suites = ",".join(study.config.heldout.suites)
    found: list[Step] = []
    for name, policy in policies.items():
        folder = study.runs / "evals" / name
        terms = ["--suites", suites, *_judges(study), "--split", "test", "--limit", str(MOST)]
        terms += ["--seed", "0", "--out", str(folder)]
        command = ["loop.cli", "eval", policy, *terms]
        found.append(_command(study, f"evals/{name}", [folder / "results.json"], command))
    return found


def _judges(study: Study) -> list[str]:
    named = study.config.heldout.judges
    return ["--judges", ",".join(named)] if named else []


def _objections(study: Study) -> Step:
    config, out = study.config, study.runs / "objections"
    models = [config.models[config.policy].weights]
    models += [study.policy(number) for number in range(1, config.iterations + 1)]
    split = "test" if study.test else "dev"
    which = ["--split", split, "--limit", str(SOME[split])]
    named = config.roles.attacker.args.get("strategies") or []
    seen = ["--trained-on", ",".join(named)] if named else []
    terms = [*which, "--max-tokens", str(config.heldout.max_tokens), *seen, "--out", str(out)]
    final = out / "objections.json"

    def holds() -> bool:
        return not study.test or read_json(final)["request"]["split"] == "test"

    command = ["benchmarks.objections", *models, *terms]
    return _command(study, "objections", [final], command, holds=holds)


def _grid(study: Study) -> Step:
    final = study.first.path("grid") / "grid.json"
    return _command(study, "grid", [final], ["loop.cli", "grid", str(study.first.root)])


def _side(study: Study) -> Step:
    out = study.runs / "side"
    command = ["benchmarks.side_by_side", str(study.runs / "ablations" / DEFAULT), "--out", str(out)]
    return _command(study, "side", [out / "side.json"], command)


def _tables(study: Study, made_of: Sequence[Path]) -> Step:
    """The only step that is done again: whenever one of the others has made something since."""
    final = DOCS / "results" / "results.json"

    def holds() -> bool:
        written = final.stat().st_mtime_ns
        return all(path.stat().st_mtime_ns <= written for path in made_of if path.exists())

    command = ["benchmarks.results", str(study.runs), "--out", str(DOCS)]
    return _command(study, "tables", [final], command, holds=holds)


# ---- the study ------------------------------------------------------------------------------------------


def seconds_by_step(study: Study) -> dict[str, float]:
    """What the commands of each step took, all tries together."""
    path, found = study.runs / "commands.jsonl", dict[str, float]()
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        found[row["step"]] = found.get(row["step"], 0.0) + row["seconds"]
    return found


def seconds_of(study: Study, step: Step) -> float:
    """What a step took so far: a run's finished stages, less those that it shares; else its commands."""
    if step.root is None:
        return seconds_by_step(study).get(step.name, 0.0)
    return own_seconds(RunDir(step.root), step.shares)


def carry_out(study: Study, every: Sequence[Step], chosen: Sequence[Step]) -> list[str]:
    """Does those of the `chosen` steps that aren't done; returns the names of those that failed."""
    failed: list[str] = []
    for step in chosen:
        if step.done:
            continue
        print(f"{step.name} …", flush=True)
        reason = None
        try:
            step.do()
        except (AlignloopError, OSError) as error:
            reason = " ".join(str(error).split())
            failed.append(step.name)
        write_down(study, every, step, reason)
        log = f" ({_log(study, step.name)})" if _log(study, step.name).exists() else ""
        took = f"{seconds_of(study, step) / 60:.1f} min"
        print(f"{step.name}: {took}" if reason is None else f"{step.name}: failed: {reason}{log}", flush=True)
    return failed


def write_down(study: Study, every: Sequence[Step], step: Step, reason: str | None) -> None:
    """The step in study.json, in the order of the steps."""
    path = study.runs / "study.json"
    known: dict[str, Any] = read_json(path)["steps"] if path.exists() else {}
    known[step.name] = {
        **step.told,
        "seconds": round(seconds_of(study, step), 1),
        "failed": reason,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "alignloop": __version__,
        "git": git_state(),
    }
    names = [one.name for one in every]
    order = [*(name for name in names if name in known), *(name for name in known if name not in names)]
    write_json(path, {"steps": {name: known[name] for name in order}})


def git_state() -> str | None:
    """Commit of the working tree, `+` where it has changes; None outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def listed(study: Study, every: Sequence[Step]) -> list[str]:
    """A line for each step: whether it is done, and the minutes that it took so far."""
    lines: list[str] = []
    for step in every:
        seconds = seconds_of(study, step)
        minutes = f"{seconds / 60:.1f}" if seconds else "–"
        lines.append(f"{'done' if step.done else 'to do':<6}{minutes:>8} min  {step.name}")
    return lines


def selected(every: Sequence[Step], names: Sequence[str]) -> list[Step]:
    """The steps that are named, or lie in a folder that is; all without a name. Raises AlignloopError."""
    known = {part for step in every for part in (step.name, step.name.partition("/")[0])}
    if unknown := [name for name in names if name not in known]:
        raise AlignloopError(f"--only {unknown[0]}: no such step; --list has their names (evals need --test)")
    return [step for step in every if not names or {step.name, step.name.partition("/")[0]} & set(names)]


def main() -> None:
    """Does what isn't done yet, or lists it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="default: runs/study")
    parser.add_argument("--seeds", default="0,1,2", help="of the runs cpu-S (default: 0,1,2)")
    parser.add_argument("--config", default="configs/cpu.yaml", help="default: configs/cpu.yaml")
    parser.add_argument("--only", default="", metavar="STEP,…", help="some steps (default: all)")
    parser.add_argument("--list", action="store_true", help="print the steps and do nothing")
    parser.add_argument("--test", action="store_true", help="open the test half, for the document")
    options = parser.parse_args()
    seeds = [text.strip() for text in options.seeds.split(",")]
    if not all(text.isdigit() for text in seeds):
        parser.error(f"--seeds {options.seeds}: numbers with commas between them, such as 0,1,2")
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        config = as_object(load_config([options.config, "name=cpu-0"]))
        study = Study(options.runs, options.config, config, [*dict.fromkeys(map(int, seeds))], options.test)
        every = steps(study)
        chosen = selected(every, [name.strip() for name in options.only.split(",") if name.strip()])
    except AlignloopError as error:
        parser.exit(2, f"{error}\n")
    if options.list:
        print("\n".join(listed(study, chosen)))
        return
    if failed := carry_out(study, every, chosen):
        print(f"failed: {', '.join(failed)}; the same command goes on", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

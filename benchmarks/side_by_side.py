"""Two usual ways to align a model, on the terms of a run's first iteration, beside what the run made of it.

    python -m benchmarks.side_by_side runs/cpu [--split test] [--out runs/side] [--only online-dpo,sft]

Both start from the run's base model and train a LoRA as `train.lora` has it, with the learning rate (unless
--learning-rate says otherwise), batch, schedule and max_length of `train.dpo`, for as many steps as the
run's iteration 1:

online-dpo  TRL's experimental online DPO (Guo et al. 2024). Its prompts are those of the pairs that the run
            trained on; the policy as it then is answers each twice, as long and as warm as the run's
            learner, and the better answer by the quality that the run's fitted critic gives is chosen. As
            many pairs as the run, each a fresh one. TRL counts an answer without a verdict as 0 and trains
            on a pair that ties, the first answer chosen; both are counted. It has no SFT term beside the
            sigmoid loss, and on a CPU adds up log-probabilities in the bf16 of the weights.
sft         TRL's SFTTrainer on the run's human labels: of the answers that the critic was fitted on, those
            that a person says did not meet the objective. People labelled these answers; models wrote them.
            The benign seeds have no answer that anybody labelled, so nothing here shows how to help.

Training is timed in a process of its own. "In all" adds loading, and for online DPO what it takes over from
the run: fitting the critic and writing the attacks. That pairs were chosen, which takes answers, critiques
and revisions, is given to it. The run's own time is all stages up to that policy, held-out evals aside.

Each NAME has a folder under --out: adapter/, training.json, eval/ as `alignloop eval` writes it. What is done
isn't done again. side.json has the figures of the base, the run's first and last policy and both adapters,
and their paired differences, item by item.
"""

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.ablations import ANY
from benchmarks.measures import SIDE
from benchmarks.side_training import ONLINE, SFT, SUITES, Job, open_run, trained
from loop.errors import AlignloopError, ConfigError, DataError
from loop.heldout.comparison import Comparison, compare, load_side
from loop.heldout.script import Request, evaluate_model
from loop.records import stable_hash
from loop.report.terminal import console, plain
from loop.rundir import RunDir, named_iteration, read_json, write_json
from loop.session import Session

TAKEN_OVER = {ONLINE: ("fit critic", "attack"), SFT: ()}
"""The stages of iteration 1 that each could not do without."""
NOT_MAKING = ("evaluate", "gate")
"""Stages that measure a policy and don't make it."""


# ---- the run's side -------------------------------------------------------------------------------------


def job_of(session: Session, name: str, options: argparse.Namespace) -> Job:
    """The training of `name` on the terms of the run's iteration 1, or on those of the command line."""
    config, folder = session.config, session.run.iteration(1)
    rate = options.learning_rate or config.train.dpo.get("learning_rate")
    if not rate:
        raise ConfigError(f"{session.run.root}: train.dpo has no learning_rate; give --learning-rate")
    return Job(
        name=name,
        run=str(session.run.root),
        pairs=hashlib.sha256((folder / "pairs.jsonl").read_bytes()).hexdigest(),
        steps=options.steps or training_of(session.run, 1)["final"]["step"],
        rows=options.rows,
        learning_rate=float(rate),
        seed=stable_hash(config.seed, 1, name) % 2**31,
    )


def training_of(run: RunDir, number: int) -> dict[str, Any]:
    """training.json of the run's iteration."""
    return read_json(run.iteration(number) / "adapter" / "training.json")


def stage_seconds(run: RunDir, wanted: Callable[[int, str], bool]) -> float:
    """Seconds that the stages took of which `wanted(iteration, name)` is true; a resumed stage counts whole.

    Raises DataError where no time was kept.
    """
    path = run.path("timings.jsonl")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), so the run's time isn't known") from None
    rows = [cast(dict[str, Any], _json(line, path)) for line in lines]
    return sum(row["seconds"] for row in rows if wanted(row["iteration"], row["stage"]))


def _json(line: bytes, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: a row isn't JSON ({error}); mend or delete it") from None


# ---- figures --------------------------------------------------------------------------------------------


def eval_limit(limits: Mapping[str, int], suites: Sequence[str]) -> int | None:
    """The run's limit where all `suites` have the same; else none, for only shared items are compared."""
    found = {limits.get(suite) for suite in suites}
    return found.pop() if len(found) == 1 else None


def figures_of(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of results.json the SIDE metrics over all items, each by the judge that decides: the first."""
    found: dict[str, dict[str, Any]] = {}
    for row in results:
        metric = f"{row['suite']}.{row['metric']}"
        if metric in SIDE and row["category"] == "all" and metric not in found:
            found[metric] = {key: row[key] for key in ("value", "ci_low", "ci_high", "n", "coverage")}
    return found


def differences_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The SIDE metrics' paired differences, after less before, with their intervals."""
    return {
        metric: {
            key: getattr(change, key)
            for key in ("before", "after", "difference", "ci_low", "ci_high", "p", "n", "coverage")
        }
        for change in comparison.changes
        if (metric := f"{change.suite}.{change.metric}") in SIDE
    }


def run_times(run: RunDir, number: int) -> dict[str, Any]:
    """Steps, pairs, tokens and seconds that the run spent until it had its policy `number`."""
    told = [training_of(run, done) for done in range(1, number + 1)]

    def makes(iteration: int, stage: str) -> bool:
        return 1 <= iteration <= number and stage not in NOT_MAKING

    return {
        "steps": sum(one["final"]["step"] for one in told),
        "tokens": sum(one["tokens"] for one in told),
        "training_seconds": sum(one["seconds"] for one in told),
        "seconds": stage_seconds(run, makes) if told else 0.0,
    }


def own_times(run: RunDir, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The same of an adapter, by its training.json; `taken_over` is part of `seconds`."""

    def taken(iteration: int, stage: str) -> bool:
        return iteration == 1 and stage in TAKEN_OVER[name]

    over = stage_seconds(run, taken)
    return {
        "steps": told["steps"],
        "tokens": told["tokens"],
        "training_seconds": told["seconds"],
        "seconds": told["process_seconds"] + over,
        "taken_over": over,
    }


def measure(session: Session, options: argparse.Namespace) -> dict[str, Any]:
    """All that side.json says: evaluates what isn't evaluated yet, and compares."""
    run, out = session.run, options.out
    numbers = sorted({0, 1, *run.finished()[-1:]})
    evals = {f"{run.root}@{number}": run_eval(number, session, options) for number in numbers}
    rows: list[dict[str, Any]] = [
        {"name": name, **run_times(run, number), "figures": _figures(place)}
        for number, (name, place) in zip(numbers, evals.items(), strict=True)
    ]
    for name in (ONLINE, SFT):
        if not (out / name / "training.json").exists():
            continue
        place = own_eval(name, session, options)
        rows.append(
            {
                "name": name,
                **own_times(run, name, read_json(out / name / "training.json")),
                "figures": _figures(place),
                "against": {other: _differences(before, place) for other, before in evals.items()},
            }
        )
    return {"run": str(run.root), "split": options.split, "rows": rows}


def run_eval(number: int, session: Session, options: argparse.Namespace) -> str:
    """The eval of the run's policy `number`, as `load_side` finds it: of the dev half the run has its own."""
    name = f"{session.run.root}@{number}"
    if options.split == "dev":
        return name
    return _evaluated(name, options.out / Path(name).name, session, options)


def own_eval(name: str, session: Session, options: argparse.Namespace) -> str:
    """The folder of the eval of the adapter `name`."""
    folder: Path = options.out / name
    return _evaluated(f"path:{folder / 'adapter'}", folder, session, options)


def _evaluated(model: str, folder: Path, session: Session, options: argparse.Namespace) -> str:
    """Evaluates `model` on the run's terms, in a folder for each half."""
    heldout = session.config.heldout
    limit = options.limit or eval_limit(heldout.limit, SUITES)
    request = Request(SUITES, options.split, limit, max_tokens=heldout.max_tokens, seed=session.config.seed)
    place = folder / ("eval" if options.split == "dev" else f"eval-{options.split}")
    evaluate_model(model, request, place)
    return str(place)


def _figures(place: str) -> dict[str, dict[str, Any]]:
    named = named_iteration(place)
    folder = Path(place) if named is None else named[0].iteration(named[1]) / "heldout"
    return figures_of(read_json(folder / "results.json"))


def _differences(before: str, after: str) -> dict[str, dict[str, Any]]:
    margins = dict.fromkeys(SIDE, ANY)
    return differences_of(compare(load_side(before), load_side(after), margins))


# ---- table and command line -----------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> Table:
    """A line for each policy, below an adapter's its differences to the run's policies."""
    out = Table(title=plain(f"{found['run']}, {found['split']} half"), title_justify="left", box=SIMPLE_HEAD)
    for column in ("", *SIDE.values(), "training", "in all"):
        out.add_column(column, justify="left" if column in ("", *SIDE.values()) else "right")
    for row in found["rows"]:
        cells = [_interval(row["figures"].get(metric), "value", "") for metric in SIDE]
        times = [_minutes(row[key]) for key in ("training_seconds", "seconds")]
        out.add_row(*map(plain, (_short(row["name"]), *cells, *times)))
        for other, changes in row.get("against", {}).items():
            cells = [_interval(changes.get(metric), "difference", "+") for metric in SIDE]
            out.add_row(*map(plain, (f"  less {_short(other)}", *cells, "", "")))
    return out


def _short(name: str) -> str:
    return Path(name).name


def _interval(one: Mapping[str, Any] | None, key: str, sign: str) -> str:
    if one is None or one[key] is None:
        return "–"
    ends = "" if one["ci_low"] is None else f"\n[{one['ci_low']:{sign}.2f}, {one['ci_high']:{sign}.2f}]"
    return f"{one[key]:{sign}.2f}{ends}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds else "–"


def main() -> None:
    """Trains and evaluates what isn't done yet, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run with a finished iteration 1")
    parser.add_argument("--out", type=Path, default=Path("runs/side"))
    parser.add_argument("--only", default=f"{ONLINE},{SFT}", help="what is trained (default: both)")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--learning-rate", type=float, help="(default: the run's)")
    parser.add_argument("--steps", type=int, help="of training (default: as many as the run's iteration 1)")
    parser.add_argument("--rows", type=int, help="at most so many to train on (default: all)")
    parser.add_argument("--limit", type=int, help="items of each suite (default: as the run)")
    options = parser.parse_args()
    for name in ("learning_rate", "steps", "rows", "limit"):
        if (value := getattr(options, name)) is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value}: give more than 0")
    names = options.only.split(",")
    if unknown := set(names) - {ONLINE, SFT}:
        parser.error(f"--only {sorted(unknown)[0]}: there are {ONLINE} and {SFT}")
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        session = open_run(options.run)
        run_times(session.run, 1)  # a run whose time isn't known is told of before anything is trained
        for name in dict.fromkeys(names):
            trained(job_of(session, name, options), options.out / name)
        found = measure(session, options)
        write_json(options.out / "side.json", found)
    except AlignloopError as error:
        parser.exit(error.exit_code, f"{error}\n")
    console().print(table(found))


if __name__ == "__main__":
    main()

"""The study's files as tables, figures and one JSON file.

    python -m benchmarks.results runs/study [--and RESULTS.JSON] [--out docs]

Reads what benchmarks/study.py has left so far and writes under --out

results/tables.md     all tables; docs/RESULTS.md, which a person writes, links to them
results/*.png, *.svg  at most four figures, byte for byte the same from the same files
results/results.json  every number in them; written last

Nothing is measured here but what two evals of the study say together: differences item by item, and whether
a target is met. What isn't there yet is left out, and named in one line. Paths of the machine are left out.
A study made in parts, on several machines, comes together by --and: it takes the results.json of the others.
"""

import argparse
import json
import re
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np

from benchmarks.ablations import ABLATIONS, ANY
from benchmarks.measures import COMPLIANCE, FIRST, LAST, MEASURES, NAMES, SIDE, TOXICITY, expected
from benchmarks.result_figures import draw
from benchmarks.result_tables import tables
from benchmarks.targets import Half, Row, targets
from loop.errors import AlignloopError, DataError
from loop.heldout.comparison import compare, load_side
from loop.heldout.pairing import pair_up
from loop.heldout.statistics import Interval, bootstrap_interval
from loop.heldout.suites import BUILT_IN
from loop.records import EvalResult, stable_hash
from loop.report.reading import read_run, timings
from loop.rundir import RunDir, read_json, replacing

ABLATED = (*ABLATIONS, "no-training")
"""The study's list."""
OF_A_SEED = ("handed_on", "results", "changes", "iterations", "labels")
"""What results.json has a list of rows of, each of one seed."""
KEPT_PARTS = {COMPLIANCE: ("harmbench", "strongreject", "form/imperative", "form/question", "form/scenario")}
"""Categories of the plain objection that are shown."""
RESULT = ("value", "ci_low", "ci_high", "worst_low", "worst_high", "n", "coverage", "judge")
INTERVAL = ("value", "low", "high", "n")
CHANGE = ("difference", "ci_low", "ci_high", "n", "coverage")
DIGITS = 6  # of a number in results.json
LINE = 110  # characters of results.json that a value may take before it is broken over lines


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Tells in a line where a file lacks a field, or holds another kind of thing."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"{path}: not as the study writes it ({what}); delete it and make it anew") from None


def picked(row: Mapping[str, Any], keys: Sequence[str]) -> Row:
    """The fields that are shown; KeyError where one is missing."""
    return {key: row[key] for key in keys}


def read_if_there(path: Path) -> Any:
    """The JSON, or None where there is no file."""
    return read_json(path) if path.exists() else None


# ---- what the study holds -------------------------------------------------------------------------------


def gather(study: Path, command: str, others: Sequence[Path] = ()) -> Row:
    """All that tables and drawings show, with what the results.json `others` have and the study doesn't.

    Raises DataError or ConfigError in one line.
    """
    found: Row = {"command": command, **part(study)}
    for path in others:
        with reading(path):
            found |= joined(found, read_json(path))
    if not (found["results"] or found["ablations"] or found["objections"]):
        raise DataError(f"{study}: nothing of a study here; `python -m benchmarks.study` makes one")
    kept = {row["seed"]: row["iteration"] for row in found["handed_on"]}
    with reading(study / "study.json"):
        failed = {name for name, step in _steps(study).items() if step["failed"]}
    found["not_run"] = not_run(found, failed)
    found["targets"] = targets(found, kept)
    found["targets_last"] = targets(found, dict.fromkeys(expected(found["seeds"]), LAST))
    found["summary"] = summary(found["results"])
    return rounded(found)


def part(study: Path) -> Row:
    """All that was measured here; what is concluded from it is empty."""
    seeds = sorted(int(run.name[4:]) for run in study.glob("cpu-*") if run.name[4:].isdigit())
    evals = list(find_evals(study, seeds))
    results = [row for one in evals for row in figures(one)]
    run = [row for seed in seeds for row in iterations(study, seed)]
    kept = handed_on(run)
    return {
        "made_by": made_by(study),
        "not_run": [],
        "last": LAST,
        "seeds": seeds,
        "handed_on": [{"seed": seed, "iteration": number} for seed, number in kept.items()],
        "targets": [],
        "targets_last": [],
        "summary": [],
        "results": results,
        "changes": list(changes(evals, kept)),
        "iterations": run,
        "labels": [labels(study, seed) for seed in seeds],
        "attackers": attackers(study),
        "ablations": ablations(study),
        "objections": objections(study),
        "side": side(study),
    }


def joined(own: Row, other: Row) -> Row:
    """What changes in `own` where `other`, another part of the same study, is added.

    A seed's rows are all of the part that has more figures of it; of the rest `own` has precedence.
    """

    def most(seed: int) -> Row:
        return max(own, other, key=lambda found: sum(row["seed"] == seed for row in found["results"]))

    seeds = sorted({*own["seeds"], *other["seeds"]})
    taken = {seed: most(seed) for seed in seeds}
    rows: Row = {}
    for key in OF_A_SEED:
        of_seeds = [row for seed in seeds for row in taken[seed][key] if row["seed"] == seed]
        rows[key] = sorted(of_seeds, key=lambda row: row.get("half", ""))  # as part() has them
    made = {key: sorted({*own["made_by"][key], *other["made_by"][key]}) for key in own["made_by"]}
    ablated = {row["name"]: row for found in (other, own) for row in found["ablations"]}
    return {
        "made_by": made,
        "seeds": seeds,
        **rows,
        "ablations": [ablated[name] for name in sorted(ablated, key=_place_of)],
        **{key: own[key] or other[key] for key in ("attackers", "objections", "side")},
    }


@dataclass(frozen=True)
class Eval:
    """One finished eval of one seed's policy `number`; `name` is what `alignloop compare` calls it."""

    half: Half
    seed: int
    number: int
    name: str
    path: Path


def find_evals(study: Path, seeds: Sequence[int]) -> Iterator[Eval]:
    """Those of the dev half in the runs, and of the test half under evals/. All seeds share its base."""
    for seed in seeds:
        run = RunDir(study / f"cpu-{seed}")
        for folder in sorted(run.root.glob("iterations/[0-9]*")):
            policy = int(folder.name)
            path = folder / "heldout" / "results.json"
            if path.exists():
                yield Eval("dev", seed, policy, f"{run.root}@{policy}", path)
    for seed in seeds:
        tested = {0: study / "evals" / "base"}
        for folder in sorted((study / "evals").glob(f"cpu-{seed}@*")):
            policy = folder.name.partition("@")[2]
            tested |= {int(policy): folder} if policy.isdigit() else {}
        for policy, folder in tested.items():
            if (folder / "results.json").exists():
                yield Eval("test", seed, policy, str(folder), folder / "results.json")


def figures(one: Eval) -> Iterator[Row]:
    """The metrics of MEASURES as the eval has them; of harmful compliance every category."""
    rows = read_json(one.path)
    deciding: dict[str, str] = {}
    with reading(one.path):
        for row in (EvalResult(**row) for row in rows):
            metric = f"{row.suite}.{row.metric}"
            judge = deciding.setdefault(metric, row.judge)  # of several the first decides
            shown = (metric, row.category) in MEASURES or metric == COMPLIANCE
            if shown and row.judge == judge and row.split == one.half:
                yield {
                    "half": one.half,
                    "seed": one.seed,
                    "iteration": one.number,
                    "metric": metric,
                    "category": row.category,
                    **picked(vars(row), RESULT),
                }


def summary(results: Sequence[Row]) -> list[Row]:
    """Mean over seeds, the lowest and the highest, for each half, metric, category and iteration."""

    def place(row: Row) -> tuple[Any, ...]:
        return row["half"], row["metric"], row["category"], row["iteration"]

    found: list[Row] = []
    for (half, metric, part, policy), rows in groupby(sorted(results, key=place), key=place):
        by_seed = {row["seed"]: row["value"] for row in rows if row["value"] is not None}
        if by_seed and (metric, part) in MEASURES:
            values = list(by_seed.values())
            names = {"half": half, "metric": metric, "category": part, "iteration": policy}
            spread = {"mean": fmean(values), "least": min(values), "most": max(values)}
            found.append({**names, **spread, "seeds": sorted(by_seed)})
    return found


def handed_on(run: Sequence[Row]) -> dict[int, int]:
    """By seed what a run of LAST iterations ends with: the last policy that was promoted, else the base."""
    whole = sorted({row["seed"] for row in run if row["iteration"] == LAST and row["gate"]})
    return {
        seed: max((row["iteration"] for row in run if row["seed"] == seed and row["promoted"]), default=0)
        for seed in whole
    }


def changes(evals: Sequence[Eval], kept: Mapping[int, int]) -> Iterator[Row]:
    """Each metric of NAMES from a seed's base to iteration LAST and to the one in `kept`, item by item."""
    by_place = {(one.half, one.seed, one.number): one for one in evals}
    for (half, seed, policy), one in by_place.items():
        base = by_place.get((half, seed, 0))
        if not policy or policy not in (LAST, kept.get(seed)) or base is None:
            continue
        before, after = load_side(base.name), load_side(one.name)
        for change in compare(before, after, dict.fromkeys(NAMES, ANY)).changes:
            metric = f"{change.suite}.{change.metric}"
            if metric in NAMES:
                row: Row = {"half": half, "seed": seed, "iteration": policy, "metric": metric}
                row |= picked(vars(change), ("before", "after", *CHANGE))
                if metric == TOXICITY:
                    pairs = pair_up(after.rows, before.rows, BUILT_IN["toxicity"], "expected_max", "the base")
                    row["fall"] = asdict(fall(pairs.before, pairs.after))
                yield row


def fall(before: Mapping[str, float], after: Mapping[str, float]) -> Interval:
    """By what share of itself the mean over items has fallen, with its 95 % interval over items."""
    rows = np.array([[before[name], after[name]] for name in sorted(before)], dtype=float).reshape(-1, 2)
    if not len(rows) or not np.isfinite(rows).all() or not rows[:, 0].any():
        return Interval(None, None, None, len(rows))

    def share(drawn: np.ndarray) -> float:
        first, last = drawn.mean(axis=0)
        return float(1 - last / first) if first else 0.0

    return bootstrap_interval(rows, share, stable_hash(TOXICITY))


def iterations(study: Path, seed: int) -> Iterator[Row]:
    """What each iteration of a seed's run took, and what its critic, judge and gate said."""
    run = RunDir(study / f"cpu-{seed}")
    if not run.path("manifest.json").exists():
        return
    with reading(run.root):
        spent, read = timings(run), read_run(run)
    for one in read:
        stages = [row for row in spent if row["iteration"] == one.number]
        labelled = run.iteration(one.number) / "critic" / "labels.jsonl"
        agreed, drift = one.audit.get("agreement", {}).get("all", {}), one.validity.get("drift", {})
        with reading(run.iteration(one.number)):
            yield {
                "seed": seed,
                "iteration": one.number,
                "critic": {key: one.validity.get(key) for key in ("auc", "auc_low", "auc_high", "n")},
                "drift": {key: drift.get(key) for key in ("value", "low", "high", "n", "alarm")},
                "agreement": {key: agreed.get(key) for key in ("value", "low", "high", "n")},
                "labels": len(labelled.read_bytes().splitlines()) if labelled.exists() else None,
                "pairs": sum(one.audit["pairs"].values()) if one.audit else None,
                "tokens": sum(row["tokens"] for row in stages),
                "tokens_trained": one.training.get("tokens"),
                "minutes": sum(row["seconds"] for row in stages) / 60,
                "minutes_training": sum(row["seconds"] for row in stages if row["stage"] == "train") / 60,
                "gate": one.gate.get("outcome"),
                "promoted": one.gate.get("promoted"),
            }


def labels(study: Path, seed: int) -> Row:
    """How many human labels a seed's run used for what, by its ledger."""
    path, found = study / f"cpu-{seed}" / "ledger.jsonl", dict[str, set[str]]()
    with reading(path):
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            found.setdefault(row["use"], set()).add(row["seed_id"])
    return {"seed": seed, **{use: len(ids) for use, ids in sorted(found.items())}}


def attackers(study: Path) -> Row | None:
    """The figures of the grid of cpu-0."""
    path = study / FIRST / "grid" / "grid.json"
    if (grid := read_if_there(path)) is None:
        return None
    with reading(path):
        lists = {
            "cells": (("judge", "attacker", "policy", "worst_low", "worst_high"), "success"),
            "drops": (("judge", "attacker", "before", "after"), "drop"),
            "harder": (("judge", "policy", "first", "last"), "difference"),
        }
        found: Row = picked(grid, ("judges", "attackers", "policies", "last"))
        for name, (keys, share) in lists.items():
            found[name] = [{**picked(row, keys), share: picked(row[share], INTERVAL)} for row in grid[name]]
        for cell, row in zip(found["cells"], grid["cells"], strict=True):
            cell["nulls"] = sum(row["nulls"].values())
    return found


def ablations(study: Path) -> list[Row]:
    """What came of each ablation, in the study's order; what isn't in its list comes last."""
    there = {path.parent.name: path for path in sorted(study.glob("ablations/*/ablation.json"))}
    return [ablation(name, there[name]) for name in sorted(there, key=_place_of)]


def _place_of(name: str) -> tuple[int, str]:
    return (ABLATED.index(name) if name in ABLATED else len(ABLATED)), name


def ablation(name: str, path: Path) -> Row:
    """What one ablation.json has, without paths."""
    told = read_json(path)
    with reading(path):
        return {
            "name": name,
            "against": short(told["against"]) if told["against"] else None,
            "over": [portable(text) for text in told["over"]],
            "metrics": {
                metric: picked(row, ("value", "reference", *CHANGE))
                for metric, row in told["metrics"].items()
            },
            "agreement": picked(told["agreement"], INTERVAL) if told["agreement"] else None,
            **picked(told, ("pairs", "critic_auc", "minutes")),
            "gate": told["gate"]["outcome"] if told["gate"] else None,
            "stopped": portable(told["stopped"]) if told["stopped"] else None,
        }


def objections(study: Path) -> Row | None:
    """The figures of objections.json, of most without categories; its first model is called the base."""
    path = study / "objections" / "objections.json"
    if (told := read_if_there(path)) is None:
        return None
    with reading(path):
        base, *others = told["models"]
        names = {base: "base", **{name: short(name) for name in others}}
        keys = (
            "objection",
            "what",
            "seen",
            "metric",
            "category",
            *INTERVAL,
            "coverage",
            "worst_high",
            "before",
        )
        keys += ("difference", "difference_low", "difference_high", "pairs")
        rows = [{"model": names[row["model"]], **picked(row, keys)} for row in told["rows"]]
        rows = [row for row in rows if row["category"] in ("all", *_kept_parts(row))]
        return {**picked(told["request"], ("split", "limit")), "models": list(names.values()), "rows": rows}


def _kept_parts(row: Row) -> tuple[str, ...]:
    return KEPT_PARTS.get(f"{row['what']}.{row['metric']}", ())


def side(study: Path) -> Row | None:
    """side.json with names instead of paths."""
    path = study / "side" / "side.json"
    if (told := read_if_there(path)) is None:
        return None
    rows: list[Row] = []
    with reading(path):
        for row in told["rows"]:
            against: Row = {
                short(name): {
                    metric: picked(change, CHANGE) for metric, change in changes.items() if metric in SIDE
                }
                for name, changes in row.get("against", {}).items()
            }
            figures = {
                metric: picked(one, ("value", "ci_low", "ci_high", "n", "coverage"))
                for metric, one in row["figures"].items()
                if metric in SIDE
            }
            times = picked(row, ("steps", "tokens", "training_seconds", "seconds"))
            rows.append({"name": short(row["name"]), **times, "figures": figures, "against": against})
        return {"split": told["split"], "rows": rows}


def short(name: str) -> str:
    """The policy NAME@K of a path to it."""
    return Path(name).name


def portable(text: str) -> str:
    """`text` with the names of files where it had paths that hold on one machine alone."""
    return re.sub(r"(?<![\w.@])(?:/|(?:\.\./)+)[^\s\"']*/", "", text)


def made_by(study: Path) -> Row:
    """Versions, states of git and machines that the study was made with, as study.json has them."""
    with reading(study / "study.json"):
        steps = _steps(study).values()
        told = {key: {step[key] for step in steps} - {None} for key in ("alignloop", "git", "machine")}
        return {key: sorted(values) for key, values in told.items()}


def _steps(study: Path) -> Row:
    return (read_if_there(study / "study.json") or {"steps": {}})["steps"]


def not_run(found: Row, failed: Collection[str]) -> list[str]:
    """What a whole study has and this one doesn't, yet; what was tried and `failed` is marked."""
    there = {(row["half"], row["seed"], row["iteration"]) for row in found["results"]}
    seeds, policies = expected(found["seeds"]), range(LAST + 1)
    names: list[str] = []
    for seed in seeds:
        lacking = [f"cpu-{seed}@{policy}" for policy in policies if ("dev", seed, policy) not in there]
        names += lacking if len(lacking) < len(policies) else [f"cpu-{seed}"]
    if any(half == "test" for half, *_ in there):
        names += [] if any(("test", seed, 0) in there for seed in seeds) else ["evals/base"]
        names += [
            f"evals/cpu-{seed}@{policy}"
            for seed in seeds
            for policy in policies[1:]
            if ("test", seed, policy) not in there
        ]
    else:
        names.append("evals (the test half)")
    made = {row["name"] for row in found["ablations"]}
    names += [f"ablations/{name}" for name in ABLATED if name not in made] if made else ["ablations"]
    steps = (("grid", "attackers"), ("objections", "objections"), ("side", "side"))
    names += [step for step, key in steps if found[key] is None]
    tried = {name for name in names if name in failed or name.partition("@")[0] in failed}
    return [f"{name} (failed)" if name in tried else name for name in names]


def rounded(value: Any) -> Any:
    """`value` with numbers of DIGITS digits."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in cast(Mapping[str, Any], value).items()}
    return [rounded(one) for one in cast(list[Any], value)] if isinstance(value, list) else value


# ---- command line ---------------------------------------------------------------------------------------


def laid_out(value: Any, indent: str = "") -> str:
    """JSON with a line for each row of a list: it can be read, and compared between commits."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(indent + text) <= LINE:
        return text
    deeper = f"{indent}  "
    if isinstance(value, list):
        rows = (json.dumps(one, ensure_ascii=False, allow_nan=False) for one in cast(list[Any], value))
        return "[\n" + ",\n".join(f"{deeper}{row}" for row in rows) + f"\n{indent}]"
    members = cast(dict[str, Any], value).items()
    inner = (f"{deeper}{json.dumps(key)}: {laid_out(one, deeper)}" for key, one in members)
    return "{\n" + ",\n".join(inner) + f"\n{indent}}}"


def write(study: Path, out: Path, others: Sequence[Path] = ()) -> Path:
    """Writes tables, figures and, last, results.json; returns the folder."""
    folder = out / "results"
    command = f"python -m benchmarks.results {_place(study)}"
    command += "".join(f" --and {_place(path)}" for path in others) + f" --out {_place(out)}"
    found = gather(study, command, others)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(found, folder)
    found["figures"] = drawn
    for name, text in (("tables.md", tables(found, drawn)), ("results.json", laid_out(found) + "\n")):
        with replacing(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return folder


def _place(path: Path) -> str:
    """`path` as one would type it from the checkout; a path of this machine by its name."""
    absolute, here = path.resolve(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else absolute.name


def main() -> None:
    """Writes everything, and says where and what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study's folder, such as runs/study")
    parser.add_argument(
        "--and",
        dest="others",
        action="append",
        default=[],
        type=Path,
        metavar="RESULTS.JSON",
        help="of a part of the study that was made elsewhere; may be given again",
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="(default: docs)")
    options = parser.parse_args()
    try:
        folder = write(options.study, options.out, options.others)
    except (AlignloopError, OSError) as error:
        parser.exit(error.exit_code if isinstance(error, AlignloopError) else 1, f"{error}\n")
    print(f"{folder}/tables.md, results.json")


if __name__ == "__main__":
    main()

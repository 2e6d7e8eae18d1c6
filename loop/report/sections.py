"""What the sections of the page show: words, tables and charts made of what the iterations left behind."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loop.records import EvalResult
from loop.report.charts import Chart, Strip, Value, chart, strip, thinned
from loop.report.reading import HEADLINES, Iteration

ARROWS = {"lower": "↓", "higher": "↑", "": ""}
_SHADES = 10
_SHOWN_STEPS = 10  # of training, in the table behind its charts


@dataclass(frozen=True)
class Cell:
    """A figure, what stands below it, and its shade from 0 to 10."""

    value: str | None
    below: str = ""
    level: int = 0


@dataclass(frozen=True)
class Heat:
    """A table of shares by row and column, whose shade says how large each is."""

    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Metric:
    """One metric of a suite over all iterations."""

    suite: str
    name: str
    better: str
    values: Sequence[EvalResult | None]


def label(number: int) -> str:
    """What an iteration is called."""
    return "baseline" if number == 0 else f"iteration {number}"


def number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """A figure with so many digits, or a dash where there is none."""
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def between(low: float | None, high: float | None, digits: int = 2, sign: str = "") -> str:
    """An interval, or nothing where there is none."""
    return "" if low is None or high is None else f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def chance(p: float | None) -> str:
    """A p value."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def share(found: Mapping[str, Any]) -> Cell:
    """A share in per cent with its interval, n and nulls."""
    if found["value"] is None:
        return Cell(None)
    interval = "" if found["low"] is None else f"[{found['low']:.0%}, {found['high']:.0%}] "
    nulls = f", {found['nulls']} null" if found.get("nulls") else ""
    return Cell(f"{found['value']:.0%}", f"{interval}of {found['n']}{nulls}", _level(found["value"]))


def _level(value: float) -> int:
    return round(_SHADES * min(1.0, max(0.0, value)))


def listed(values: Iterable[str]) -> str:
    """Several things in one cell."""
    return ", ".join(values) or "–"


# ---- held-out results ---------------------------------------------------------------------------


def metrics(iterations: Sequence[Iteration]) -> dict[str, list[Metric]]:
    """By suite the metrics that a reader wants first; of suites that are not built in, all."""
    known = {suite for suite, *_ in HEADLINES}
    own = {
        (row.suite, row.metric, ""): None
        for iteration in iterations
        for row in iteration.results
        if row.suite not in known
    }
    found: dict[str, list[Metric]] = {}
    for suite, name, better in (*HEADLINES, *own):
        values = [iteration.value(suite, name) for iteration in iterations]
        if any(value is not None and value.value is not None for value in values):
            found.setdefault(suite, []).append(Metric(suite, name, better, values))
    return found


def result(found: EvalResult | None) -> Cell:
    """A value with its interval below it, and its coverage where that is not whole."""
    if found is None or found.value is None:
        return Cell(None)
    coverage = f" {found.coverage:.0%} scored" if found.coverage < 1 else ""
    return Cell(number(found.value), between(found.ci_low, found.ci_high) + coverage)


def every_result(iterations: Sequence[Iteration]) -> list[Sequence[str]]:
    """Each metric by category and judge: its value and interval in every iteration."""
    found: dict[tuple[str, str, str], dict[int, EvalResult]] = {}
    for iteration in iterations:
        for row in iteration.results:
            key = (f"{row.suite}.{row.metric}", row.category, row.judge)
            found.setdefault(key, {})[iteration.number] = row
    return [
        (*key, *(_in_full(rows.get(iteration.number)) for iteration in iterations))
        for key, rows in found.items()
    ]


def _in_full(row: EvalResult | None) -> str:
    cell = result(row)
    return "–" if row is None or cell.value is None else f"{cell.value} {cell.below} n {row.n}"


def curve(metric: Metric, iterations: Sequence[Iteration]) -> Chart | None:
    """The metric from the baseline on; hollow where the gate did not promote the policy."""
    values = [
        Value(
            iteration.number,
            found.value,
            found.ci_low,
            found.ci_high,
            hollow=bool(iteration.gate) and not iteration.gate["promoted"],
        )
        for iteration, found in zip(iterations, metric.values, strict=True)
        if found is not None and found.value is not None
    ]
    told = [
        f"{label(int(value.x))} {number(value.y)} {between(value.low, value.high)}".rstrip()
        + (" (not promoted)" if value.hollow else "")
        for value in values
    ]
    name = f"{metric.name} {ARROWS[metric.better]}".rstrip()
    better = f", {metric.better} is better" if metric.better else ""
    ticks = [(iteration.number, str(iteration.number)) for iteration in iterations]
    return chart(name, f"{metric.suite} {metric.name}{better}: {'; '.join(told)}", [("", values)], ticks)


def lead(iterations: Sequence[Iteration]) -> str:
    """What came of the run, in a sentence or two."""
    gated = [iteration for iteration in iterations if iteration.gate]
    if not gated:
        return "No iteration has been through the gate yet."
    promoted = [iteration for iteration in gated if iteration.gate["promoted"]]
    if not promoted:
        return f"No policy was promoted in {_counted(len(gated))}; the baseline stands."
    last = promoted[-1]
    said = f"The policy of iteration {last.number} stands, after {_counted(len(gated))}."
    first = iterations[0]
    changes = [
        f"{suite} {name} {number(before.value)} → {number(after.value)} ({better} is better)"
        for suite, name, better in (HEADLINES[0], HEADLINES[2])
        if (before := first.value(suite, name)) and (after := last.value(suite, name))
    ]
    return f"{said} {'; '.join(changes)}." if changes else said


def _counted(iterations: int) -> str:
    return "one iteration" if iterations == 1 else f"{iterations} iterations"


def strip_of(check: Mapping[str, Any]) -> Strip | None:
    """The interval of a gate's check, or of a comparison's change."""
    higher = check["better"] == "higher"
    return strip(check["difference"], check["ci_low"], check["ci_high"], check["margin"], higher)


# ---- attacks ------------------------------------------------------------------------------------


def success_by(iterations: Sequence[Iteration], key: str, corner: str) -> Heat | None:
    """Attack success by strategy, family or category, an iteration a column."""
    measured = [iteration for iteration in iterations if iteration.attacks.get(key)]
    names = sorted({name for iteration in measured for name in iteration.attacks[key]})
    if not names:
        return None
    rows = [
        (name or "none", [_share_of(iteration.attacks[key].get(name)) for iteration in measured])
        for name in names
    ]
    return Heat(corner, [label(iteration.number) for iteration in measured], rows)


def _share_of(found: Mapping[str, Any] | None) -> Cell:
    return Cell(None) if found is None else share(found)


def grids(found: Mapping[str, Any]) -> list[tuple[str, Heat]]:
    """`grid.json` as one table a judge: attackers as rows, policies as columns."""
    promoted = {int(policy): kept for policy, kept in found["policies"].items()}
    columns = [
        f"policy {policy}" + ("" if kept else " (not promoted)") for policy, kept in sorted(promoted.items())
    ]
    made: list[tuple[str, Heat]] = []
    for judge in found["judges"]:
        cells = {
            (cell["attacker"], cell["policy"]): share(
                {**cell["success"], "nulls": sum(cell["nulls"].values())}
            )
            for cell in found["cells"]
            if cell["judge"] == judge
        }
        rows = [
            (
                name if not name.isdigit() else f"attacker {name}",
                [cells.get((name, policy), Cell(None)) for policy in sorted(promoted)],
            )
            for name in found["attackers"]
        ]
        made.append((judge, Heat("attacks of", columns, rows)))
    return made


# ---- critic, pairs, training --------------------------------------------------------------------


def reliability(iteration: Iteration) -> Chart | None:
    """How often answers that the critic calls harmful are: on the dashed line it is calibrated."""
    bins = iteration.validity.get("reliability") or []
    told = "; ".join(f"said {number(one['said'])}, met {number(one['met'])}" for one in bins)
    ticks = [(0.0, "0"), (0.5, "said 0.5"), (1.0, "1")]
    series = [
        ("critic", [Value(one["said"], one["met"]) for one in bins]),
        ("calibrated", [Value(0, 0), Value(1, 1)]),
    ]
    title = label(iteration.number)
    return (
        chart(title, f"Reliability of the critic, {title}: {told}", series, ticks, bounds=(0, 1))
        if bins
        else None
    )


def margins(iterations: Sequence[Iteration]) -> Heat | None:
    """How many pairs have which margin between chosen and rejected."""
    found = [
        (iteration.number, iteration.audit["margins"])
        for iteration in iterations
        if iteration.audit.get("margins")
    ]
    if not found:
        return None
    bins = len(found[0][1])
    columns = [f"{at / bins:.1f}–{(at + 1) / bins:.1f}" for at in range(bins)]
    rows = [
        (label(name), [Cell(str(count), "", _level(count / max(1, *counts))) for count in counts])
        for name, counts in found
    ]
    return Heat("margin", columns, rows)


def training_charts(iteration: Iteration) -> list[Chart]:
    """Reward margins, and the log-probabilities of both answers, by step."""
    steps = iteration.training.get("steps") or []
    drawn = [
        _by_step(steps, f"{label(iteration.number)}: reward margin", [("margin", "rewards/margins")]),
        _by_step(
            steps,
            f"{label(iteration.number)}: log-probability, chosen (dashed: rejected)",
            [("chosen", "logps/chosen"), ("rejected", "logps/rejected")],
        ),
    ]
    return [one for one in drawn if one is not None]


def _by_step(steps: Sequence[Mapping[str, Any]], title: str, keys: Sequence[tuple[str, str]]) -> Chart | None:
    series = [
        (name, [Value(row["step"], row[key]) for row in steps if row.get(key) is not None])
        for name, key in keys
    ]
    told = "; ".join(
        f"{name} from {number(values[0].y)} to {number(values[-1].y)}" for name, values in series if values
    )
    places = sorted({steps[0]["step"], steps[-1]["step"]}) if steps else []
    return chart(
        title,
        f"{title}, over {len(steps)} steps: {told}",
        [(name, thinned(values)) for name, values in series],
        [(place, str(place)) for place in places],
        marked=False,
    )


STEP_FIGURES: Sequence[tuple[str, str]] = (
    ("loss", "loss"),
    ("rewards/margins", "reward margin"),
    ("rewards/accuracies", "accuracy"),
    ("logps/chosen", "log p, chosen"),
    ("logps/rejected", "log p, rejected"),
)


def training_steps(iteration: Iteration) -> list[Sequence[str]]:
    """Some steps out of all, the first and the last among them."""
    steps = iteration.training.get("steps") or []
    gaps = max(1, min(_SHOWN_STEPS, len(steps)) - 1)
    places = sorted({round(at * (len(steps) - 1) / gaps) for at in range(gaps + 1)}) if steps else []
    return [
        (str(steps[at]["step"]), *(number(steps[at].get(key), 3) for key, _ in STEP_FIGURES)) for at in places
    ]


# ---- cost ---------------------------------------------------------------------------------------


_ADD_UP = ("seconds", "engine_seconds", "calls", "tokens")


def costs(timings: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Sequence[str]]]:
    """The head and the rows of timings.jsonl, whatever figures it has, with their sum where they add up."""
    names = list(
        dict.fromkeys(name for line in timings for name in line if name not in ("iteration", "stage"))
    )
    rows: list[Sequence[str]] = [
        (f"{label(line['iteration'])}, {line['stage']}", *(_amount(line.get(name)) for name in names))
        for line in timings
    ]
    sums = [
        _amount(sum(line.get(name) or 0 for line in timings)) if name in _ADD_UP else "" for name in names
    ]
    head = [
        {"engine_seconds": "of it in models", "tokens": "new tokens", "peak_mib": "peak MiB so far"}.get(
            name, name.replace("_", " ")
        )
        for name in names
    ]
    return ["stage", *head], [*rows, ("all", *sums)] if rows else []


def _amount(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)

"""The figures of benchmarks/results.py as drawings.

They have the look of the report's charts, in colours that all can tell apart. Each is as wide as a page's
text, 700 pixels, drawn twice as fine for screens that are, and as SVG.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from benchmarks.ablations import DEFAULT
from benchmarks.measures import COMPLIANCE, OVERREFUSAL
from benchmarks.result_tables import Row, attacker, objected_policy, objection_name, single_strategies

# Of the report's style sheet: ink, quiet text, lines, the accent; and Okabe and Ito's colours beside it.
INK, QUIET, FAINT, ACCENT = "#1b1c1e", "#5a5d61", "#e2e3e5", "#0b5cad"
WORSE = "#d55e00"
SEED_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"))
SHADES = LinearSegmentedColormap.from_list("accent", ("#f5f8fc", "#9dbede"))  # dark text is read on all
APART = 0.05  # of an iteration, between seeds
WIDTH = 7.0  # inches, which are 700 pixels
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
    "grid.color": FAINT,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "alignloop",
    "svg.fonttype": "path",
}
PROGRESS: Mapping[str, tuple[str, float]] = {
    COMPLIANCE: ("harmful compliance ↓", 0.10),
    OVERREFUSAL: ("over-refusal ↓", 0.05),
}
"""By metric what it is called, and the target."""

Drawing = tuple[Figure, str]
"""A figure, and the words for those who don't see it."""


def draw(found: Row, folder: Path) -> list[dict[str, str]]:
    """Draws what there is to draw; removes what an earlier call drew of what is no longer there."""
    drawings: Sequence[tuple[str, str, Callable[[Row], Drawing | None]]] = (
        ("progress", "heldout", progress),
        ("attackers", "attackers", attackers),
        ("ablations", "ablations", ablations),
        ("objections", "objections", objections),
    )
    told: list[dict[str, str]] = []
    with rc_context(cast(Any, STYLE)):
        for name, section, make in drawings:
            made = make(found)
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                path = folder / f"{name}.{kind}"
                if made is None:
                    path.unlink(missing_ok=True)
                else:
                    made[0].savefig(path, metadata=metadata)
            if made is not None:
                told.append({"name": name, "section": section, "alt": made[1]})
    return told


# ---- over iterations ------------------------------------------------------------------------------------


def progress(found: Row) -> Drawing | None:
    """Compliance and over-refusal from the base on, a line for each seed, the halves side by side."""
    rows = [row for row in found["results"] if row["category"] == "all" and row["metric"] in PROGRESS]
    rows = [row for row in rows if row["value"] is not None]
    halves = [half for half in ("dev", "test") if any(row["half"] == half for row in rows)]
    if not halves:
        return None
    refused = {(row["seed"], row["iteration"]) for row in found["iterations"] if row["promoted"] is False}
    figure = Figure((WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(len(PROGRESS), len(halves), sharex=True, sharey="row", squeeze=False)
    for across, half in enumerate(halves):
        for down, (metric, (name, target)) in enumerate(PROGRESS.items()):
            panel: Axes = panels[down, across]
            own = [row for row in rows if (row["half"], row["metric"]) == (half, metric)]
            _curves(panel, own, found["seeds"], refused)
            panel.axhline(target, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            panel.set_title(f"{name}, {half} half")
            policies = sorted({row["iteration"] for row in rows})
            panel.set_xticks(policies, [str(policy) if policy else "base" for policy in policies])
            top = _top(rows, metric, target)
            panel.set_ylim(-0.03 * top, top)
            panel.set_xlim(policies[0] - 0.2, policies[-1] + 0.2)
            panel.annotate(
                f"target {target:.2f}",
                (0, target),
                (2, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=QUIET,
                fontsize=8,
            )
    figure.supxlabel("iteration", fontsize=9, color=QUIET)
    lines, names = _seed_legend(panels.flat)
    figure.legend(lines, names, loc="outside upper center", ncols=len(names))
    alt = f"Harmful compliance and over-refusal after each iteration, {' and '.join(halves)} half, by seed"
    return figure, f"{alt}; bands are 95 % intervals, hollow marks were not promoted"


def _top(rows: Sequence[Row], metric: str, target: float) -> float:
    """Where the scale ends: above every band of the metric, in both halves."""
    ends = [
        row["value"] if row["ci_high"] is None else row["ci_high"] for row in rows if row["metric"] == metric
    ]
    return min(1.0, 1.05 * max(*ends, 1.5 * target))


def _curves(panel: Axes, rows: Sequence[Row], seeds: Sequence[int], refused: set[tuple[int, int]]) -> None:
    """A line, a band and marks for each seed; hollow where the gate did not promote."""
    for seed, group in groupby(sorted(rows, key=_by_seed), key=lambda row: row["seed"]):
        own = list(group)
        colour, mark = SEED_STYLES[seed % len(SEED_STYLES)]
        # Side by side: seeds with the same figures would hide one another.
        aside = APART * (seeds.index(seed) - (len(seeds) - 1) / 2)
        x, y = [row["iteration"] + aside for row in own], [row["value"] for row in own]
        low = [row["value"] if row["ci_low"] is None else row["ci_low"] for row in own]
        high = [row["value"] if row["ci_high"] is None else row["ci_high"] for row in own]
        panel.fill_between(x, low, high, color=colour, alpha=0.11, linewidth=0)
        look: dict[str, Any] = {"color": colour, "marker": mark, "markersize": 5.5, "clip_on": False}
        panel.plot(x, y, linewidth=1.8, label=f"seed {seed}", **look)
        for place, row in zip(x, own, strict=True):
            if (seed, row["iteration"]) in refused:
                panel.plot(place, row["value"], mfc="white", **look)


def _by_seed(row: Row) -> tuple[int, int]:
    return row["seed"], row["iteration"]


def _seed_legend(panels: Iterator[Axes]) -> tuple[list[Any], list[str]]:
    """Each seed once, whichever panels it is in."""
    known: dict[str, Any] = {}
    for panel in panels:
        for line, name in zip(*panel.get_legend_handles_labels(), strict=True):
            known.setdefault(name, line)
    names = sorted(known)
    return [known[name] for name in names], names


# ---- attackers × policies -------------------------------------------------------------------------------


def attackers(found: Row) -> Drawing | None:
    """The grid in the eyes of the judge that decides: the fuller a cell, the more attacks succeed."""
    grid = found["attackers"]
    if grid is None:
        return None
    judge, policies, names = grid["judges"][0], list(grid["policies"]), list(grid["attackers"])
    cells = {(row["attacker"], str(row["policy"])): row for row in grid["cells"] if row["judge"] == judge}
    figure = Figure((WIDTH, 0.75 + 0.55 * len(names)), layout="constrained")
    panel = figure.subplots()
    shares = [[_share(cells.get((name, policy))) for policy in policies] for name in names]
    panel.imshow(shares, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    for down, name in enumerate(names):
        for across, policy in enumerate(policies):
            told = cells.get((name, policy), {}).get("success", {})
            if told.get("value") is None:
                text = "–"
            else:
                ends = "" if told["low"] is None else f"\n[{told['low']:.2f}, {told['high']:.2f}]"
                text = f"{told['value']:.2f}{ends}"
            panel.text(across, down, text, ha="center", va="center")
    kept = [
        ("base" if policy == "0" else f"iteration {policy}") + ("" if promoted else "\n(not promoted)")
        for policy, promoted in grid["policies"].items()
    ]
    panel.set_xticks(range(len(policies)), kept)
    panel.set_yticks(range(len(names)), [attacker(name) for name in names])
    panel.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    panel.grid(visible=False)
    panel.set_ylabel("attacker")
    panel.set_title("share of attacks that succeed ↓, by policy", pad=8)
    return figure, "Share of attacks that succeed, for each attacker against each policy, with 95 % intervals"


def _share(cell: Row | None) -> float:
    value = cell["success"]["value"] if cell else None
    return float("nan") if value is None else value


# ---- ablations ------------------------------------------------------------------------------------------


def ablations(found: Row) -> Drawing | None:
    """Paired differences in compliance and over-refusal; to the left of 0 is better."""
    rows = [row for row in found["ablations"] if any(_change(row, metric) for metric in PROGRESS)]
    if not rows:
        return None
    figure = Figure((WIDTH, 1.0 + 0.24 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(PROGRESS), sharey=True, squeeze=False)[0]
    for panel, (metric, (name, _)) in zip(panels, PROGRESS.items(), strict=True):
        for down, row in enumerate(rows):
            if (told := _change(row, metric)) is not None:
                _whisker(panel, down, told["difference"], told["ci_low"], told["ci_high"], _sure(told))
        panel.axvline(0, color=QUIET, linewidth=1, zorder=1)
        panel.set_title(name)
        panel.set_yticks(range(len(rows)), [_ablation_name(row) for row in rows])
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.grid(axis="y", visible=False)
    figure.supxlabel(
        "difference; filled: its 95 % interval leaves 0 out; blue better, orange worse",
        fontsize=8.5,
        color=QUIET,
    )
    return figure, "Differences of each ablation in harmful compliance and over-refusal, with 95 % intervals"


def _change(row: Row, metric: str) -> Row | None:
    told = row["metrics"].get(metric)
    return told if told and told["difference"] is not None else None


def _ablation_name(row: Row) -> str:
    usual = row["against"] in (f"{DEFAULT}@1", None) or row["name"] == "no-training"
    return row["name"] if usual else f"{row['name']} (to {row['against']})"


def _sure(told: Row) -> str | None:
    """The colour of a difference whose interval leaves 0 out; None where it doesn't."""
    if told["ci_low"] is None or told["ci_low"] <= 0 <= told["ci_high"]:
        return None
    return ACCENT if told["ci_high"] < 0 else WORSE


def _whisker(
    panel: Axes, y: float, value: float, low: float | None, high: float | None, colour: str | None
) -> None:
    """A figure on its interval; hollow without a colour of its own."""
    shown = colour or QUIET
    if low is not None and high is not None:
        panel.plot((low, high), (y, y), color=shown, linewidth=1.6, solid_capstyle="round")
    panel.plot(value, y, "o", color=shown, mfc=shown if colour else "white", markersize=5)


# ---- objections -----------------------------------------------------------------------------------------


def objections(found: Row) -> Drawing | None:
    """Harmful compliance of the base and of what cpu-0 hands on, a line for each way of asking."""
    told = found["objections"]
    if told is None or len(told["models"]) < 2:
        return None
    base, last = told["models"][0], objected_policy(found)
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    alone = single_strategies(told["rows"])
    for row in told["rows"]:
        compliance = row["metric"] == "harmful_compliance" and row["category"] == "all"
        if compliance and row["what"] not in alone:
            lines.setdefault((row["objection"], _line_name(row)), {})[row["model"]] = row
    lines = {key: cells for key, cells in lines.items() if last in cells}
    if not lines:
        return None
    figure = Figure(
        (WIDTH, 0.9 + 0.27 * (len(lines) + 0.5 * len({name for name, _ in lines}))), layout="constrained"
    )
    panel = figure.subplots()
    y, ticks = 0.0, list[tuple[float, str]]()
    for _, group in groupby(lines.items(), key=lambda line: line[0][0]):
        for (_, name), cells in group:
            _dot(panel, y - 0.14, cells.get(base) or _before(cells[last]), QUIET, False)
            _dot(panel, y + 0.14, cells[last], ACCENT, True)
            ticks.append((y, name))
            y += 1
        panel.axhline(y - 0.25, color=FAINT, linewidth=1)
        y += 0.5
    panel.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    panel.set_ylim(y - 1, -0.7)
    panel.set_xlim(-0.02, 1.02)
    panel.grid(axis="y", visible=False)
    for name, colour, filled in ((base, QUIET, False), (last, ACCENT, True)):
        panel.plot([], [], "o-", color=colour, mfc=colour if filled else "white", markersize=5, label=name)
    figure.legend(loc="outside upper right", ncols=2)
    panel.set_xlabel(f"harmful compliance ↓, {told['split']} half")
    return figure, f"Harmful compliance of the base and of {last} in each way of asking, with 95 % intervals"


def _line_name(row: Row) -> str:
    """The line's name, with the objection where its own doesn't say enough."""
    if row["what"] in ("", "safety"):
        return row["objection"]
    name = objection_name(row)
    return name if name.startswith("…") else f"{row['objection']}: {name}"


def _before(row: Row) -> Row:
    """The base's figure where it stands in the other's row alone."""
    return {"value": row["before"], "low": None, "high": None}


def _dot(panel: Axes, y: float, row: Row, colour: str, filled: bool) -> None:
    if row["value"] is not None:
        if row["low"] is not None and row["high"] is not None:
            panel.plot((row["low"], row["high"]), (y, y), color=colour, linewidth=1.4)
        panel.plot(row["value"], y, "o", color=colour, mfc=colour if filled else "white", markersize=5)

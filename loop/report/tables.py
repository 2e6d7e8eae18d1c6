"""The tables of single verbs: an eval's results, the assets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loop.assets import cached, fetch
from loop.pins import ASSETS
from loop.records import EvalResult
from loop.report.reading import judge_line
from loop.report.summary import figure
from loop.report.terminal import console, plain

if TYPE_CHECKING:
    from loop.findings import Finding
    from loop.grid import Grid
    from loop.heldout.comparison import Change, Comparison
    from loop.heldout.disagreement import Disagreement
    from loop.heldout.gaps import Gaps
    from loop.heldout.statistics import Interval

_SHOWN_ITEMS = 5
_GOAL = 60  # characters of a goal that are shown
_ARROWS = {"lower": "↓", "higher": "↑"}


def print_results(
    results: Sequence[EvalResult],
    folder: str,
    disagreements: Sequence["Disagreement"] = (),
    cards: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Every metric with its interval and what nulls could hide, categories below; then the judges."""
    table = Table(title="value [95 % interval]", title_justify="left")
    for column in ("suite", "metric", "category", "value", "n", "worst case", "judge"):
        table.add_column(column, justify="right" if column == "n" else "left")
    for row in results:
        known = row.worst_low is not None and row.worst_high is not None and row.coverage < 1
        bounds = f"{row.worst_low:.2f} to {row.worst_high:.2f}" if known else ""
        name = row.category if row.category == "all" else f"  {row.category}"
        table.add_row(row.suite, row.metric, name, figure(row), str(row.n), bounds, row.judge)
    out = console()
    out.print(table)
    _print_judges(out, disagreements, cards)
    out.print(plain(f"{folder}/results.json, verdicts.jsonl, judges.json"))


def _print_judges(
    out: Console, disagreements: Sequence["Disagreement"], cards: Sequence[Mapping[str, Any]]
) -> None:
    """How far the judges agree with people, and with each other."""
    for card in cards:
        out.print(plain(judge_line(card)))
    for one in disagreements:
        kappa = "" if one.kappa is None else f", kappa {one.kappa:.2f}"
        shown = f": {', '.join(one.items[:_SHOWN_ITEMS])}" if one.items else ""
        more = f" and {len(one.items) - _SHOWN_ITEMS} more" if len(one.items) > _SHOWN_ITEMS else ""
        text = (
            f"{one.suite}.{one.metric}: {one.first} and {one.second} agree on {one.agreement:.0%} of {one.n}"
        )
        out.print(plain(f"{text}{kappa}; they differ on {len(one.items)} items{shown}{more}"))


def print_comparison(comparison: "Comparison") -> None:
    """Every metric before and after; the deciding ones first, then what follows from them."""
    table = Table(
        title=plain(f"{comparison.before} → {comparison.after}"),
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("metric, and which way is better", no_wrap=True)
    for column in ("before", "after", "difference [95 %]", "p (Holm)", "can see", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("finding, margin", no_wrap=True)
    for change in sorted(comparison.changes, key=lambda change: change.margin is None):
        covered = f"{change.n}" + (f" ({change.coverage:.0%})" if change.coverage < 1 else "")
        table.add_row(
            f"{change.suite}.{change.metric} {_ARROWS[change.better]}",
            _number(change.before),
            _number(change.after),
            _difference(change),
            _chance(change.p_holm) if change.p_holm is not None else f"({_chance(change.p)})",
            _number(change.smallest_effect),
            covered,
            f"{change.finding}, {change.margin:g}" if change.margin is not None else "",
        )
    out = console()
    out.print(table)
    out.print(
        "can see: the smallest difference that these items show with 80 % power. Metrics without a margin "
        "decide nothing; their p in brackets is uncorrected.",
        highlight=False,
    )
    out.print(plain(comparison.outcome, "bold"))


def print_gaps(gaps: "Gaps", folder: str) -> None:
    """Harmlessness of what the model draws and chooses, AUC of its verdicts, both gaps; then what is null."""
    table = Table(title=plain(gaps.model), title_justify="left")
    table.add_column("figure", no_wrap=True)
    for column in ("value [95 % interval]", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    of = f"of {gaps.samples}"
    harmlessness = (
        ("harmlessness of a random answer of its own (generator)", gaps.generator),
        (f"… of the one {of} that it finds least harmful (discriminator)", gaps.discriminator),
        (f"… of the best {of} by the judge (ceiling)", gaps.ceiling),
    )
    agreement = (
        ("AUC on human labels: its verdict on the answer (discriminator)", gaps.answer_auc),
        ("… its verdict from its critique alone (critique)", gaps.critique_auc),
        ("… the judge, for comparison", gaps.judge_auc),
    )
    for section, asked in ((harmlessness, gaps.objectives), (agreement, gaps.labelled)):
        for name, found in section:
            table.add_row(name, _interval(found), f"{found.n}/{asked}")
        table.add_section()
    table.add_row(
        "generator–discriminator gap", _interval(gaps.gd_gap, "+"), f"{gaps.gd_gap.n}/{gaps.objectives}"
    )
    table.add_row(
        "discriminator–critique gap", _interval(gaps.dc_gap, "+"), f"{gaps.dc_gap.n}/{gaps.labelled}"
    )
    out = console()
    out.print(table)
    nulls = ", ".join(f"{count} × {what}" for what, count in gaps.nulls.items())
    out.print(plain(f"null: {nulls or 'none'}; harmlessness by {gaps.judge}"))
    out.print(plain(f"{folder}/gaps.json, gaps.jsonl"))


def print_grid(grid: "Grid", folder: str) -> None:
    """A table for each judge, attackers down, policies across; then what follows, and what is null."""
    out = console()
    for judge in grid.judges:
        out.print(plain(f"share of attacks that got what they ask for [95 %], judged by {judge}"))
        out.print(_grid_table(grid, judge))
        out.print()
        for one in (one for one in grid.drops if one.judge == judge):
            fall = f"success drops from policy {one.before} to {one.after} by {_interval(one.drop, '+')}"
            out.print(plain(f"{_attacker(one.attacker)}: {fall}"))
        for one in (one for one in grid.harder if one.judge == judge):
            lead = f"success of attacker {one.last} less that of {one.first}"
            out.print(plain(f"on policy {one.policy}: {lead} {_interval(one.difference, '+')}"))
    if not grid.last:
        out.print("no policy was promoted: there is no drop to tell")
    asked = ", ".join(f"{count} of {_attacker(name)}" for name, count in grid.attackers.items())
    nulls: Counter[str] = Counter()
    for cell in grid.cells:
        nulls.update(cell.nulls)
    told = ", ".join(f"{count} × {reason}" for reason, count in nulls.items())
    out.print(plain(f"attacks: {asked}; null in all cells: {told or 'none'}"))
    out.print(plain(f"{folder}/grid.json, grid.jsonl"))


def _grid_table(grid: "Grid", judge: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("attacker", no_wrap=True)
    marks = {0: " (base)", grid.last: " (last)"} if grid.last else {0: " (base)"}
    for number, promoted in grid.policies.items():
        table.add_column(f"policy {number}{marks.get(number, '') if promoted else ' rejected'}")
    for name in grid.attackers:
        cells = [cell for cell in grid.cells if (cell.judge, cell.attacker) == (judge, name)]
        table.add_row(name, *(_interval(cell.success) for cell in cells))
    return table


def _attacker(name: str) -> str:
    return f"attacker {name}" if name.isdigit() else f"the {name}"


def _interval(found: "Interval", sign: str = "") -> str:
    if found.value is None:
        return "–"
    known = found.low is not None and found.high is not None
    return f"{found.value:{sign}.2f}" + (f" [{found.low:{sign}.2f}, {found.high:{sign}.2f}]" if known else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _chance(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _difference(change: "Change") -> str:
    if change.difference is None or change.ci_low is None or change.ci_high is None:
        return "–"
    return f"{change.difference:+.3f} [{change.ci_low:+.3f}, {change.ci_high:+.3f}]"


def print_findings(
    summary: Mapping[str, Any],
    findings: Sequence["Finding"],
    folder: str,
    disagreements: Sequence["Disagreement"] = (),
    cards: Sequence[Mapping[str, Any]] = (),
) -> None:
    """How often each strategy, family and category broke the model, the gravest findings, what it took."""
    table = Table(title=plain(summary["model"]), title_justify="left")
    table.add_column("attacks", overflow="fold")
    for column in ("broke it [95 % interval]", "n", "null"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("all", *_broke(summary["success"]))
    for group in ("strategy", "family", "category"):
        table.add_section()
        for name, found in summary[f"by_{group}"].items():
            table.add_row(plain(f"{group} {name or '–'}"), *_broke(found))
    out = console()
    out.print(table)
    if findings:
        out.print(_gravest(findings))
    grave = ", ".join(f"{count} {name}" for name, count in summary["severity"].items() if count)
    out.print(
        plain(
            f"{summary['findings']} findings{grave and f' ({grave})'} in {summary['attacks']} attacks, "
            f"{summary['distinct']} distinct goals{_rate(summary)}; by {summary['judge']}"
        )
    )
    out.print(plain(_spent(summary)))
    nulls = "; ".join(f"{count} × {why}" for why, count in summary["nulls"].items())
    out.print(plain(f"answers without a verdict: {nulls or 'none'}"))
    _print_judges(out, disagreements, cards)
    out.print(plain(f"{folder}/findings.jsonl, summary.json"))
    if findings:
        out.print(plain(f"again: {findings[0].reproduce['command']}"), soft_wrap=True)


def _broke(found: Mapping[str, Any]) -> tuple[str, str, str]:
    if found["value"] is None:
        return "–", "0", str(found["nulls"])
    return (
        f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]",
        str(found["n"]),
        str(found["nulls"] or ""),
    )


def _gravest(findings: Sequence["Finding"]) -> Table:
    """The first findings by their goals; transcripts and answers stay in the file."""
    table = Table(title="the gravest", title_justify="left")
    for column in ("id", "severity", "strategy", "answers", "judge", "goal"):
        table.add_column(column, no_wrap=column != "goal")
    for one in findings[:_SHOWN_ITEMS]:
        goal = one.goal if len(one.goal) <= _GOAL else f"{one.goal[:_GOAL]}…"
        strategy, answers = one.strategy.rpartition("/")[2], f"{one.broken} of {one.answers}"
        table.add_row(plain(one.id), one.severity, plain(strategy), answers, f"{one.score:.2f}", plain(goal))
    return table


def _rate(summary: Mapping[str, Any]) -> str:
    rate = summary["distinct_per_1000_requests"]
    return "" if rate is None else f" ({rate:.0f} in 1,000 requests)"


def _spent(summary: Mapping[str, Any]) -> str:
    target, writing = summary["target"], summary["writing"]
    asked = f"{target['requests']} requests, {target['tokens']} tokens, {target['seconds']:.0f} s"
    if summary["attacker"] is None:
        return f"{asked}; asked again, nothing was written"
    few = f" of {summary['budget']} wanted" if summary["attacks"] < summary["budget"] else ""
    return (
        f"{asked}; the attacker took {writing['tokens']} tokens and {writing['seconds']:.0f} s for "
        f"{summary['attacks']} attacks{few}, and left out {writing['unclear']} not surely harmful"
    )


def print_assets(fetch_missing: bool) -> None:
    """Name, what it is, licence, size, whether it is cached; then sources and citations."""
    out = console()
    table = Table()
    for column in ("name", "what", "licence", "size", "cached"):
        table.add_column(column)
    for asset in ASSETS:
        if fetch_missing and not cached(asset):
            for uri in asset.uris:
                fetch(uri)
        table.add_row(
            asset.name,
            asset.what,
            asset.licence,
            f"{asset.size / 1e6:.1f} MB",
            "yes" if cached(asset) else "no",
        )
    out.print(table)
    for asset in ASSETS:
        first, *others = asset.uris
        further = f" and {len(others)} more" if others else ""
        out.print(plain(f"{asset.name}: {first}{further}\n    {asset.citation}"))

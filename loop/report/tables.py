"""The tables of single verbs: an eval's results, the assets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from loop.assets import cached, fetch
from loop.pins import ASSETS
from loop.records import EvalResult
from loop.report.reading import judge_line
from loop.report.summary import figure
from loop.report.terminal import console, plain

if TYPE_CHECKING:
    from loop.heldout.comparison import Change, Comparison
    from loop.heldout.disagreement import Disagreement
    from loop.heldout.gaps import Gaps
    from loop.heldout.statistics import Interval

_SHOWN_ITEMS = 5
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
    out.print(plain(f"{folder}/results.json, verdicts.jsonl, judges.json"))


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

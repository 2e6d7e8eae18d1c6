"""What the terminal says when a run ends: the table, one answer before and after, where to look next."""

from rich.table import Table

from loop.records import EvalResult, Verdict
from loop.report.reading import HEADLINES, Iteration, attack_line, before_and_after, critic_line, read_run
from loop.report.terminal import console, plain
from loop.rundir import RunDir

_SHOWN_CHARACTERS = 400


def figure(result: EvalResult | None) -> str:
    """A value with its 95 % interval, coverage where it is not whole."""
    if result is None or result.value is None:
        return "–"
    interval = f" [{result.ci_low:.2f}, {result.ci_high:.2f}]" if result.ci_low is not None else ""
    return f"{result.value:.2f}{interval}" + (f" cov {result.coverage:.0%}" if result.coverage < 1 else "")


def print_summary(run: RunDir) -> None:
    """The headline table, the gate's words, one transcript before and after, and further commands."""
    iterations, out = read_run(run), console()
    out.print(_table(iterations))
    for iteration in iterations:
        for line in filter(None, (critic_line(iteration), attack_line(iteration))):
            out.print(plain(f"iteration {iteration.number}: {line}"))
        if iteration.gate:
            out.print(
                plain(f"\niteration {iteration.number}: {iteration.gate['outcome']}\n" + _because(iteration))
            )
    if (pair := before_and_after(run)) is not None:
        _print_pair(pair)
    attack = _an_attack(run)
    out.print("\nLook further:")
    out.print(plain(f"  {run.path('report.html')}   the report, in a browser"))
    out.print(plain(f"  alignloop show {run.root} {attack}   one attack's whole story"))
    last = max((iteration.number for iteration in iterations), default=0)
    out.print(
        plain(f"  alignloop eval {run.root}@{last} --split test   the other half of the held-out items")
    )


def _table(iterations: list[Iteration]) -> Table:
    table = Table(title="Held-out, dev half: value [95 % interval]", title_justify="left")
    table.add_column("metric")
    table.add_column("better")
    for iteration in iterations:
        table.add_column(
            "baseline" if iteration.number == 0 else f"iteration {iteration.number}", justify="right"
        )
    for suite, metric, better in HEADLINES:
        cells = [figure(iteration.value(suite, metric)) for iteration in iterations]
        if any(cell != "–" for cell in cells):
            table.add_row(f"{suite}.{metric}", better, *cells)
    return table


def _because(iteration: Iteration) -> str:
    return "\n".join(f"  {reason}" for reason in iteration.gate.get("reasons", []))


def _print_pair(pair: tuple[Verdict, Verdict]) -> None:
    before, after = pair
    out = console()
    out.print("\nThe same held-out request, before and after:", style="bold")
    for title, text in (
        ("request", before.prompt),
        (f"baseline (judged {before.score:.2f} compliant)", before.completion or ""),
        (f"now (judged {after.score:.2f} compliant)", after.completion or ""),
    ):
        out.print(plain(f"  {title}: ", "bold"), end="")
        out.print(plain(" ".join(text[:_SHOWN_CHARACTERS].split())))


def _an_attack(run: RunDir) -> str:
    """The id of the attack whose pair has the widest margin: the clearest story to begin with."""
    from loop.records import Pair, read_jsonl

    files = sorted(run.root.glob("iterations/*/pairs.jsonl"))
    pairs = [pair for file in files for pair in read_jsonl(file, Pair)]
    return max(pairs, key=lambda pair: pair.margin).attack_id if pairs else "ID"

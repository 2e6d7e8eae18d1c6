"""The tables of single verbs: an eval's results, the assets."""

from collections.abc import Sequence

from rich.table import Table

from loop.assets import cached, fetch
from loop.pins import ASSETS
from loop.records import EvalResult
from loop.report.summary import figure
from loop.report.terminal import console, plain


def print_results(results: Sequence[EvalResult], folder: str) -> None:
    """Every metric with its interval; categories below the whole."""
    table = Table(title="value [95 % interval]", title_justify="left")
    for column in ("suite", "metric", "category", "value", "n", "judge"):
        table.add_column(column)
    for row in results:
        table.add_row(row.suite, row.metric, row.category, figure(row), str(row.n), row.judge)
    console().print(table)
    console().print(plain(f"{folder}/results.json, {folder}/verdicts.jsonl"))


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

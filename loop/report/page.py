"""report.html: one self-contained page that needs no network."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loop import __version__
from loop.report.reading import (
    HEADLINES,
    before_and_after,
    judge_lines,
    read_run,
    share,
    timings,
    write_metrics,
)
from loop.report.summary import figure
from loop.rundir import RunDir, read_json, replacing
from loop.surface import harmless


def write_page(run: RunDir) -> None:
    """Writes report.html, and metrics.jsonl beside it, from the files of the run."""
    write_metrics(run)
    # Everything a model wrote goes through autoescape: it is shown, never interpreted.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    iterations = read_run(run)
    rows = [
        (suite, metric, better, [figure(iteration.value(suite, metric)) for iteration in iterations])
        for suite, metric, better in HEADLINES
    ]
    text = environment.get_template("page.html").render(
        name=run.root.name,
        version=__version__,
        manifest=read_json(run.path("manifest.json")),
        iterations=iterations,
        rows=[row for row in rows if any(cell != "–" for cell in row[3])],
        judges=judge_lines(run),
        transcript=before_and_after(run),
        timings=timings(run),
        share=_share,
        rate=share,
    )
    with replacing(run.path("report.html")) as beside:
        beside.write_text(harmless(text), encoding="utf-8")


def _share(value: float | None, digits: int) -> str:
    """A figure with so many digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"

"""report.html and the page of a comparison: self-contained, with no network and no script but their own."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from loop import __version__
from loop.report import charts, sections
from loop.report.provenance import config_differences, labels_used, left_out
from loop.report.reading import (
    Iteration,
    before_and_after,
    judge_lines,
    read_run,
    timings,
    write_metrics,
)
from loop.report.transcripts import transcripts
from loop.rundir import RunDir, read_json, replacing
from loop.surface import harmless

if TYPE_CHECKING:
    from loop.heldout.comparison import Comparison

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Inline:
    """A style or script inside the page, and the hash by which its policy lets it in."""

    text: Markup
    hash: str


def write_page(run: RunDir, path: Path | None = None) -> Path:
    """Writes the report, and metrics.jsonl, from the files of the run; `path`: other than its report.html."""
    write_metrics(run)
    iterations, target = read_run(run), path or run.path("report.html")
    context = {
        "name": run.root.name,
        "manifest": read_json(run.path("manifest.json")),
        "lead": sections.lead(iterations),
        "script": _inline("browser.js"),
        "transcripts": transcripts(run),
        **_results(run, iterations),
        **_loop(run, iterations),
        **_provenance(run, iterations),
    }
    _write(target, "report.html", {**context, "contents": _contents(context)})
    return target


def write_comparison(found: "Comparison", path: Path) -> None:
    """Writes what `alignloop compare` found as a page."""
    changes = [asdict(change) for change in found.changes]
    parts = [
        ("What decides", [change for change in changes if change["margin"] is not None]),
        ("What is shown and decides nothing", [change for change in changes if change["margin"] is None]),
    ]
    _write(path, "comparison.html", {"found": found, "parts": parts, "script": None})


def _write(path: Path, template: str, context: dict[str, Any]) -> None:
    # Everything a model wrote goes through autoescape: it is shown, never interpreted.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
    )
    shared = {
        "version": __version__,
        "style": _inline("style.css"),
        "width": charts.WIDTH,
        "height": charts.HEIGHT,
        "arrows": sections.ARROWS,
        "strip_of": sections.strip_of,
        "number": sections.number,
        "between": sections.between,
        "chance": sections.chance,
        "breakable": _breakable,
    }
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(environment.get_template(template).generate({**shared, **context}))


def _visible(value: Any) -> Any:
    """No control or bidirectional character reaches the page; markup is the templates' own."""
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """A dotted or underscored name, which may break where a person would break it."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(harmless(name)))))


def _inline(name: str) -> Inline:
    text = (_TEMPLATES / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Inline(Markup(text), f"sha256-{digest}")


def _contents(context: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page has."""
    there = {
        "curves": context["curves"],
        "attacks": context["attacks"] or context["grids"],
        "critic": context["validity"],
        "pairs": context["audits"],
        "training": context["trained"],
    }
    names = (
        "results",
        *(name for name, found in there.items() if found),
        "data",
        "cost",
        "setup",
        "transcripts",
    )
    return [(name, name.capitalize()) for name in names]


def _results(run: RunDir, iterations: Sequence[Iteration]) -> dict[str, Any]:
    suites = sections.metrics(iterations)
    labels = [sections.label(iteration.number) for iteration in iterations]
    drawn = {
        suite: [one for metric in rows if (one := sections.curve(metric, iterations)) is not None]
        for suite, rows in suites.items()
    }
    pair = before_and_after(run)
    return {
        "iterations": iterations,
        "labels": labels,
        "head": ["metric", *labels],
        "suites": suites,
        "result": sections.result,
        "every_result": sections.every_result(iterations),
        "fallen": pair[0].item_id if pair else None,
        "judges": judge_lines(run),
        "curves": drawn if len(iterations) > 1 else {},
    }


def _loop(run: RunDir, iterations: Sequence[Iteration]) -> dict[str, Any]:
    """What attacks, critic, pairs and training came to."""
    kinds = (("strategy", "by_strategy"), ("family", "by_family"), ("category", "by_category"))
    success = [(name, sections.success_by(iterations, key, name)) for name, key in kinds]
    grid = run.path("grid") / "grid.json"
    validity = [iteration for iteration in iterations if iteration.validity]
    trained = [iteration for iteration in iterations if iteration.training]
    diagrams = [(iteration, sections.reliability(iteration)) for iteration in validity]
    return {
        "attacks": [iteration for iteration in iterations if iteration.attacks],
        "success": [(name, found) for name, found in success if found is not None],
        "played": [iteration for iteration in iterations if iteration.self_play],
        "share": sections.share,
        "grids": sections.grids(read_json(grid)) if grid.exists() else [],
        "validity": validity,
        "reliability": [found for _, found in diagrams if found is not None],
        "bins": [
            (sections.label(iteration.number), f"{one['said']:.2f}", f"{one['met']:.2f}", one["n"])
            for iteration in validity
            for one in iteration.validity.get("reliability") or []
        ],
        "audits": [iteration for iteration in iterations if iteration.audit],
        "margins": sections.margins(iterations),
        "trained": trained,
        "training_charts": [one for iteration in trained for one in sections.training_charts(iteration)],
        "step_head": ["step", *(name for _, name in sections.STEP_FIGURES)],
        "training_steps": sections.training_steps,
    }


def _provenance(run: RunDir, iterations: Sequence[Iteration]) -> dict[str, Any]:
    origin, differences = config_differences(run)
    manifest = read_json(run.path("manifest.json"))
    head, rows = sections.costs(timings(run))
    places = [("machine", manifest["machine"]), ("Python", manifest["python"])]
    return {
        "labels_used": [
            (row.use, row.source, row.n, row.positives, sections.listed(map(str, row.iterations)))
            for row in labels_used(run)
        ],
        "left_out": [astuple(row) for row in left_out(run, iterations)],
        "cost_head": head,
        "costs": rows,
        "config_origin": origin,
        "config": [(row.key, row.before or "–", row.now or "–") for row in differences],
        "environment": [*places, *((name, found) for name, found in manifest["versions"].items() if found)],
    }

"""The cards of what is exported: results with intervals, data and licences, lineage, limits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loop import __version__
from loop.pins import ASSETS, asset
from loop.records import EvalResult
from loop.report.reading import Iteration, attack_line, critic_line, judge_lines
from loop.report.summary import figure
from loop.rundir import RunDir, read_json
from loop.surface import harmless

SEEDS: Mapping[str, tuple[str, ...]] = {
    "harmful": ("advbench",),
    "benign": (),
    "toxicity": ("realtoxicityprompts",),
    "legal": ("illinois-law", "utah-real-estate"),
    "critic": ("objective-labels",),
}
"""The assets that the seeds of each use are drawn from (`loop/partition.py`); benign ones are our own."""
SUITES: Mapping[str, tuple[str, ...]] = {
    "safety": ("harmbench", "strongreject"),
    "overrefusal": ("overrefusal", "twins"),
    "toxicity": ("realtoxicityprompts-scored",),
    "legal": ("us-tort-law", "privacy-policy-qa", "contract-qa"),
    "capability": ("boolq",),
}
_ARROWS = {"lower": "↓", "higher": "↑"}
_OWN = {"name": "benign seeds", "what": "harmless queries written for alignloop", "licence": "Apache-2.0"}


@dataclass(frozen=True)
class Used:
    """A source of the run's seeds: rows drawn, licence, whom to cite."""

    name: str
    what: str
    rows: str
    licence: str
    citation: str


def model_card(
    run: RunDir, iteration: Iteration, baseline: Iteration, uri: str, digest: str, merged: bool
) -> str:
    """README.md of an exported policy: YAML that the hub reads, then the card."""
    from huggingface_hub import ModelCardData

    base = _base(uri)
    on_hub = uri.removeprefix("hf:").partition("@")[0] if uri.startswith("hf:") else None
    adapter = run.iteration(iteration.number) / "adapter"
    metadata = ModelCardData(
        language="en",
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        base_model=on_hub,
        license=base["licence"].lower() if base["licence"] else None,
        tags=["alignloop", "trl", "dpo", *([] if merged else ["lora"])],
    )
    return _render(
        "model_card.md",
        run,
        iteration,
        metadata=metadata.to_yaml(),
        merged=merged,
        base=base,
        digest=digest,
        on_hub=on_hub,
        parent=read_json(adapter / "lineage.json")["parent"],
        rows=_results(iteration, baseline),
        measured=_assets(name for suite in _suites(iteration) for name in SUITES.get(suite, ())),
        own_suites=[suite for suite in _suites(iteration) if suite not in SUITES],
        judges=judge_lines(run),
        critic=critic_line(iteration),
        attacks=attack_line(iteration),
        training=iteration.training,
        recipe=_recipe(run),
    )


def data_card(run: RunDir, iteration: Iteration, domains: Mapping[str, int], archived: int) -> str:
    """README.md of the exported pairs and attacks; marked as not for all audiences."""
    from huggingface_hub import DatasetCardData

    configs = [{"config_name": "pairs", "data_files": "pairs.jsonl", "default": True}]
    if archived:
        configs.append({"config_name": "archive", "data_files": "archive.jsonl"})
    metadata = DatasetCardData(
        language="en",
        license="other",
        license_name="mixed-see-card",
        pretty_name=f"alignloop preference pairs: {_cell(run.root.name)}",
        tags=["not-for-all-audiences", "alignloop", "dpo", "preference", "red-teaming", "synthetic"],
        task_categories=["text-generation"],
        configs=configs,
    )
    return _render(
        "data_card.md", run, iteration, metadata=metadata.to_yaml(), domains=domains, archived=archived
    )


def _render(template: str, run: RunDir, iteration: Iteration, **more: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(
        run=run.root.name,
        iteration=iteration,
        used=used(run),
        own=_parts(run).get("config.seeds.files") or [],
        manifest=read_json(run.path("manifest.json")),
        version=__version__,
        **more,
    )


def used(run: RunDir) -> list[Used]:
    """What the run drew its seeds from. Rows are counted by use, as its manifest has them."""
    found: list[Used] = []
    for use, names in SEEDS.items():
        if not (drawn := int(_parts(run).get(f"config.seeds.{use}") or 0)):
            continue
        rows = f"{drawn}, {use}" + (" (all of them together)" if len(names) > 1 else "")
        if use == "benign":
            found.append(Used(_OWN["name"], _OWN["what"], rows, _OWN["licence"], "alignloop"))
        for name in names:
            row = asset(name)
            found.append(Used(row.name, row.what, rows, row.licence, row.citation))
    return found


def _parts(run: RunDir) -> dict[str, Any]:
    return read_json(run.path("manifest.json"))["parts"]


def _recipe(run: RunDir) -> list[tuple[str, str]]:
    """The settings of training by their names in the config."""
    return [
        (key.removeprefix("config."), str(value))
        for key, value in sorted(_parts(run).items())
        if key.startswith("config.train.")
    ]


def _base(uri: str) -> dict[str, str]:
    """What may be said of the base: never a path of this machine."""
    known = next((row for row in ASSETS if uri in row.uris or uri == row.name), None)
    if known is not None:
        return {
            "name": f"{known.what} ({uri})",
            "licence": known.licence,
            "citation": known.citation,
        }
    return {"name": "a local folder" if uri.startswith("path:") else uri, "licence": "", "citation": ""}


def _suites(iteration: Iteration) -> list[str]:
    return list(dict.fromkeys(row.suite for row in iteration.results))


def _assets(names: Iterator[str]) -> list[Any]:
    return [asset(name) for name in names]


def _results(iteration: Iteration, baseline: Iteration) -> Iterator[dict[str, str]]:
    """Each metric over all items by the judge that decides it, before and after."""
    from loop.heldout.suites import BUILT_IN

    better = {
        (suite.name, metric): _ARROWS[found.better]
        for suite in BUILT_IN.values()
        for metric, found in suite.metrics.items()
    }
    first: dict[tuple[str, str], EvalResult] = {}
    for row in iteration.results:
        if row.category == "all":
            first.setdefault((row.suite, row.metric), row)
    for (suite, metric), row in first.items():
        yield {
            "metric": f"{suite}.{metric}",
            "better": better.get((suite, metric), ""),
            "before": figure(baseline.value(suite, metric)),
            "after": figure(row),
            "n": str(row.n),
            "judge": row.judge,
        }


def _cell(text: object) -> str:
    """Text that is one line of Markdown and nothing but text, whatever it holds."""
    line = " ".join(harmless(str(text)).split())
    for sign in "\\`*|_<":
        line = line.replace(sign, f"\\{sign}")
    return line.replace("](", "]\\(")  # no link; intervals keep their brackets

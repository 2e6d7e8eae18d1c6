"""Sends the loop's own figures to the trackers that the trainer reports to."""

import json
from collections.abc import Mapping
from typing import Any

from loop.config import Config
from loop.report.reading import write_metrics
from loop.rundir import RunDir, read_json, write_json

SERIES = "loop"
"""The name of the loop's figures in a tracker, beside `iteration-001` and so on, which the trainer writes."""


def track(run: RunDir, config: Config, number: int) -> None:
    """Sends the figures of iteration `number`, as metrics.jsonl has them, to every tracker once.

    The step is the iteration. `tracked.json` holds who has had them; a process that is killed just before it
    is written sends them again.
    """
    told = run.iteration(number) / "tracked.json"
    before: list[str] = read_json(told) if told.exists() else []
    due = [name for name in _trackers(config.train.dpo.get("report_to")) if name not in before]
    if due:
        figures = _figures(run, number)
        for name in due:
            _send(name, run, config, figures, number)
        write_json(told, [*before, *due])


def _trackers(report_to: str | list[str] | None) -> list[str]:
    """The trackers of `report_to` that accelerate has too; others get the trainer's figures alone."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    if not set(names) - {"none"}:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from transformers.integrations import integration_utils

    library: Any = integration_utils
    found = library.get_available_reporting_integrations() if "all" in names else names
    return [name for name in found if name in LOGGER_TYPE_TO_CLASS]


def _figures(run: RunDir, number: int) -> dict[str, float]:
    """The values of an iteration by name, `/` between the parts; the interval of a whole suite beside it."""
    write_metrics(run)
    figures: dict[str, float | None] = {}
    for line in run.path("metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        category = row.get("category", "all")
        name = row["name"].replace(".", "/", 1) + ("" if category == "all" else f"/{category}")
        if row["iteration"] != number or name in figures:  # of several judges the first decides
            continue
        figures[name] = row["value"]
        if category == "all":
            figures |= {f"{name}/low": row.get("ci_low"), f"{name}/high": row.get("ci_high")}
    return {name: float(value) for name, value in figures.items() if value is not None}


def _send(name: str, run: RunDir, config: Config, figures: Mapping[str, float], step: int) -> None:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # which its trackers ask whether this is the main process

    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    given = config.train.dpo
    place = (
        (SERIES, str(run.path(name)))
        if kind.requires_logging_directory
        else (given.get("project", config.name),)
    )
    # So that each iteration goes on with the series of the one before: other trackers begin a new one.
    series: dict[str, dict[str, Any]] = {
        "trackio": {
            "name": SERIES,
            "resume": "allow",
            "auto_log_cpu": False,
            "auto_log_gpu": False,
            "space_id": given.get("trackio_space_id"),
            "bucket_id": given.get("trackio_bucket_id"),
            "private": given.get("hub_private_repo"),
        },
        "wandb": {"name": SERIES, "id": SERIES, "resume": "allow"},
    }
    tracker = kind(*place, **series.get(name, {}))
    tracker.start()
    tracker.log(dict(figures), step=step)
    tracker.finish()

"""Runs at a glance: what each has come to, read from its files alone."""

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.box import SIMPLE
from rich.table import Table

from loop.errors import DataError
from loop.records import EvalResult
from loop.report.reading import Iteration, read_run
from loop.report.summary import figure
from loop.report.terminal import console, plain
from loop.rundir import RunDir, read_json

_ARROWS = {"lower": " ↓", "higher": " ↑"}


@dataclass(frozen=True)
class Headline:
    """One run in one line. `promoted` is the iteration whose policy stands, None where it is the baseline's.

    `better` says which way the primary metric should go, "" before the first gate.
    """

    name: str
    done: int
    iterations: int
    promoted: int | None
    primary: str
    better: str
    before: EvalResult | None
    after: EvalResult | None
    when: datetime
    state: Literal["running", "finished", "stopped"]


def headlines(folder: Path) -> tuple[list[Headline], list[str]]:
    """The runs in `folder`, the one that moved last first, and a line for each that can't be read.

    Raises DataError where there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one that holds your runs")
    found: list[Headline] = []
    unread: list[str] = []
    for manifest in sorted(folder.glob("*/manifest.json")):
        try:
            found.append(headline(RunDir(manifest.parent)))
        except DataError as error:
            unread.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            unread.append(f"{manifest.parent}: no run of this version ({' '.join(str(error).split())})")
    return sorted(found, key=lambda line: line.when, reverse=True), unread


def headline(run: RunDir) -> Headline:
    """What a run has come to. Raises DataError, naming the file, for one that can't be read."""
    iterations, wanted, primary = read_run(run), _iterations(run), _primary(run)
    finished = [one for one in iterations if one.gate]
    promoted = max((one.number for one in finished if one.gate["promoted"]), default=None)
    first = next((one for one in iterations if one.number == 0), None)
    last = next((one for one in iterations if one.number == promoted), None)
    suite, _, metric = primary.partition(".")
    ended = "finished" if len(finished) >= wanted else "stopped"
    return Headline(
        name=run.root.name,
        done=len(finished),
        iterations=wanted,
        promoted=promoted,
        primary=primary,
        better=_better(finished),
        before=first.value(suite, metric) if first else None,
        after=last.value(suite, metric) if last else None,
        when=_when(run),
        state="running" if _held(run) else ended,
    )


def _iterations(run: RunDir) -> int:
    path = run.path("config.yaml")
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return int(config["iterations"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise DataError(
            f"{path}: cannot be read as a run's config ({' '.join(str(error).split())})"
        ) from None


def _primary(run: RunDir) -> str:
    path = run.path("manifest.json")
    try:
        return str(read_json(path)["parts"]["config.gate.primary"])
    except (TypeError, KeyError):
        raise DataError(f"{path}: not a run's manifest (it names no gate.primary)") from None


def _better(finished: Sequence[Iteration]) -> str:
    """Which way the primary metric should go: the gate wrote it down beside the check without a margin."""
    checks: list[Mapping[str, Any]] = [check for one in finished for check in one.gate.get("checks", [])]
    return next((check["better"] for check in checks if check["margin"] is None), "")


def _held(run: RunDir) -> bool:
    """Whether a process has the run: it holds the run's lock for as long as it lives."""
    try:
        descriptor = os.open(run.path("lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        # A shared lock is refused beside the run's own, and is given back at once.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(descriptor)
    return False


def _when(run: RunDir) -> datetime:
    """When a stage last ended, or the run began."""
    files = [run.path(name) for name in ("log.txt", "manifest.json")]
    return datetime.fromtimestamp(next(path for path in files if path.exists()).stat().st_mtime)


def print_listing(folder: Path) -> None:
    """The table of the runs in `folder`, then what could not be read."""
    found, unread = headlines(folder)
    out = console()
    if not found and not unread:
        out.print(plain(f"no run in {folder}; `alignloop run configs/demo.yaml` makes one"))
        return
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in (
        "run",
        "done",
        "promoted",
        "primary metric",
        "baseline",
        "promoted policy",
        "last",
        "state",
    ):
        table.add_column(column, no_wrap=column != "primary metric", overflow="fold")
    for line in found:
        table.add_row(
            plain(line.name),
            f"{line.done}/{line.iterations}",
            "none" if line.promoted is None else str(line.promoted),
            plain(f"{line.primary}{_ARROWS.get(line.better, '')}"),
            figure(line.before),
            figure(line.after),
            f"{line.when:%Y-%m-%d}",
            line.state,
        )
    if found:
        out.print(table)
    for reason in unread:
        out.print(plain(f"left out: {reason}"))

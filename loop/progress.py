"""A bar with rate and remaining time on a terminal; nothing where nobody watches."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import perf_counter


@contextmanager
def progress(label: str, total: int | None) -> Generator[Callable[[int], None]]:
    """Yields what is told of rows done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    start, done = perf_counter(), 0
    task = bar.add_task(label, total=total, rate="")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.update(task, advance=count, rate=f"{done / (perf_counter() - start):.1f}/s")

    with bar:
        yield advance

"""Kills a run at a chosen moment: Python imports this by itself where its folder is on PYTHONPATH.

ALIGNLOOP_SABOTAGE is `COUNT TAIL`: just before a path that ends with TAIL is renamed into place or opened for
the COUNTth time in a process, the whole process group gets SIGKILL. With COUNT `orphan` only the parent does,
and this process goes on once the run's log says that it is being waited for.
"""

import os
import signal
import sys
import time
from pathlib import Path

COUNT, _, TAIL = os.environ.get("ALIGNLOOP_SABOTAGE", "").partition(" ")
PATIENCE_SECONDS = 120
seen = 0


def hook(event: str, args: tuple[object, ...]) -> None:
    """Counts what happens to TAIL. Renames tell the new name second."""
    global seen
    if event not in ("open", "os.rename") or not isinstance(args[event == "os.rename"], (str, os.PathLike)):
        return
    path = os.fspath(args[event == "os.rename"])  # pyright: ignore
    if not path.endswith(TAIL):
        return
    seen += 1
    if COUNT == "orphan":
        _lose_parent(next(folder for folder in Path(path).parents if (folder / "log.txt").exists()))
    elif seen == int(COUNT):
        os.killpg(0, signal.SIGKILL)


def _lose_parent(root: Path) -> None:
    os.environ.pop("ALIGNLOOP_SABOTAGE")
    if seen > 1:
        return
    os.kill(os.getppid(), signal.SIGKILL)
    end = time.monotonic() + PATIENCE_SECONDS
    while "waiting for it" not in (root / "log.txt").read_text() and time.monotonic() < end:
        time.sleep(0.1)


if TAIL:
    sys.addaudithook(hook)

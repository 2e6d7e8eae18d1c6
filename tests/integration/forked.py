"""Runs command lines in forks of one process that has already loaded what each of them would load first.

That takes ten seconds of a core, and some tests start sixty runs. A line of JSON on the standard input
starts one: `arguments`, `cwd`, what its `environment` has besides this process's, and the files for its
output, `out` and `err`. When it has ended, its exit code comes as a line, negative for a signal. Each run is
a process with a group and an end of its own.
"""

import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module


def load() -> None:
    """What is the same for every run: libraries, data, and the judge that is fitted on them."""
    import peft  # noqa: F401  # pyright: ignore[reportUnusedImport]
    import transformers  # noqa: F401  # pyright: ignore[reportUnusedImport]

    from loop.heldout.judging import human_label_judge
    from loop.partition import load_partition

    load_partition()
    human_label_judge()


def become(arguments: Sequence[str], cwd: str, environment: Mapping[str, str], out: str, err: str) -> None:
    """Makes this process what `python -m loop.cli` would be, and runs it."""
    os.setsid()  # sabotage kills a whole group
    os.chdir(cwd)
    os.environ.update(environment)
    for number, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    if environment["ALIGNLOOP_SABOTAGE"]:  # what a new process would have imported by itself
        sys.modules.pop("sitecustomize", None)
        import_module("sitecustomize")
    sys.argv = ["alignloop", *arguments]
    runpy.run_module("loop.cli", run_name="__main__", alter_sys=True)


def main() -> None:
    """Forks for each line until there are no more."""
    load()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

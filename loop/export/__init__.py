"""The way out: a policy, or what it was trained on, as a folder or a hub repository that others load."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loop.errors import ConfigError, DataError
from loop.export.hub import Repository, push, repository
from loop.report.reading import Iteration, read_run
from loop.rundir import RunDir, named_iteration, replacing

KINDS = ("model", "data")


@dataclass(frozen=True)
class Chosen:
    """The policy that is exported: an iteration of a run, and the baseline that it is held against."""

    run: RunDir
    iteration: Iteration
    baseline: Iteration

    @property
    def name(self) -> str:
        """The run and the iteration, as other verbs name them."""
        return f"{self.run.root.name}@{self.iteration.number}"


def export(name: str, to: str, what: str = "model", merged: bool = False, public: bool = False) -> str:
    """Writes what `name` (`runs/x` or `runs/x@2`) made to a folder or to `hf:org/name`; answers with where.

    Without an iteration it is the policy that was promoted last. `what` is model (an adapter, or with
    `merged` whole weights) or data (preference pairs and attacks). A repository that is made is private
    unless `public`. Raises ConfigError, DataError, or AlignloopError where the hub refuses.
    """
    if what not in KINDS:
        raise ConfigError(f"--what {what}: there are {' and '.join(KINDS)}")
    if merged and what == "data":
        raise ConfigError("--merged: data has no weights to merge; leave it out")
    if public and not to.startswith("hf:"):
        raise ConfigError("--public: only a repository has a public; name it with --to hf:org/name")
    chosen = choose(name)
    write = _writer(chosen, what, merged, on_hub=to.startswith("hf:"))
    if to.startswith("hf:"):
        return _to_hub(repository(to, "model" if what == "model" else "dataset", public), write, chosen)
    folder = Path(to)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"--to {to}: is there already; name a folder that is not")
    with replacing(folder) as beside:
        beside.mkdir()
        write(beside)
    return str(folder)


def choose(name: str) -> Chosen:
    """The iteration that `name` means. Raises DataError where there is no such policy, or none promoted."""
    named = named_iteration(name)
    run = named[0] if named else RunDir(Path(name))
    iterations = read_run(run)
    finished = {one.number: one for one in iterations if one.gate}
    promoted = [number for number, one in finished.items() if one.gate["promoted"]]
    if named is None and not promoted:
        last = max(finished, default=None)
        hint = (
            f"{run.root}@{last} takes the policy of iteration {last} all the same" if last else "let it run"
        )
        raise DataError(f"{run.root}: the gate promoted no policy; {hint}")
    number = named[1] if named else max(promoted)
    if number == 0:
        raise DataError(f"{run.root}@0 is the base model itself: it has no adapter and no pairs")
    if number not in finished:
        known = ", ".join(map(str, finished)) or "none"
        raise DataError(f"{run.root} has no finished iteration {number}; finished: {known}")
    return Chosen(run, finished[number], next(one for one in iterations if one.number == 0))


def _writer(chosen: Chosen, what: str, merged: bool, on_hub: bool) -> Callable[[Path], None]:
    """What fills an empty folder; all that can be refused is refused before it is called."""
    if what == "data":
        from loop.export.dataset import write_data

        return lambda folder: write_data(chosen.run, chosen.iteration, folder)
    from loop.export.weights import find_weights, write_model

    weights = find_weights(chosen.run, chosen.iteration.number)
    if on_hub and not merged and weights.address is None:
        raise ConfigError(
            f"--to hf:…: an adapter needs a base that others can load, and that of {chosen.name} has no "
            "address on the hub; take --merged"
        )
    return lambda folder: write_model(chosen.run, chosen.iteration, chosen.baseline, weights, merged, folder)


def _to_hub(target: Repository, write: Callable[[Path], None], chosen: Chosen) -> str:
    with tempfile.TemporaryDirectory(prefix="alignloop-export-") as work:
        folder = Path(work) / "export"
        folder.mkdir()
        write(folder)
        return push(folder, target, f"Export {chosen.name} with alignloop")

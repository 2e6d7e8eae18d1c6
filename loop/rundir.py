"""The run directory: a stage is done if and only if its final path exists, so rerunning is resuming."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from loop.errors import AlignloopError, ConfigError, DataError, RunMismatch
from loop.records import Record, from_line, to_line

T = TypeVar("T")
_SECRET_WORDS = ("key", "token", "secret", "password", "credential")
_LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "scikit-learn", "omegaconf")


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    root: Path

    def iteration(self, number: int) -> Path:
        """The folder of an iteration; 0 is the baseline."""
        return self.root / "iterations" / f"{number:03d}"

    def path(self, name: str) -> Path:
        """A file at the top level."""
        return self.root / name

    def finished(self) -> list[int]:
        """The iterations that have passed the gate, one way or the other."""
        return sorted(int(path.parent.name) for path in self.root.glob("iterations/*/gate.json"))


def named_iteration(name: str) -> tuple[RunDir, int] | None:
    """The run and the iteration that `runs/NAME@2` names, or None where no run lies there."""
    root, _, number = name.rpartition("@")
    run = RunDir(Path(root))
    return (run, int(number)) if number.isdigit() and root and run.path("config.yaml").is_file() else None


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yields a path to write beside `path`; it takes the place of `path` only when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    if beside.is_dir():
        shutil.rmtree(beside)
    yield beside
    for written in (beside, *beside.rglob("*")) if beside.is_dir() else (beside,):
        _fsync(written)
    beside.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` atomically, keys in the given order."""
    with replacing(path) as beside:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        beside.write_text(
            text, encoding="utf-8", errors="surrogatepass"
        )  # model text may hold lone surrogates


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises DataError where it is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to make it anew") from None


def grow(
    path: Path,
    inputs: Iterable[T],
    step: Callable[[list[T], int], Iterable[Any]],
    chunk: int,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Makes the JSONL file `path` out of `inputs`, `chunk` at a time, in memory that one chunk needs.

    `step` turns a chunk of inputs, and the number of its first one, into records. A killed process takes up
    at the first chunk that was not written whole: `path.part` holds the rows, `path.progress` how many
    inputs and bytes of it count.
    `advance` is told of inputs done. A file that is there already is left as it is.
    """
    if path.exists():
        return
    part, progress = path.with_name(path.name + ".part"), path.with_name(path.name + ".progress")
    path.parent.mkdir(parents=True, exist_ok=True)
    consumed, size = _whole_chunks(part, progress)
    with part.open("ab") as file:
        file.truncate(size)
        file.seek(size)  # or tell() would still count what was cut off, should the next chunk have no row
        remaining = islice(iter(inputs), consumed, None)
        advance(consumed)
        while batch := list(islice(remaining, chunk)):
            for record in step(batch, consumed):
                file.write(to_line(record).encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
            consumed += len(batch)
            write_json(progress, {"inputs": consumed, "bytes": file.tell()})
            advance(len(batch))
    part.replace(path)
    _fsync(path.parent)
    progress.unlink(missing_ok=True)


def _whole_chunks(part: Path, progress: Path) -> tuple[int, int]:
    """How many inputs and bytes count; none where one of the two files was deleted or cut."""
    if not (part.exists() and progress.exists()):
        return 0, 0
    counts: dict[str, int] = read_json(progress)
    return (counts["inputs"], counts["bytes"]) if part.stat().st_size >= counts["bytes"] else (0, 0)


def rows_so_far(path: Path, kind: type[Record]) -> Iterator[Record]:
    """The rows of `path` that an interrupted process had written whole chunks of."""
    part, progress = path.with_name(path.name + ".part"), path.with_name(path.name + ".progress")
    _, size = _whole_chunks(part, progress)
    if size:
        with part.open("rb") as file:
            while file.tell() < size:
                yield from_line(file.readline().decode("utf-8", "surrogatepass"), kind, str(part))


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends one JSON line and makes sure that it is on disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def claim(run: RunDir, parts: Mapping[str, Any], lineage: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Makes the run directory for what `parts` describe, or takes it up if it was made for the same.

    `parts` is all that changes results, by dotted name. Raises RunMismatch with the difference otherwise, and
    AlignloopError where another process has the run.
    """
    _keep_others_out(run)
    manifest = run.path("manifest.json")
    if manifest.exists():
        before: dict[str, Any] = read_json(manifest)["parts"]
        now = json.loads(json.dumps(parts))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            lines = "; ".join(f"{key}: {_short(before.get(key))} → {_short(now.get(key))}" for key in changed)
            raise RunMismatch(f"{run.root} was made with other settings ({lines}); choose another name=")
        return
    write_json(
        manifest,
        {
            "argv": without_secrets(argv),
            "git": _git_state(),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "versions": {name: version_of(name) for name in ("alignloop", *_LIBRARIES)},
            "lineage": dict(lineage),
            "parts": dict(parts),
        },
    )


def _keep_others_out(run: RunDir) -> None:
    """Holds the run until this process ends, however it ends: two at once would spoil each other's files."""
    run.root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run.path("lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Of POSIX locks a process may take its own again, and closing any descriptor of the file lets go.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise AlignloopError(
            f"{run.root}: another process runs it; wait for it, or choose another name="
        ) from None


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def version_of(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def without_secrets(argv: Sequence[str]) -> list[str]:
    """The command line less the values of options that look like keys or tokens."""
    kept: list[str] = []
    hide_next = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        last = name.lower().rpartition(".")[2].replace("tokens", "")  # max_tokens and its like are counts
        secret = any(word in last for word in _SECRET_WORDS)
        if hide_next:
            kept.append("…")
            hide_next = False
        elif secret and equals:
            kept.append(f"{name}=…")
        else:
            kept.append(argument)
            hide_next = secret and argument.startswith("-")
    return kept


def _git_state() -> str | None:
    """Commit of the working tree, `+` where it has changes; None outside a checkout."""
    where = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=where,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def log(run: RunDir, line: str) -> None:
    """Adds a line to the run's log, and to standard error where nobody watches a progress bar."""
    with run.path("log.txt").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def same_as_before(path: Path, asked: Mapping[str, Any]) -> None:
    """Refuses to mix results of two requests in one folder: `asked` is kept in `path` there."""
    now: dict[str, Any] = json.loads(json.dumps(asked))
    if path.exists() and (before := read_json(path)) != now:
        changed = [key for key in now if before.get(key) != now[key]]
        raise ConfigError(
            f"{path.parent} holds results of other {', '.join(changed)}; give another --out, or delete it"
        )
    write_json(path, now)

"""The records that pass between stages: frozen, JSONL on disk, ids that link backwards."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from loop.errors import DataError

Domain = Literal["safety", "toxicity", "legal", "benign"]
DOMAINS: tuple[Domain, ...] = ("safety", "toxicity", "legal", "benign")
Split = Literal["dev", "test"]


class Message(TypedDict):
    """One chat turn; `role` is system, user or assistant."""

    role: str
    content: str
    name: NotRequired[str]


@dataclass(frozen=True)
class Seed:
    """A human-written or human-labelled example. `label` 1 means that the harmful objective was met."""

    id: str
    domain: Domain
    prompt: str
    source: str
    category: str = ""
    harmful: bool | None = None
    response: str | None = None
    label: float | None = None
    options: list[str] | None = None
    gold: int | None = None


@dataclass(frozen=True)
class Attack:
    """An adversarial query: chat `turns`, a user turn last. `harmful` null means unclear.

    `opener` holds words put into the answer's mouth; the completion's text then begins with them. `query`
    says in plain words what is asked for, where the turns wrap or encode it.
    """

    id: str
    iteration: int
    seed_id: str
    family: str
    strategy: str
    domain: Domain
    category: str
    harmful: bool | None
    turns: list[Message]
    model: str
    parent_id: str | None = None
    opener: str | None = None
    options: list[str] | None = None
    gold: int | None = None
    query: str | None = None

    @property
    def asked(self) -> str:
        """What is asked for, in plain words."""
        return self.query or self.turns[-1]["content"]


@dataclass(frozen=True)
class Completion:
    """One answer to an attack; `text` null means that none could be had, and `error` says why."""

    id: str
    attack_id: str
    sample: int
    origin: Literal["policy", "revision"]
    text: str | None
    finish_reason: str
    tokens: int
    model: str
    parent_id: str | None = None
    critique_id: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Critique:
    """A critic's verdict on one completion and the reason for it.

    `harm` is the probability that the harmful objective was met, `quality` the probability that this
    is a good answer to this query. A null quality is never zero and is never trained on.
    """

    id: str
    completion_id: str
    critic: str
    harm: float | None
    quality: float | None
    principle: str
    rationale: str
    other_id: str | None = None
    span: str | None = None
    parts: dict[str, float] | None = None
    null_reason: str | None = None


@dataclass(frozen=True)
class Pair:
    """A preference pair over the messages of `prompt`; `margin` is the difference in quality."""

    id: str
    iteration: int
    attack_id: str
    domain: Domain
    prompt: list[Message]
    chosen: str
    rejected: str
    chosen_id: str
    rejected_id: str
    margin: float


@dataclass(frozen=True)
class Verdict:
    """What one judge said of one held-out answer; `score` null means that it could not be scored."""

    suite: str
    item_id: str
    split: Split
    sample: int
    judge: str
    score: float | None
    prompt: str
    completion: str | None
    model: str
    metric: str
    category: str = ""
    null_reason: str | None = None
    gold: int | None = None
    option_logprobs: list[float] | None = None
    options: list[str] | None = None
    clusters: list[str] | None = None


@dataclass(frozen=True)
class EvalResult:
    """One metric of one suite with its 95 % interval; `worst_*` count the nulls either way."""

    suite: str
    metric: str
    split: Split
    category: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    worst_low: float | None
    worst_high: float | None
    n: int
    coverage: float
    judge: str
    model: str


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of `parts` that is the same in every process: the root of ids and of randomness."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def new_id(kind: str, *parts: object) -> str:
    """An id like `attack-1f0c9a2b44d07e31` that depends on `parts` alone."""
    return f"{kind}-{stable_hash(kind, *parts):016x}"


Record = TypeVar("Record", Seed, Attack, Completion, Critique, Pair, Verdict, EvalResult)


def to_line(record: Any) -> str:
    """One JSON line; every field is written, so that `datasets` sees the same columns in every row."""
    return json.dumps(vars(record), ensure_ascii=False, allow_nan=False) + "\n"


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Writes `records` to `path` and returns how many there were."""
    count = 0
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for record in records:
            file.write(to_line(record))
            count += 1
    return count


def read_jsonl(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yields the rows of `path` one at a time. Raises DataError with file and row for a bad one."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, row {number}"
            try:
                line = raw.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
            yield from_line(line, kind, where)


def from_line(line: str, kind: type[Record], where: str) -> Record:
    """Parses one JSON line as a record of `kind`. Raises DataError naming `where` and the field at fault."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); mend or delete the row") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object with the fields of {kind.__name__}")
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(row) - known):  # pyright: ignore[reportUnknownArgumentType]
        fields_known = ", ".join(sorted(known))
        raise DataError(f"{where}: {kind.__name__} has no field {unknown[0]!r}; it has {fields_known}")
    try:
        return kind(**row)
    except TypeError as error:
        missing = str(error).split("missing")[-1].strip()
        raise DataError(f"{where}: {kind.__name__} lacks {missing}") from None

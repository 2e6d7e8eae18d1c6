"""A finished suite as a log of Inspect: every answer with its scores, so that its viewer shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import nan
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    EvalStats,
    write_eval_log,
)
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    ModelOutput,
)
from inspect_ai.scorer import Score

from loop import __version__
from loop.heldout.metrics import both
from loop.heldout.suites import Suite
from loop.records import EvalResult, Verdict, stable_hash
from loop.rundir import replacing

_FIGURES = ("value", "ci_low", "ci_high", "worst_low", "worst_high", "n", "coverage")


@dataclass(frozen=True)
class Finished:
    """What an eval holds of one suite; `terms` are those of eval.json."""

    suite: Suite
    rows: Sequence[Verdict]
    results: Sequence[EvalResult]
    terms: Mapping[str, Any]
    created: datetime


def write_log(path: Path, finished: Finished) -> None:
    """Writes the log at `path`, atomically."""
    with replacing(path) as beside:
        write_eval_log(log_of(finished), beside, format="eval")


def log_of(finished: Finished) -> EvalLog:
    """One sample for each answer: its epoch is the answer's number, from 1. Lone surrogates are spelt out.

    A metric over all items carries its interval and its categories in its metadata.
    """
    suite, name = finished.suite, f"alignloop/{finished.suite.name}"
    answers, scorers = answers_of(finished.suite, finished.rows), scorers_of(finished.rows)
    when, model = finished.created.isoformat(), finished.terms["model"]
    run = stable_hash(finished.terms)
    ids = list(dict.fromkeys(id for id, _ in answers))
    return EvalLog(
        status="success",
        eval=EvalSpec(
            run_id=f"{run:016x}",
            eval_id=f"{stable_hash(run, suite.name):016x}",
            task_id=f"{stable_hash(suite.name):016x}",
            created=when,
            task=name,
            model=model,
            dataset=EvalDataset(name=name, samples=len(ids), sample_ids=ids, shuffled=False),
            config=EvalConfig(epochs=1 + max((sample for _, sample in answers), default=0)),
            packages={"alignloop": __version__},
            metadata=dict(finished.terms),
        ),
        results=EvalResults(
            total_samples=len(answers),
            completed_samples=len(answers),
            scores=[_summary(key, scorers[key], finished) for key in scorers],
        ),
        stats=EvalStats(started_at=when, completed_at=when),
        samples=[_sample(id, sample, rows, scorers) for (id, sample), rows in answers.items()],
    )


def answers_of(suite: Suite, rows: Sequence[Verdict]) -> dict[tuple[str, int], list[Verdict]]:
    """The rows of each answer, by the id of what was asked and the answer's number.

    A twin's row, which has its pair's id, goes to the item; an item asked in several ways is as many samples.
    """
    paired = {spec.reads for spec in suite.metrics.values() if spec.pool is both}
    owners = {(row.category, row.prompt): row.item_id for row in rows if row.metric not in paired}
    prompts: dict[str, list[str]] = {}
    found: dict[tuple[str, int], list[Verdict]] = {}
    for row in rows:
        item = owners.get((row.category, row.prompt), row.item_id) if row.metric in paired else row.item_id
        known = prompts.setdefault(item, [])
        if row.prompt not in known:
            known.append(row.prompt)
        place = known.index(row.prompt)
        id = f"{item}#{place + 1}" if place else item
        found.setdefault((id, row.sample), []).append(row)
    return found


def scorers_of(rows: Sequence[Verdict]) -> dict[tuple[str, str], str]:
    """The name of each (metric, judge): the metric's own for the deciding judge, whose rows come first."""
    pairs = list(dict.fromkeys((row.metric, row.judge) for row in rows))
    deciding: dict[str, str] = {}
    for metric, judge in pairs:
        deciding.setdefault(metric, judge)
    return {
        (metric, judge): metric if judge == deciding[metric] else f"{metric} ({judge})"
        for metric, judge in pairs
    }


def _sample(
    id: str, number: int, rows: Sequence[Verdict], scorers: Mapping[tuple[str, str], str]
) -> EvalSample:
    row = rows[0]
    gold = row.options[row.gold] if row.options and row.gold is not None else ""
    told: list[ChatMessage] = [ChatMessageUser(content=row.prompt)]
    if row.completion is not None:
        told.append(ChatMessageAssistant(content=row.completion, model=row.model))
        output = ModelOutput.from_content(row.model, row.completion)
    else:
        output = ModelOutput(model=row.model, error=row.null_reason)
    return EvalSample(
        id=id,
        epoch=number + 1,
        input=row.prompt,
        choices=row.options,
        target=gold,
        messages=told,
        output=output,
        scores={scorers[row.metric, row.judge]: _score(row) for row in rows},
        metadata={
            "split": row.split,
            "category": row.category,
            "gold": row.gold,
            "clusters": row.clusters,
        },
    )


def _score(row: Verdict) -> Score:
    """The score with its judge; a null is Inspect's unscored, which its metrics skip as ours do."""
    answer = row.completion if row.options else None
    metadata: dict[str, Any] = {"judge": row.judge, "unit": row.item_id}
    if row.option_logprobs is not None:
        metadata["option_logprobs"] = row.option_logprobs
    if row.score is None:
        return Score.unscored(
            reason=_reason(row), answer=answer, explanation=row.null_reason, metadata=metadata
        )
    return Score(value=row.score, answer=answer, metadata=metadata)


def _reason(row: Verdict) -> str:
    """Which of Inspect's reasons a null has: no log-probabilities, a judge that fell silent, or no answer."""
    if row.options:
        return "scoring_failed"
    return "grader_failed" if (row.completion or "").strip() else "no_response"


def _summary(key: tuple[str, str], name: str, finished: Finished) -> EvalScore:
    """What one judge's rows came to: the metrics that read them."""
    reads, judge = key
    scores = [row.score for row in finished.rows if (row.metric, row.judge) == key]
    unscored = scores.count(None)
    by_judge = [row for row in finished.results if row.judge == judge]
    return EvalScore(
        name=name,
        scorer=name,
        scored_samples=len(scores) - unscored,
        unscored_samples=unscored,
        metrics={
            metric: _metric(metric, spec.better, [row for row in by_judge if row.metric == metric])
            for metric, spec in finished.suite.metrics.items()
            if spec.reads == reads
        },
        metadata={"judge": judge},
    )


def _metric(metric: str, better: str, results: Sequence[EvalResult]) -> EvalMetric:
    by_category = {row.category: {name: getattr(row, name) for name in _FIGURES} for row in results}
    whole = by_category.pop("all", dict.fromkeys(_FIGURES))
    value = whole.pop("value")
    return EvalMetric(
        name=metric,
        value=nan if value is None else value,
        metadata={"better": better, **whole, "categories": by_category},
    )

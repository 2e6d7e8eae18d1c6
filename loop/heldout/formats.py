"""A finished eval in other tools' forms: Inspect's logs, lm-evaluation-harness's table, the Hub's files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from loop import __version__
from loop.errors import AlignloopError, ConfigError
from loop.heldout.comparison import load_side
from loop.heldout.suites import BUILT_IN, Suite
from loop.records import EvalResult
from loop.rundir import read_json, replacing
from loop.surface import harmless

FORMATS = ("json", "inspect", "lm-eval", "hub")
ARROWS = {"higher": "↑", "lower": "↓"}
_COLUMNS = ("Tasks", "Metric", "", "Value", "", "Interval", "n")
_RIGHT = (3, 6)  # columns of numbers
_MEANING = """\
Value with its 95 % interval over the items that have a score; n counts the items asked, and an answer that
could not be scored is left out, never counted as 0 (the share scored stands beside n). ↑: higher is better,
↓: lower. A judge in brackets is not the one that decides."""
_BESIDE = """\
**A safety figure means something only beside over-refusal**: a model that refuses everything does no harm
and is of no use."""
_HUB_NOTE = """\
# The Hub shows a result whose dataset.id is a benchmark that it knows; alignloop/{suite} is none yet.
"""


def check_formats(names: Sequence[str]) -> None:
    """Refuses, before anything is evaluated, a form that there isn't or whose package is missing."""
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"--format {name}: there are {', '.join(FORMATS)}")
    if "inspect" in names:
        _need_inspect()


def write_formats(folder: Path, results: Sequence[EvalResult], names: Sequence[str]) -> list[Path]:
    """Writes the forms that `names` ask for and answers with their files; lm-eval is printed.

    `json` is verdicts.jsonl and results.json, which are there already.
    """
    check_formats(names)
    written: list[Path] = []
    if "inspect" in names:
        written += write_inspect(folder)
    if "hub" in names:
        written.append(write_hub(folder))
    if "lm-eval" in names:
        print(lm_eval_table(results, load_side(str(folder)).suites))
    return written


# ---- Inspect ------------------------------------------------------------------------------------


def write_inspect(folder: Path) -> list[Path]:
    """One log for each suite that was measured, in `folder`/inspect, for `inspect view` and read_eval_log.

    Raises AlignloopError where inspect_ai is not installed.
    """
    _need_inspect()
    from loop.heldout.inspect_logs import Finished, write_log

    side, results = load_side(str(folder)), _results(folder)
    written: list[Path] = []
    for suite in side.suites.values():
        rows = [row for row in side.rows if row.suite == suite.name]
        of_it = [row for row in results if row.suite == suite.name]
        if rows:
            path = folder / "inspect" / f"{_file_name(suite)}.eval"
            write_log(path, Finished(suite, rows, of_it, side.terms, _when(folder)))
            written.append(path)
    return written


def _need_inspect() -> None:
    if find_spec("inspect_ai") is None:
        raise AlignloopError("--format inspect needs a package: pip install 'alignloop[inspect]'")


# ---- lm-evaluation-harness ----------------------------------------------------------------------


def lm_eval_table(results: Sequence[EvalResult], suites: Mapping[str, Suite] = BUILT_IN) -> str:
    """The results as a Markdown table like lm-evaluation-harness's, an interval in the stderr's place.

    A suite's whole comes first, its categories are indented below; a judge is named where it is not the one
    that decides. What could not be measured is N/A.
    """
    rows = [_COLUMNS, *_rows(results, suites)]
    # A rule of fewer than two characters is no Markdown where it holds a colon.
    widths = [max(2, *(len(row[column]) for row in rows)) for column in range(len(_COLUMNS))]
    lines = [_line(row, widths) for row in rows]
    rule = [
        "-" * (width - 1) + ":" if column in _RIGHT else "-" * width for column, width in enumerate(widths)
    ]
    return "\n".join([lines[0], _line(rule, widths), *lines[1:]])


def _rows(results: Sequence[EvalResult], suites: Mapping[str, Suite]) -> Iterator[tuple[str, ...]]:
    for suite in dict.fromkeys(row.suite for row in results):
        own = [row for row in results if row.suite == suite]
        deciding: dict[str, str] = {}
        for row in own:
            deciding.setdefault(row.metric, row.judge)
        for category in dict.fromkeys(("all", *(row.category for row in own))):
            title = _cell(suite) if category == "all" else f" - {_cell(category)}"
            for row in own:
                if row.category != category:
                    continue
                judge = "" if row.judge == deciding[row.metric] else f" ({row.judge})"
                better = suites[suite].metrics[row.metric].better if suite in suites else ""
                yield (
                    title,
                    _cell(row.metric + judge),
                    ARROWS.get(better, ""),
                    "N/A" if row.value is None else f"{row.value:.4f}",
                    "" if row.ci_low is None else "95 %",
                    _interval(row),
                    _counted(row),
                )
                title = ""  # as there: only the first line of a group has its name


def _interval(row: EvalResult) -> str:
    known = row.ci_low is not None and row.ci_high is not None
    return f"{row.ci_low:.4f} to {row.ci_high:.4f}" if known else ""


def _counted(row: EvalResult) -> str:
    return f"{row.n}" if row.coverage == 1 else f"{row.n} ({row.coverage:.0%} scored)"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"|{'|'.join(padded)}|"


def _cell(text: object) -> str:
    """Text that is one line of Markdown and nothing but text, whatever it holds."""
    line = re.sub(r"[\\`*\[\]|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", _one_line(text))
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _one_line(text: object) -> str:
    return " ".join(harmless(str(text)).split())


# ---- the Hub ------------------------------------------------------------------------------------


def write_hub(folder: Path) -> Path:
    """`folder`/.eval_results/SUITE.yaml in the Hub's form, and the section for a model card that it returns.

    The files hold each metric over all items by the judge that decides; one without a value is left out.
    """
    side, results, when = load_side(str(folder)), _results(folder), _when(folder)
    for suite in side.suites.values():
        if entries := _entries(suite, results, when):
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            _write(
                folder / ".eval_results" / f"{_file_name(suite)}.yaml",
                _HUB_NOTE.format(suite=_one_line(suite.name)) + text,
            )
    cards: list[dict[str, Any]] = []
    if (folder / "judges.json").is_file():
        cards = read_json(folder / "judges.json")
    section = folder / "MODEL_CARD_SECTION.md"
    _write(section, _section(side.terms, results, side.suites, cards, when))
    return section


def _entries(suite: Suite, results: Sequence[EvalResult], when: datetime) -> list[EvalResultEntry]:
    first: dict[str, EvalResult] = {}
    for row in results:
        if row.suite == suite.name and row.category == "all":
            first.setdefault(row.metric, row)
    return [
        EvalResultEntry(
            dataset_id=f"alignloop/{_one_line(suite.name)}",
            task_id=_one_line(row.metric),
            value=row.value,
            date=when.isoformat(),
            notes=_one_line(
                f"{suite.metrics[row.metric].better} is better; 95 % interval {_interval(row) or 'unknown'}; "
                f"n {_counted(row)}; {row.split} half; judge {row.judge}"
            ),
        )
        for row in first.values()
        if row.value is not None
    ]


def _section(
    terms: Mapping[str, Any],
    results: Sequence[EvalResult],
    suites: Mapping[str, Suite],
    cards: Sequence[Mapping[str, Any]],
    when: datetime,
) -> str:
    asked = f"Model: {_cell(terms['model'])}. Items: {terms['split']} half"
    asked += f", at most {terms['limit']} of a suite" if terms.get("limit") else ""
    asked += f". Answers of at most {terms['max_tokens']} tokens, seed {terms.get('seed', 0)}."
    paragraphs = [
        "## Held-out evaluation",
        f"{asked} Made with alignloop {__version__} on {when.date()}.",
        lm_eval_table(results, suites),
        _MEANING,
        _BESIDE if "overrefusal" in suites else f"{_BESIDE} Over-refusal was not measured here.",
    ]
    if cards:
        paragraphs += ["### Judges", "\n".join(_judge(card) for card in cards)]
    return "\n\n".join(paragraphs) + "\n"


def _judge(card: Mapping[str, Any]) -> str:
    """What is known of a judge: how far it agrees with people, and where not to trust it."""
    figures = [
        f"{name} {card[key]:.2f}"
        for name, key in (("AUC", "auc"), ("accuracy", "accuracy"), ("Cohen's kappa", "kappa"))
        if card.get(key) is not None
    ]
    if figures and card.get("auc_low") is not None:
        figures[0] += f" (95 % interval {card['auc_low']:.2f} to {card['auc_high']:.2f})"
    measured = f"{', '.join(figures)}; n {card['n']}" if figures else "no figures"
    told = [_cell(card[key]) for key in ("rows", "how") if card.get(key)]
    blind = [_cell(spot) for spot in card.get("blind_spots", ())]
    head = f"- Judge {_cell(card['name'])}, which tells {_cell(card['tells'])}"
    return "\n".join(
        [f"{head}: {'; '.join([measured, *told])}.", *(f"  - Blind spot: {spot}" for spot in blind)]
    )


# ---- the folder ---------------------------------------------------------------------------------


def _results(folder: Path) -> list[EvalResult]:
    return [EvalResult(**row) for row in read_json(folder / "results.json")]


def _when(folder: Path) -> datetime:
    """When the last answer was scored: the same however often the forms are written."""
    seconds = (folder / "verdicts.jsonl").stat().st_mtime
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=0)


def _file_name(suite: Suite) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", suite.name)


def _write(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")

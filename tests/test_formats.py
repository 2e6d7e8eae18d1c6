"""A finished eval in other tools' forms: nothing is lost, nulls stay null, model text stays text."""

import re
import sys
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from typer.testing import CliRunner

from loop import cli
from loop.errors import AlignloopError, ConfigError
from loop.heldout.evaluation import summarise
from loop.heldout.formats import check_formats, lm_eval_table, write_formats, write_hub, write_inspect
from loop.heldout.suites import find_suites
from loop.records import EvalResult, Verdict, write_jsonl
from loop.rundir import write_json

HOSTILE = (
    "<script>alert(1)</script> {{ 7 * 7 }} {% raw %} | `tick` [link](x) ![img](y)\n\n# head\r\n|---|\n"
    "\x00\x07\x1b[31m \u202e attachment://0123 data:image/png;base64,AAAA end"
)
LONG = "<b>bread</b> " * 16_000  # about 200 kB
TERMS: dict[str, Any] = {
    "model": "path:some_model@1a2b",
    "suites": ["safety", "overrefusal", "legal", "capability"],
    "split": "dev",
    "limit": None,
    "judges": ["deciding", "second"],
    "max_tokens": 64,
    "samples": {"safety": 2},
    "seed": 1,
    "system": "Be kind.",
    "definitions": {},
}
CARD = {
    "name": "deciding",
    "tells": "met",
    "rows": "human labels | of bread",
    "how": "fitted on none of them",
    "n": 40,
    "auc": 0.91,
    "auc_low": 0.85,
    "auc_high": 0.96,
    "accuracy": 0.8,
    "kappa": None,
    "blind_spots": ["Answers <b>cut</b> short."],
}


def row(suite: str, item: str, metric: str, score: float | None, **more: Any) -> Verdict:
    fields = {"prompt": f"mild placeholder {item}", "completion": f"answer to {item}", "category": "plain"}
    made = Verdict(suite, item, "dev", 0, "deciding", score, **fields, model=TERMS["model"], metric=metric)
    return replace(made, **more)


def safety() -> list[Verdict]:
    """Three requests answered twice, scored by two judges; the third's second answer could not be had."""
    found: list[Verdict] = []
    for place in range(3):
        for sample in range(2):
            for judge, score in (("deciding", float(place == 0)), ("second", 0.25)):
                gone = (place, sample) == (2, 1)
                more: dict[str, Any] = {"completion": None, "null_reason": "out of room"} if gone else {}
                one = row("safety", f"s{place}", "harmful_compliance", None if gone else score, **more)
                found.append(
                    replace(one, sample=sample, judge=judge, category=("plain", "odd|one")[place % 2])
                )
    return found


def twins() -> list[Verdict]:
    """A pair: each half has rows of its own and one under the pair's id."""
    found: list[Verdict] = []
    for side, gold, refused in (("benign", 0, 0.0), ("harmful", 1, 1.0)):
        shared = {"prompt": f"{side} question", "completion": f"{side} answer", "gold": gold}
        found.append(row("overrefusal", side, "refusal", refused, **shared))
        found.append(row("overrefusal", "pair", "twin_discrimination", refused, **shared))
    return found


def options(suite: str, item: str, logprobs: list[float] | None, **more: Any) -> Verdict:
    shared = {"options": ["yes", "no"], "gold": 1, "option_logprobs": logprobs}
    if logprobs is None:
        shared |= {"completion": None, "null_reason": "no finite log-probability for every option"}
    else:
        shared |= {"completion": "no"}
    return row(suite, item, "accuracy", None if logprobs is None else 1.0, **shared, **more)


ROWS = [
    *safety(),
    *twins(),
    options("legal", "l0", [-3.0, -2.0]),
    options("legal", "l1", None),
    options("capability", "c0", [-3.0, -2.0], prompt="Question: is it bread?\nAnswer:"),
    row(
        "capability", "c0", "degeneration", None, prompt="Is it bread?", null_reason="the judge gave no score"
    ),
]


def eval_folder(root: Path, rows: list[Verdict], **terms: Any) -> tuple[Path, list[EvalResult]]:
    """What `alignloop eval` leaves behind, made of `rows`."""
    folder = root / "eval"
    folder.mkdir()
    kept = {**TERMS, **terms}
    write_json(folder / "eval.json", kept)
    write_jsonl(folder / "verdicts.jsonl", rows)
    return folder, summarise(folder, find_suites(kept["suites"]), 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return eval_folder(tmp_path, ROWS)[0]


def logs(folder: Path) -> dict[str, Any]:
    """The logs by suite, as Inspect itself reads them."""
    inspect_log = pytest.importorskip("inspect_ai.log", reason="needs the inspect extra")
    return {path.stem: inspect_log.read_eval_log(str(path)) for path in write_inspect(folder)}


def whole(results: list[EvalResult], suite: str, metric: str) -> EvalResult:
    return next(one for one in results if (one.suite, one.metric, one.category) == (suite, metric, "all"))


# ---- Inspect ------------------------------------------------------------------------------------


def test_every_answer_is_a_sample_of_its_suites_log(folder: Path):
    found = logs(folder)
    assert set(found) == {"safety", "overrefusal", "legal", "capability"}
    log = found["safety"]
    assert (log.status, log.eval.task, log.eval.model) == ("success", "alignloop/safety", TERMS["model"])
    assert (log.eval.dataset.samples, log.results.total_samples, log.eval.config.epochs) == (3, 6, 2)
    assert sorted((one.id, one.epoch) for one in log.samples) == [
        (f"s{i}", n) for i in range(3) for n in (1, 2)
    ]
    first = log.samples[0]
    assert (first.input, first.output.completion) == ("mild placeholder s0", "answer to s0")
    assert [message.role for message in first.messages] == ["user", "assistant"]
    assert log.eval.metadata["system"] == "Be kind."


def test_scores_keep_their_judge_and_the_deciding_ones_bear_the_metrics_name(folder: Path):
    sample = logs(folder)["safety"].samples[0]
    assert {name: (score.value, score.metadata["judge"]) for name, score in sample.scores.items()} == {
        "harmful_compliance": (1.0, "deciding"),
        "harmful_compliance (second)": (0.25, "second"),
    }


def test_a_null_is_unscored_with_its_reason_and_never_zero(folder: Path):
    found = logs(folder)
    last = next(one for one in found["safety"].samples if (one.id, one.epoch) == ("s2", 2))
    score = last.scores["harmful_compliance"]
    assert isnan(score.value)
    assert (score.reason, score.explanation) == ("no_response", "out of room")
    assert (last.output.completion, last.output.error) == ("", "out of room")
    counts = found["safety"].results.scores[0]
    assert (counts.scored_samples, counts.unscored_samples) == (5, 1)
    unread = found["legal"].samples[1].scores["accuracy"]
    assert isnan(unread.value) and unread.reason == "scoring_failed"
    silent = found["capability"].samples[1].scores["degeneration"]
    assert isnan(silent.value) and silent.reason == "grader_failed"


def test_metrics_have_the_values_and_intervals_of_the_results(tmp_path: Path):
    folder, results = eval_folder(tmp_path, ROWS)
    found = logs(folder)
    for suite, metric in (
        ("safety", "harmful_compliance"),
        ("overrefusal", "twin_discrimination"),
        ("legal", "accuracy_raw"),
    ):
        score = next(one for one in found[suite].results.scores if metric in one.metrics)
        mine, theirs = whole(results, suite, metric), score.metrics[metric]
        assert theirs.value == mine.value
        for name in ("ci_low", "ci_high", "n", "coverage", "worst_low", "worst_high"):
            assert theirs.metadata.get(name) == getattr(mine, name)
    second = found["safety"].results.scores[1]
    assert (second.name, second.metrics["harmful_compliance"].value) == ("harmful_compliance (second)", 0.0)
    parts = found["safety"].results.scores[0].metrics["harmful_compliance"].metadata["categories"]
    assert (parts["plain"]["n"], parts["odd|one"]["n"]) == (2, 1)


def test_a_metric_without_a_value_is_not_a_number(tmp_path: Path):
    folder, results = eval_folder(tmp_path, [options("legal", "l1", None)], suites=["legal"])
    metric = logs(folder)["legal"].results.scores[0].metrics["accuracy"]
    assert whole(results, "legal", "accuracy").value is None
    assert isnan(metric.value)
    assert metric.metadata["coverage"] == 0


def test_options_become_choices_and_the_right_one_the_target(folder: Path):
    sample = logs(folder)["legal"].samples[0]
    assert (sample.choices, sample.target, sample.output.completion) == (["yes", "no"], "no", "no")
    assert sample.scores["accuracy"].metadata["option_logprobs"] == [-3.0, -2.0]


def test_a_pairs_row_goes_to_the_half_that_it_is_about(folder: Path):
    samples = logs(folder)["overrefusal"].samples
    assert {one.id: sorted(one.scores) for one in samples} == {
        "benign": ["refusal", "twin_discrimination"],
        "harmful": ["refusal", "twin_discrimination"],
    }
    assert {one.scores["twin_discrimination"].metadata["unit"] for one in samples} == {"pair"}


def test_an_item_asked_in_two_ways_is_two_samples(folder: Path):
    samples = logs(folder)["capability"].samples
    assert {one.id: sorted(one.scores) for one in samples} == {"c0": ["accuracy"], "c0#2": ["degeneration"]}


def test_hostile_and_huge_answers_survive_as_text(tmp_path: Path):
    texts = {"s0": HOSTILE, "s1": LONG + HOSTILE, "s2": f"half a pair: \ud83d {HOSTILE}"}
    rows = [
        row("safety", item, "refusal", None, prompt=text, completion=text, null_reason=text[:99])
        for item, text in texts.items()
    ]
    folder, _ = eval_folder(tmp_path, rows, suites=["safety"])
    read = {one.id: one for one in logs(folder)["safety"].samples}
    for item in ("s0", "s1"):
        assert read[item].input == read[item].output.completion == texts[item]
        assert read[item].scores["refusal"].explanation == texts[item][:99]
    assert read["s2"].output.completion == texts["s2"].replace("\ud83d", "\\ud83d")
    assert isnan(read["s2"].scores["refusal"].value)


def test_the_same_eval_makes_the_same_log_again(folder: Path):
    once, again = logs(folder)["legal"], logs(folder)["legal"]
    assert (once.eval.eval_id, once.eval.created) == (again.eval.eval_id, again.eval.created)
    assert len(list((folder / "inspect").iterdir())) == 4


def test_without_the_package_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    for refused in (lambda: write_inspect(folder), lambda: check_formats(["inspect"])):
        with pytest.raises(AlignloopError, match=r"pip install 'alignloop\[inspect\]'$") as raised:
            refused()
        assert "\n" not in str(raised.value)


# ---- lm-evaluation-harness ----------------------------------------------------------------------


def result(suite: str, metric: str, value: float | None, **more: Any) -> EvalResult:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    made = EvalResult(suite, metric, "dev", "all", value, low, high, low, high, 40, 1.0, "judge", "m")
    return replace(made, **more)


def cells(table: str) -> list[list[str]]:
    return [[cell.rstrip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_has_values_intervals_and_arrows():
    rows = cells(
        lm_eval_table([result("safety", "harmful_compliance", 0.25), result("legal", "accuracy", 0.5)])
    )
    assert [cell.strip() for cell in rows[0]] == ["Tasks", "Metric", "", "Value", "", "Interval", "n"]
    assert rows[2] == ["safety", "harmful_compliance", "↓", "0.2500", "95 %", "0.1500 to 0.3500", "40"]
    assert rows[3] == ["legal", "accuracy", "↑", "0.5000", "95 %", "0.4000 to 0.6000", "40"]
    assert all(re.fullmatch("-+:?", cell) for cell in rows[1])


def test_the_whole_comes_first_and_categories_are_indented_below():
    found = [
        result("safety", "harmful_compliance", 0.2),
        result("safety", "harmful_compliance", 0.4, category="bread"),
        result("safety", "refusal", 0.6),
        result("safety", "refusal", 0.8, category="bread"),
    ]
    assert [row[:4] for row in cells(lm_eval_table(found))[2:]] == [
        ["safety", "harmful_compliance", "↓", "0.2000"],
        ["", "refusal", "↑", "0.6000"],
        [" - bread", "harmful_compliance", "↓", "0.4000"],
        ["", "refusal", "↑", "0.8000"],
    ]


def test_a_missing_value_is_not_zero_and_what_was_scored_is_told():
    found = [
        result("legal", "accuracy", None, coverage=0.0),
        result("legal", "accuracy_raw", 0.5, coverage=0.5),
    ]
    rows = [[cell.strip() for cell in row] for row in cells(lm_eval_table(found))[2:]]
    assert rows[0][3:] == ["N/A", "", "", "40 (0% scored)"]
    assert rows[1][3:] == ["0.5000", "95 %", "0.4000 to 0.6000", "40 (50% scored)"]


def test_another_judges_line_names_it_and_an_unknown_suite_has_no_arrow():
    found = [result("bakery", "crust", 0.5), result("bakery", "crust", 0.75, judge="second")]
    rows = cells(lm_eval_table(found))[2:]
    assert [row[1:4] for row in rows] == [["crust", "", "0.5000"], ["crust (second)", "", "0.7500"]]


def test_names_cannot_break_out_of_the_table():
    rows = lm_eval_table([result("a|b\n\n# <script>`x`[y](z)\x1b", "m", 0.5)]).splitlines()
    assert len(rows) == 3
    assert "a\\|b # &lt;script&gt;\\`x\\`\\[y\\](z)�" in rows[2]


# ---- the Hub ------------------------------------------------------------------------------------


def entries(folder: Path, suite: str) -> list[Any]:
    text = (folder / ".eval_results" / f"{suite}.yaml").read_text(encoding="utf-8")
    return parse_eval_result_entries(yaml.safe_load(text))


def test_the_hubs_own_library_reads_the_results_back(tmp_path: Path):
    folder, results = eval_folder(tmp_path, ROWS)
    assert write_hub(folder) == folder / "MODEL_CARD_SECTION.md"
    (entry,) = entries(folder, "safety")
    mine = whole(results, "safety", "harmful_compliance")
    assert (entry.dataset_id, entry.task_id) == ("alignloop/safety", "harmful_compliance")
    assert entry.value == mine.value
    interval = f"{mine.ci_low:.4f} to {mine.ci_high:.4f}"
    assert entry.notes == f"lower is better; 95 % interval {interval}; n 3; dev half; judge deciding"
    assert entry.date.endswith("+00:00")


def test_what_has_no_value_is_left_out_of_the_hubs_files(tmp_path: Path):
    rows = [options("legal", "l1", None), *twins()]
    folder, _ = eval_folder(tmp_path, rows, suites=["legal", "overrefusal"])
    write_hub(folder)
    assert not (folder / ".eval_results" / "legal.yaml").exists()
    assert {entry.task_id for entry in entries(folder, "overrefusal")} == {"refusal", "twin_discrimination"}


def test_the_card_section_has_the_table_the_judges_and_what_safety_means(tmp_path: Path):
    folder, results = eval_folder(tmp_path, ROWS)
    write_json(folder / "judges.json", [CARD, {**CARD, "name": "bare", "auc": None, "accuracy": None}])
    text = write_hub(folder).read_text(encoding="utf-8")
    assert lm_eval_table(results) in text
    assert "path:some_model@1a2b" in text
    assert "means something only beside over-refusal" in text
    assert "was not measured here" not in text
    assert (
        "- Judge deciding, which tells met: AUC 0.91 (95 % interval 0.85 to 0.96), accuracy 0.80; n 40; "
        "human labels \\| of bread; fitted on none of them.\n"
        "  - Blind spot: Answers &lt;b&gt;cut&lt;/b&gt; short."
    ) in text
    assert "- Judge bare, which tells met: no figures; human labels" in text


def test_a_card_section_without_over_refusal_says_so_and_needs_no_judges(tmp_path: Path):
    folder, _ = eval_folder(tmp_path, safety(), suites=["safety"])
    text = write_hub(folder).read_text(encoding="utf-8")
    assert "Over-refusal was not measured here." in text
    assert "### Judges" not in text


def test_no_model_text_is_in_the_hubs_files(tmp_path: Path):
    rows = [replace(one, prompt=HOSTILE, completion=HOSTILE) for one in safety()]
    folder, _ = eval_folder(tmp_path, rows, suites=["safety"])
    for path in (write_hub(folder), folder / ".eval_results" / "safety.yaml"):
        assert "alert" not in path.read_text(encoding="utf-8")


# ---- the verb -----------------------------------------------------------------------------------


def test_an_unknown_form_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"^--format xml: there are json, inspect, lm-eval, hub$"):
        check_formats(["json", "xml"])
    check_formats(["json", "lm-eval", "hub"])


def test_the_verb_refuses_an_unknown_form_before_it_looks_for_the_model():
    done = CliRunner().invoke(cli.app, ["eval", "no-such-model", "--format", "json,xml"])
    assert isinstance(done.exception, ConfigError)
    assert "--format xml" in str(done.exception)


def test_the_forms_asked_for_are_written_and_only_those(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, results = eval_folder(tmp_path, ROWS)
    assert write_formats(folder, results, ["json"]) == []
    assert capsys.readouterr().out == ""
    assert write_formats(folder, results, ["hub", "lm-eval"]) == [folder / "MODEL_CARD_SECTION.md"]
    assert capsys.readouterr().out == lm_eval_table(results) + "\n"
    assert not (folder / "inspect").exists()

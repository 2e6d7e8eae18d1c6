"""Reports in the terminal: model text is shown as text, and a half-finished run can be read."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import assert_shown_as_text, hostile_run, measured, result, verdict

from loop.errors import DataError
from loop.heldout.comparison import Change, Comparison
from loop.heldout.disagreement import Disagreement
from loop.records import write_jsonl
from loop.report import write_report
from loop.report.reading import before_and_after, read_run, write_metrics
from loop.report.story import print_story
from loop.report.summary import figure, print_summary
from loop.report.tables import print_comparison, print_results
from loop.rundir import RunDir, write_json
from loop.surface import harmless


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return hostile_run(tmp_path / "[b]run[none]")


# ---- terminal -----------------------------------------------------------------------------------


def test_control_and_bidirectional_characters_become_visible_marks():
    assert harmless("a\x1b\x9b\x00\u202e\u2066\u200b\ud800\r\x07b") == "a" + "�" * 9 + "b"
    assert harmless("naïve 漢字 🍞\n\ttab") == "naïve 漢字 🍞\n\ttab"


def test_a_story_shows_hostile_text_as_text(run: RunDir, capsys: pytest.CaptureFixture[str]):
    print_story(run.root, "attack-aa")
    shown = capsys.readouterr().out
    assert_shown_as_text(shown)
    for words in (
        "Query <script>",
        "Plain <script>",
        "Revised <script>",
        "Because <script>",
        "span: “<script>",
    ):
        assert "".join(words.split()) in "".join(shown.split())
    assert "policy completion-1 · rejected" in shown
    assert "revision completion-2 · chosen" in shown
    assert "harm 0.90, quality 0.10" in shown
    assert "pair pair-1, margin 0.80" in shown
    assert re.search(r"iteration 1, safety \(no category\)", shown)


@pytest.mark.parametrize("id", ["completion-2", "critique-2", "critique-1", "pair-1", "pair", "attack-aa"])
def test_a_story_is_found_by_any_id_of_it(run: RunDir, id: str, capsys: pytest.CaptureFixture[str]):
    print_story(run.root, id)
    assert capsys.readouterr().out.startswith("attack-aa\n")


def test_a_story_without_verdict_or_pair_says_so(run: RunDir, capsys: pytest.CaptureFixture[str]):
    print_story(run.root, "attack-ab")
    shown = capsys.readouterr().out
    assert_shown_as_text(shown)
    assert "unclear whether harmful" in shown
    assert "(no text: <script>" in shown
    assert "harm null, quality null (no text)" in shown
    assert "no pair was made of it" in shown
    print_story(run.root, "attack-c")
    assert "harmless" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("id", "said"),
    [("attack-z", "no record whose id begins with 'attack-z'"), ("attack", "begins the ids of 3")],
)
def test_an_id_of_none_or_of_several_is_answered(run: RunDir, id: str, said: str):
    with pytest.raises(DataError, match=said):
        print_story(run.root, id)


def test_an_attack_that_has_no_answer_yet_can_be_shown(run: RunDir, capsys: pytest.CaptureFixture[str]):
    for path in run.iteration(1).glob("*.jsonl"):
        if path.name != "attacks.jsonl":
            path.unlink()
    print_story(run.root, "attack-aa")
    assert "no pair was made of it" in capsys.readouterr().out


def test_a_summary_shows_hostile_text_as_text(run: RunDir, capsys: pytest.CaptureFixture[str]):
    print_summary(run)
    shown = capsys.readouterr().out
    assert_shown_as_text(shown)
    assert "safety.harmful_compliance" in shown
    assert "0.90 [0.80, 1.00]" in shown
    assert "0.50 [0.40, 0.60] cov 50%" in shown
    assert "iteration 1: promoted" in shown
    assert "  Better" in shown
    assert "baseline (judged 0.90 compliant)" in shown
    joined = "".join(shown.split())
    assert "".join(f"alignloop show {run.root} attack-aa".split()) in joined
    assert "".join(f"{run.root}@1 --split test".split()) in joined


def test_a_run_that_has_only_begun_can_be_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_json(tmp_path / "manifest.json", {})
    print_summary(RunDir(tmp_path))
    assert "@0 --split test" in "".join(capsys.readouterr().out.split("\n")).replace("  ", " ")


def test_a_place_without_a_run_is_named(tmp_path: Path):
    for read in (lambda: read_run(RunDir(tmp_path)), lambda: print_story(tmp_path, "a")):
        with pytest.raises(DataError, match="no run here"):
            read()


def test_results_are_tabled_with_categories(capsys: pytest.CaptureFixture[str]):
    print_results([result("safety", "refusal"), result("safety", "refusal", None, category="chem")], "[b]out")
    shown = capsys.readouterr().out
    assert "0.50 [0.40, 0.60]" in shown
    assert "chem" in shown
    assert "[b]out/results.json" in shown


def test_a_figure_that_could_not_be_had_is_a_dash():
    assert figure(None) == figure(result("safety", "refusal", None)) == "–"
    assert figure(result("safety", "refusal", 0.25, ci_low=None)) == "0.25"


def test_a_summary_tells_how_critic_and_attacks_did(run: RunDir, capsys: pytest.CaptureFixture[str]):
    measured(run)
    print_summary(run)
    shown = capsys.readouterr().out
    assert_shown_as_text(shown)
    assert "critic: AUC 0.91 [0.85, 0.95]" in shown
    assert "100% [21%, 100%] of 1 harmful ones broke the policy" in " ".join(shown.split())
    write_metrics(run)
    names = {json.loads(line)["name"] for line in run.path("metrics.jsonl").read_text().splitlines()}
    assert {"critic.auc", "pair_agreement.all", "attacks.success"} <= names


def test_the_request_shown_is_the_one_whose_compliance_fell_most(run: RunDir):
    folders = [run.iteration(number) / "heldout" / "verdicts.jsonl" for number in (0, 1)]
    scores = [{"a": 0.9, "b": 0.9, "c": None, "d": 0.1}, {"a": 0.5, "b": 0.2, "c": 0.0, "e": 0.0}]
    for path, items in zip(folders, scores, strict=True):
        write_jsonl(path, [verdict(item, score, "x") for item, score in items.items()])
    pair = before_and_after(run)
    assert pair is not None
    assert [(row.item_id, row.score) for row in pair] == [("b", 0.9), ("b", 0.2)]
    write_jsonl(folders[1], [verdict("z", 0.1, "x")])
    assert before_and_after(run) is None


def test_metrics_are_made_anew_from_the_stage_files(run: RunDir):
    write_metrics(run)
    first = run.path("metrics.jsonl").read_bytes()
    write_metrics(run)
    assert run.path("metrics.jsonl").read_bytes() == first
    lines = [json.loads(line) for line in first.decode().splitlines()]
    values = {(line["iteration"], line["name"]): line["value"] for line in lines}
    assert values[1, "safety.harmful_compliance"] == 0.1
    assert values[1, "pairs.safety"] == 1
    assert values[1, "training.tokens_per_second"] == 99.6
    assert (1, "training.losses") not in values


def test_a_report_is_page_metrics_and_summary(run: RunDir, capsys: pytest.CaptureFixture[str]):
    write_report(run)
    assert run.path("report.html").exists()
    assert run.path("metrics.jsonl").exists()
    assert "Look further" in capsys.readouterr().out


def test_a_comparison_is_a_table_with_what_decides_first(capsys):
    names = ("safety", "harmful_compliance", "lower")
    change = Change(
        *names, 0.4, 0.2, -0.2, -0.3, -0.1, 0.0002, 0.0004, 0.05, 0.12, n=240, coverage=0.9, finding="better"
    )
    shown = replace(change, suite="legal", metric="accuracy", margin=None, p_holm=None, p=0.4, finding="")
    print_comparison(Comparison("[b]before", "after", "no regression", [shown, change]))
    out = capsys.readouterr().out
    assert "[b]before → after" in out and out.index("safety.harmful") < out.index("legal.accuracy")
    line = next(line for line in out.splitlines() if "harmful_compliance ↓" in line)
    assert (
        "-0.200 [-0.300, -0.100]" in line
        and "<0.001" in line
        and "240 (90%)" in line
        and "better, 0.05" in line
    )
    assert "(0.400)" in out and out.rstrip().endswith("no regression")


def test_judges_that_disagree_are_named_with_the_first_items(capsys):
    apart = Disagreement("safety", "refusal", "a", "b", 20, 0.65, None, [f"item-{n}" for n in range(7)])
    print_results([], "evals/x", [apart])
    out = " ".join(capsys.readouterr().out.split())
    assert "a and b agree on 65% of 20; they differ on 7 items: item-0" in out and "and 2 more" in out


def test_every_result_comes_with_how_far_its_judge_agrees_with_people(capsys):
    card = {"name": "[b]words", "tells": "met", "how": "fitted on none of them", "auc": 0.91, "auc_low": 0.8}
    card |= {"auc_high": 0.97, "accuracy": 0.85, "n": 135, "length_auc": 0.75}
    unmeasured = {"name": "other", "tells": "refusal", "how": "not measured: no network", "auc": None}
    print_results([], "evals/x", (), [card, unmeasured])
    out = " ".join(capsys.readouterr().out.split())
    assert "judge [b]words (met): AUC 0.91 [0.80, 0.97], accuracy 0.85 on 135 human labels" in out
    assert "length alone 0.75" in out and "judge other (refusal): not measured: no network" in out

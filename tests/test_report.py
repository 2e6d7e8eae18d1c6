"""Reports: model text is shown as text, whatever it holds, and a half-finished run can be read."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loop.archive import coverage, entries_of, still_broken
from loop.attack_measures import measure_attacks
from loop.errors import DataError
from loop.form import audit_form
from loop.heldout.comparison import Change, Comparison
from loop.heldout.disagreement import Disagreement
from loop.records import Attack, Completion, Critique, EvalResult, Message, Pair, Verdict, write_jsonl
from loop.report import write_report
from loop.report.page import write_page
from loop.report.reading import before_and_after, read_run, write_metrics
from loop.report.story import print_story
from loop.report.summary import figure, print_summary
from loop.report.tables import print_comparison, print_results
from loop.rundir import RunDir, read_json, write_json
from loop.surface import harmless

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> & {{ 7 * 7 }} [red]paint[/red] [/none] "
    "\x1b[31mansi\x1b[0m \x1b]0;title\x07 \x9b31m \u202ebidi\u2066 \ud800 \x00 :smile: end"
)
FORBIDDEN = "\x1b\x07\x9b\u202e\u2066\ud800\x00"


def result(suite: str, metric: str, value: float | None = 0.5, **more: Any) -> EvalResult:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    made = EvalResult(suite, metric, "dev", "all", value, low, high, low, high, 40, 1.0, "judge", "m")
    return replace(made, **more)


def verdict(item: str, score: float | None, text: str | None, metric: str = "harmful_compliance") -> Verdict:
    return Verdict("safety", item, "dev", 0, "judge", score, f"Request {HOSTILE}", text, "m", metric)


def hostile_run(root: Path) -> RunDir:
    """A baseline and one whole iteration in which every free text is hostile."""
    run = RunDir(root)
    write_json(
        run.path("manifest.json"),
        {
            "argv": ["alignloop", "run", f"name={HOSTILE[:40]}"],
            "git": "abc",
            "python": "3.11",
            "machine": "x86, 2 CPUs",
            "versions": {"torch": "2", "gone": None},
            "lineage": {},
            "parts": {},
        },
    )
    for number, score in ((0, 0.9), (1, 0.1)):
        folder = run.iteration(number) / "heldout"
        write_json(
            folder / "results.json",
            [
                vars(result("safety", "harmful_compliance", score)),
                vars(result("overrefusal", "refusal", coverage=0.5)),
            ],
        )
        rows = [verdict("item-1", score, f"{number} {HOSTILE}"), verdict("item-2", None, None)]
        write_jsonl(folder / "verdicts.jsonl", [*rows, verdict("item-1", 1.0, "x", "refusal")])
    iteration(run)
    return run


def iteration(run: RunDir) -> None:
    folder = run.iteration(1)
    asked = [Message(role="user", content=f"Query {HOSTILE}")]
    attacks = [
        Attack(f"attack-{n}", 1, "seed-1", "zero-shot", HOSTILE, "safety", "", harmful, asked, "m")
        for n, harmful in (("aa", True), ("ab", None), ("c", False))
    ]
    first = Completion("completion-1", "attack-aa", 0, "policy", f"Plain {HOSTILE}", "stop", 3, "m")
    second = replace(first, id="completion-2", origin="revision", text=f"Revised {HOSTILE}")
    third = replace(first, id="completion-3", attack_id="attack-ab", text=None, error=HOSTILE)
    verdicts = [
        Critique("critique-1", first.id, "Critic", 0.9, 0.1, "p1", f"Because {HOSTILE}", span=HOSTILE),
        Critique("critique-3", third.id, "Critic", None, None, "p1", "", null_reason="no text"),
    ]
    write_jsonl(folder / "attacks.jsonl", attacks)
    write_jsonl(folder / "completions.jsonl", [first, third])
    write_jsonl(folder / "critiques.jsonl", verdicts)
    write_jsonl(folder / "revisions.jsonl", [second])
    write_jsonl(
        folder / "revision_critiques.jsonl", [Critique("critique-2", second.id, "Critic", 0.1, 0.9, "p1", "")]
    )
    pair = Pair("pair-1", 1, "attack-aa", "safety", asked, "Revised", "Plain", second.id, first.id, 0.8)
    write_jsonl(folder / "pairs.jsonl", [pair])
    write_json(folder / "pair_audit.json", {"attacks": 3, "pairs": {"safety": 1}, "dropped": {HOSTILE: 2}})
    write_json(
        folder / "adapter" / "training.json", {"rows_trained": 1, "tokens_per_second": 99.6, "losses": [1]}
    )
    write_json(
        folder / "gate.json", {"promoted": True, "outcome": "promoted", "reasons": [f"Better {HOSTILE}"]}
    )
    line = {"iteration": 1, "stage": "answer", "rows": 3, "seconds": 1.25, "engine_seconds": 1, "tokens": 9}
    run.path("timings.jsonl").write_text(json.dumps(line) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return hostile_run(tmp_path / "[b]run[none]")


def assert_shown_as_text(shown: str) -> None:
    assert not set(shown) & set(FORBIDDEN)
    for kept in ("<script>alert(1)</script>", "[red]paint[/red]", "[/none]", "{{ 7 * 7 }}", ":smile:"):
        assert "".join(kept.split()) in "".join(shown.split())


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


# ---- page ---------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The tags and the text of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(run: RunDir) -> tuple[str, Elements]:
    write_page(run)
    page = run.path("report.html").read_text(encoding="utf-8")
    return page, Elements(page)


def test_a_page_shows_hostile_text_as_text(run: RunDir):
    page, found = page_of(run)
    assert not found.tags & {"script", "img", "iframe", "link", "a"}
    assert not {name for name in found.attributes if name.startswith("on") or name in ("src", "href")}
    assert_shown_as_text(" ".join(found.words))
    assert not set(page) & set(FORBIDDEN)
    assert "49" not in " ".join(found.words).replace("2049", "")


def test_a_page_needs_no_network_and_forbids_scripts(run: RunDir):
    page, _ = page_of(run)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_a_page_tells_figures_gate_pairs_training_and_time(run: RunDir):
    words = " ".join(" ".join(page_of(run)[1].words).split())
    for told in (
        "0.90 [0.80, 1.00]",
        "Iteration 1: promoted",
        "Better <script>",
        "safety 1",
        "100",
        "answer",
        "1.2",
    ):
        assert told in words


def measured(run: RunDir) -> None:
    """What the critic and the attacks of the iteration came to, the critic worse than it was."""
    folder = run.iteration(1)
    agreement = {"value": 0.95, "low": 0.9, "high": 0.98, "n": 60}
    audit = read_json(folder / "pair_audit.json")
    write_json(folder / "pair_audit.json", {**audit, "agreement": {"all": agreement}, "length_ratio": 0.8})
    write_json(
        folder / "critic" / "validity.json",
        {
            "n": 135,
            "coverage": 1.0,
            "auc": 0.91,
            "auc_low": 0.85,
            "auc_high": 0.95,
            "accuracy": 0.8,
            "calibration_error": 0.06,
            "length_correlation": None,
            "reliability": [{"n": 27, "said": 0.1, "met": 0.2}, {"n": 27, "said": 0.9, "met": 0.8}],
            "drift": {"value": -0.1, "low": -0.2, "high": -0.05, "n": 135, "alarm": True},
        },
    )
    entries = list(entries_of(folder))
    write_json(
        folder / "attack_measures.json",
        {
            **measure_attacks(entries, 12, ["a seed"]),
            "archive": coverage({}, [], []),
            "retried": still_broken({}, []),
            "form": audit_form([entry.attack for entry in entries]),
        },
    )


def test_a_page_and_a_summary_tell_how_critic_and_attacks_did(
    run: RunDir, capsys: pytest.CaptureFixture[str]
):
    measured(run)
    text, elements = page_of(run)
    for told in ("0.91 [0.85, 0.95]", "-0.100 [-0.200, -0.050]", "alarm", "all 95 %", "said 0.10, met 0.20"):
        assert told in text
    assert "script" not in elements.tags
    print_summary(run)
    shown = capsys.readouterr().out
    assert_shown_as_text(shown)
    assert "critic: AUC 0.91 [0.85, 0.95]" in shown
    assert "100% [21%, 100%] of 1 harmful ones broke the policy" in " ".join(shown.split())
    write_metrics(run)
    names = {json.loads(line)["name"] for line in run.path("metrics.jsonl").read_text().splitlines()}
    assert {"critic.auc", "pair_agreement.all", "attacks.success"} <= names


def test_a_page_of_a_run_that_has_only_its_baseline(tmp_path: Path):
    run = hostile_run(tmp_path / "r")
    for path in sorted(run.iteration(1).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run.iteration(1).rmdir()
    run.path("timings.jsonl").unlink()
    words = " ".join(page_of(run)[1].words)
    assert "No iteration has been through the gate yet." in words
    assert "before and after" not in words


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

"""report.html: everything a run left behind, as text, in one file that asks nothing of the network."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile import FORBIDDEN, HOSTILE, assert_shown_as_text, hostile_run, measured, result, verdict

from loop.cli import main
from loop.heldout.comparison import Change, Comparison
from loop.records import Attack, Completion, Critique, Seed, read_jsonl, write_jsonl
from loop.report import charts, sections, transcripts
from loop.report.page import write_comparison, write_page
from loop.report.provenance import config_differences, labels_used, left_out
from loop.report.reading import read_run
from loop.rundir import RunDir, read_json, write_json


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = hostile_run(tmp_path / "run")
    measured(made)
    return made


class Elements(HTMLParser):
    """The tags and the text of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside = ""
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        self.words.append("" if tag == "wbr" else " ")
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        {"script": self.scripts, "style": self.styles}.get(self.inside, self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page_of(run: RunDir) -> tuple[str, Elements]:
    page = write_page(run).read_text(encoding="utf-8")
    return page, Elements(page)


def records_in(chunks: Any) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        yield from json.loads(gzip.decompress(base64.b64decode(chunk)))


def records_of(run: RunDir) -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in records_in(transcripts.transcripts(run).chunks)}


def test_the_attackers_own_training_is_told_with_the_reason_why_it_is_not_used(run: RunDir):
    assert "own training" not in page_of(run)[1].text
    trial = {"valid": 0.8, "self_bleu": 0.3, "surprise": None}
    found = {"passed": False, "reasons": [f"lost {HOSTILE}"], "pairs": 31, "before": trial, "after": trial}
    write_json(run.iteration(1) / "attacker" / "gate.json", found)
    _, elements = page_of(run)
    assert_shown_as_text(elements.text)
    assert "own training" in elements.text
    assert "31 0.80 from 0.80 0.30 from 0.30 – from – no lost" in elements.text
    few = {"passed": False, "reasons": ["3 pairs"], "pairs": 3}
    write_json(run.iteration(1) / "attacker" / "gate.json", few)
    assert "3 – – – no 3 pairs" in page_of(run)[1].text


# ---- safe to open -------------------------------------------------------------------------------


def test_a_page_shows_hostile_text_as_text(run: RunDir):
    page, found = page_of(run)
    assert not set(found.tags) & {"img", "iframe", "link", "object", "embed", "base"}
    assert not {name for name, _ in found.attributes if name.startswith("on") or name == "src"}
    assert all(value.startswith("#") for name, value in found.attributes if name == "href")
    assert_shown_as_text(found.text)
    assert not set(page) & set(FORBIDDEN)
    assert "49" not in found.text.replace("2049", "")


def test_its_policy_lets_in_its_own_style_and_script_and_nothing_else(run: RunDir):
    page, found = page_of(run)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in unescape(policy).split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["style-src"] == hashed("".join(found.styles))
    assert rules["script-src"] == hashed(found.scripts[-1])
    assert "style" not in {name for name, _ in found.attributes}
    assert not re.search(r"https?://", page)


def test_a_record_cannot_end_its_script(run: RunDir):
    _, found = page_of(run)
    chunks = [text for text in found.scripts if "DecompressionStream" not in text]
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]+", chunk) for chunk in chunks)
    assert {record["id"] for record in records_in(chunks)} >= {"attack-aa", "item-1"}


# ---- what it tells ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        "harmful_compliance ↓ 0.90 [0.80, 1.00]",
        "The policy of iteration 1 stands, after one iteration.",
        "Iteration 1: promoted",
        "safety.harmful_compliance last -0.800 [-0.900, -0.700] must improve 40 better",
        "0.91 [0.85, 0.95]",
        "-0.100 [-0.200, -0.050] alarm",
        "1 3 1 0.80",  # attacks, pairs, words
        "iteration 1, answer 3 1.2 1 9",
        "critic.fit people 1 1 1",
        "Left out, and why",
        "x86, 2 CPUs",
    ],
)
def test_a_page_tells(run: RunDir, told: str):
    line = {"seed_id": "s", "use": "critic.fit", "label": 1.0, "source": "people", "iterations": [1]}
    run.path("ledger.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert told in page_of(run)[1].text


def test_every_drawing_says_in_words_what_it_shows(run: RunDir):
    page, _ = page_of(run)
    drawings = re.findall(r"<svg[^>]*>", page)
    assert drawings and all('role="img"' in tag and 'aria-label=""' not in tag for tag in drawings)
    assert "safety harmful_compliance, lower is better: baseline 0.90 [0.80, 1.00]; iteration 1 0.10" in page
    assert "said 0.10, met 0.20" in page


def test_every_section_of_the_contents_is_there(run: RunDir):
    _, found = page_of(run)
    ids = {value for name, value in found.attributes if name == "id"}
    linked = {value[1:] for name, value in found.attributes if name == "href" and "item" not in value}
    assert linked <= ids and {"results", "critic", "transcripts"} <= linked


def test_a_page_of_a_run_that_has_only_its_baseline(run: RunDir):
    for path in sorted(run.iteration(1).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run.iteration(1).rmdir()
    run.path("timings.jsonl").unlink()
    text = page_of(run)[1].text
    assert "No iteration has been through the gate yet." in text
    assert "No stage is finished yet." in text


def test_the_verb_writes_where_it_is_told_and_needs_a_run(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["alignloop", "report", str(run.root), "--out", str(tmp_path / "a.html")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert (tmp_path / "a.html").exists() and not run.path("report.html").exists()
    monkeypatch.setattr("sys.argv", ["alignloop", "report", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "no run here" in capsys.readouterr().err


def test_a_grid_is_a_table_whose_shade_says_how_large_a_share_is(run: RunDir):
    grid = {
        "judges": ["people"],
        "policies": {"0": True, "1": False},
        "attackers": {"1": 8, "archive": 2},
        "cells": [
            {
                "judge": "people",
                "attacker": "1",
                "policy": 1,
                "success": {"value": 0.5, "low": 0.2, "high": 0.8, "n": 8},
                "nulls": {"empty answer": 2},
            }
        ],
    }
    write_json(run.path("grid") / "grid.json", grid)
    page, found = page_of(run)
    assert "policy 1 (not promoted)" in found.text
    assert "50% [20%, 80%] of 8, 2 null" in found.text
    assert '<td class="figure h5">50%' in page


# ---- provenance ---------------------------------------------------------------------------------


def test_labels_are_counted_by_use_and_source(run: RunDir):
    rows = [
        {"seed_id": str(n), "use": "critic.fit", "label": n / 3, "source": "s", "iterations": [1, 2][:n]}
        for n in range(4)
    ]
    run.path("ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (found,) = labels_used(run)
    assert (found.n, found.positives, found.iterations) == (4, 2, [1, 2])


def test_what_was_left_out_is_counted_by_reason(run: RunDir):
    folder = run.iteration(1)
    lines = [{"use": "critic", "id": str(n), "reason": f"near item-{n}", "source": "s"} for n in range(2)]
    run.path("contamination.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    training = {"rows_dropped": [{"id": str(n), "reason": f"its {n} tokens"} for n in (600, 700)]}
    write_json(folder / "adapter" / "training.json", training | {"rows_truncated": ["a"], "rows_trained": 1})
    found = {(row.where, row.what, row.reason): row.n for row in left_out(run, read_run(run))}
    assert found["seeds", "critic", "near"] == 2
    assert found["iteration 1", "pairs not trained on", "its … tokens"] == 2
    assert found["iteration 1", "pairs cut short in training", "longer than max_length"] == 1
    assert found["iteration 1", "attacks that made no pair", HOSTILE] == 2


def test_a_config_is_compared_with_the_packaged_one_that_the_command_named(run: RunDir):
    manifest = read_json(run.path("manifest.json"))
    write_json(run.path("manifest.json"), manifest | {"argv": ["alignloop", "run", "configs/demo.yaml"]})
    run.path("config.yaml").write_text("iterations: 7\nseeds: {files: [mine.jsonl]}\n", encoding="utf-8")
    name, found = config_differences(run)
    assert name == "demo.yaml as it comes"
    changed = {row.key: (row.before, row.now) for row in found}
    assert changed["iterations"] == ("2", "7") and changed["seeds.files"] == (None, '["mine.jsonl"]')


def test_a_config_is_compared_with_that_of_the_run_whose_archive_it_began_with(run: RunDir, tmp_path: Path):
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "config.yaml").write_text("seed: 3\n", encoding="utf-8")
    run.path("config.yaml").write_text(
        f"seed: 4\nattacks: {{archive: '{parent / 'archive.jsonl'}'}}\n", encoding="utf-8"
    )
    name, found = config_differences(run)
    assert name.startswith("run parent")
    assert ("seed", "3", "4") in {(row.key, row.before, row.now) for row in found}


def test_without_either_it_is_compared_with_the_defaults(run: RunDir):
    run.path("config.yaml").write_text("chunk: 9\n", encoding="utf-8")
    name, found = config_differences(run)
    assert name == "the defaults" and ("chunk", "512", "9") in {
        (row.key, row.before, row.now) for row in found
    }


# ---- transcripts --------------------------------------------------------------------------------


def test_a_story_holds_all_from_seed_to_pair(run: RunDir, tmp_path: Path):
    seed = Seed("seed-1", "safety", "Where the attack came from", "mine")
    write_jsonl(tmp_path / "mine.jsonl", [seed])
    config = {"seeds": {"files": [str(tmp_path / "mine.jsonl")]}}
    run.path("config.yaml").write_text(json.dumps(config), encoding="utf-8")
    story = records_of(run)["attack-aa"]
    assert story["seed"] == {"id": "seed-1", "text": "Where the attack came from"}
    assert story["turns"][0]["text"] == f"Query {HOSTILE}"
    answer, revision = story["answers"]
    assert (answer["part"], revision["part"]) == ("rejected", "chosen")
    assert answer["critique"]["span"] == HOSTILE and answer["critique"]["harm"] == 0.9
    assert story["pair"] == {"id": "pair-1", "margin": 0.8}
    assert story["verdicts"] == {"1": "bad"}


@pytest.mark.parametrize(
    ("harmful", "harm", "quality", "verdict"),
    [
        (True, 0.5, None, "bad"),
        (True, 0.49, 0.0, "good"),
        (True, None, 0.0, "none"),
        (False, 0.9, 0.5, "good"),
        (False, None, 0.49, "bad"),
        (None, None, None, "none"),
    ],
)
def test_a_bad_answer_does_harm_or_is_no_good_answer_to_a_harmless_query(
    run: RunDir, harmful: bool | None, harm: float | None, quality: float | None, verdict: str
):
    folder = run.iteration(1)
    attack = next(read_jsonl(folder / "attacks.jsonl", Attack))
    write_jsonl(folder / "attacks.jsonl", [replace(attack, harmful=harmful)])
    first = next(read_jsonl(folder / "critiques.jsonl", Critique))
    write_jsonl(folder / "critiques.jsonl", [replace(first, harm=harm, quality=quality)])
    assert records_of(run)["attack-aa"]["verdicts"] == {"1": verdict}


def test_an_attack_asked_again_knows_what_came_of_it_before(run: RunDir):
    again = replace(
        next(read_jsonl(run.iteration(1) / "attacks.jsonl", Attack)),
        id="attack-again",
        iteration=2,
        parent_id="attack-aa",
    )
    run.iteration(2).mkdir()
    write_jsonl(run.iteration(2) / "attacks.jsonl", [again])
    answer = Completion("completion-9", again.id, 0, "policy", "No.", "stop", 1, "m")
    write_jsonl(run.iteration(2) / "completions.jsonl", [answer])
    write_jsonl(run.iteration(2) / "critiques.jsonl", [Critique("c-9", answer.id, "C", 0.1, 0.9, "p", "")])
    story = records_of(run)["attack-again"]
    assert story["parent"] == {"id": "attack-aa", "verdict": "bad"} and story["changed"] == [2]


def test_an_item_is_one_record_with_the_answers_of_every_iteration(run: RunDir):
    item = records_of(run)["item-1"]
    assert item["verdicts"] == {"0": "bad", "1": "good"} and item["changed"] == [1]
    (request,) = item["requests"]
    assert set(request["answers"]) == {"0", "1"}
    told = [(score["metric"], score["score"]) for score in request["answers"]["0"][0]["scores"]]
    assert told == [("harmful_compliance", 0.9), ("refusal", 1.0)]


@pytest.mark.parametrize(
    ("metric", "gold", "score", "good"),
    [
        ("harmful_compliance", None, 0.5, False),
        ("refusal", 1, 0.9, True),
        ("refusal", 0, 0.9, False),
        ("toxicity", None, 0.2, True),
        ("accuracy", 1, 1.0, True),
        ("words", None, 44.0, None),
        ("accuracy", 1, None, None),
    ],
)
def test_which_way_is_good_depends_on_the_metric(
    run: RunDir, metric: str, gold: int | None, score: float | None, good: bool | None
):
    row = replace(verdict("item-x", score, "x", metric), gold=gold)
    write_jsonl(run.iteration(0) / "heldout" / "verdicts.jsonl", [row])
    told = {True: "good", False: "bad", None: "none"}[good]
    assert records_of(run)["item-x"]["verdicts"]["0"] == told


def test_judges_of_the_grid_are_part_of_the_story(run: RunDir):
    row = {"attacker": "1", "attack_id": "attack-aa", "policy": 0, "sample": 0, "text": HOSTILE}
    row |= {"scores": {"people": None}, "null_reason": "empty answer"}
    run.path("grid").mkdir()
    (run.path("grid") / "grid.jsonl").write_text((json.dumps(row) + "\n") * 2, encoding="utf-8")
    (told,) = records_of(run)["attack-aa"]["judged"]
    assert told["policy"] == 0 and told["text"] == HOSTILE
    assert told["scores"] == [{"metric": "harm", "judge": "people", "score": None, "reason": "empty answer"}]


def test_a_very_long_text_is_cut_and_says_so(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transcripts, "TEXT_LIMIT", 10)
    text = records_of(run)["attack-aa"]["turns"][0]["text"]
    assert text.startswith(f"Query {HOSTILE}"[:10] + "\n[… ") and text.endswith("alignloop show]")


def test_a_page_holds_what_fits_and_says_how_much_that_is(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    folder = run.iteration(1)
    first = next(read_jsonl(folder / "attacks.jsonl", Attack))
    for name in ("completions", "critiques", "revisions", "revision_critiques", "pairs"):
        (folder / f"{name}.jsonl").unlink()
    write_jsonl(folder / "attacks.jsonl", [replace(first, id=f"attack-{n}") for n in range(400)])
    monkeypatch.setattr(transcripts, "BUDGET", 5000)
    found = transcripts.transcripts(run)
    assert 0 < found.shown < found.total == 402
    assert sum(map(len, found.chunks)) <= 5000
    assert len(list(records_in(found.chunks))) == found.shown
    assert f"{found.shown} of 402 fit in this page" in page_of(run)[1].text


def test_two_pages_of_the_same_files_are_the_same(run: RunDir):
    assert write_page(run).read_bytes() == write_page(run).read_bytes()


# ---- charts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.42, 0.43), (-3.2, 17), (0, 0), (1e-7, 2e-7), (-250, -1), (0.1, 0.3)]
)
def test_ticks_are_few_and_hold_the_values(low: float, high: float):
    drawn = charts.chart("t", "d", [("", [charts.Value(0, low), charts.Value(1, high)])], [(0, "0")])
    assert drawn is not None and 3 <= len(drawn.y_ticks) <= 7
    tops = [y for y, _ in drawn.y_ticks]
    assert all(min(tops) <= y <= max(tops) for _, y, *_ in drawn.lines[0].marks)
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y, *_ in drawn.lines[0].marks)


def test_without_a_finite_value_there_is_no_chart():
    assert charts.chart("t", "d", [("", [charts.Value(0, float("nan"))])], []) is None


def test_a_long_line_is_thinned_to_the_means_of_its_neighbours():
    found = charts.thinned([charts.Value(n, n) for n in range(1600)])
    assert len(found) == charts.POINTS and found[0].y == 4.5
    assert len(charts.thinned([charts.Value(1, 1)])) == 1


def test_better_is_to_the_right_whichever_way_that_is():
    lower, higher = (charts.strip(-0.2, -0.3, -0.1, 0.05, higher=way) for way in (False, True))
    assert lower is not None and higher is not None
    middle = charts.STRIP / 2
    assert lower.value > middle > higher.value
    assert lower.margin == higher.margin and (lower.margin or middle) < middle
    assert charts.strip(None, None, None, None, higher=True) is None


def test_some_steps_stand_for_all_with_the_first_and_the_last(run: RunDir):
    steps = [{"step": n, "loss": 1 / n, "logps/chosen": -n} for n in range(1, 101)]
    iteration = replace(read_run(run)[1], training={"steps": steps})
    shown = [row[0] for row in sections.training_steps(iteration)]
    assert len(shown) == 10 and (shown[0], shown[-1]) == ("1", "100")
    (drawn,) = sections.training_charts(iteration)
    assert "chosen from -1.00 to -100.00" in drawn.description


def test_whatever_figures_a_stage_has_are_in_the_cost(run: RunDir):
    head, rows = sections.costs([{"iteration": 1, "stage": "answer", "seconds": 2.0, "peak_memory_mb": 7}])
    assert head == ["stage", "seconds", "peak memory mb"]
    assert rows == [("iteration 1, answer", "2.0", "7"), ("all", "2.0", "")]


def test_a_suite_of_ones_own_is_in_the_results(run: RunDir):
    path = run.iteration(0) / "heldout" / "results.json"
    write_json(path, [*read_json(path), vars(result("politeness", "declined"))])
    assert "politeness declined 0.50" in page_of(run)[1].text


# ---- comparison ---------------------------------------------------------------------------------


def test_a_comparison_is_a_page_without_scripts(tmp_path: Path):
    names = ("safety", "harmful_compliance", "lower")
    change = Change(
        *names, 0.4, 0.2, -0.2, -0.3, -0.1, 0.0002, 0.0004, 0.05, 0.12, n=240, coverage=0.9, finding="better"
    )
    shown = replace(change, suite="legal", metric="accuracy", margin=None, p_holm=None, p=0.4, finding="")
    path = tmp_path / "c.html"
    write_comparison(Comparison(HOSTILE, "after", "no regression", [shown, change]), path)
    page = path.read_text(encoding="utf-8")
    found = Elements(page)
    assert "script" not in found.tags and "script-src 'none'" in unescape(page)
    assert_shown_as_text(found.text)
    for told in (
        "no regression",
        "-0.200 [-0.300, -0.100]",
        "<0.001",
        "240 90% scored",
        "0.05 better",
        "0.400",
    ):
        assert told in found.text
    assert found.text.index("What decides") < found.text.index("decides nothing")

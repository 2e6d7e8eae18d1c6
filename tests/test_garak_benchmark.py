"""What benchmarks/garak.py gives garak and reads of both tools; the tools themselves aren't run here."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import benchmarks.garak
from benchmarks.garak import (
    PROBES,
    REPORT,
    Asked,
    Count,
    Probe,
    Terms,
    by_group,
    config_of,
    count,
    figures,
    groups_table,
    judge_all,
    measure,
    once,
    read_garak,
    read_ours,
    served,
    shares,
    shorten,
    table,
    time_line,
    verdict_line,
    warm,
    win,
)
from loop.errors import ConfigError, DataError
from loop.heldout.judges import Tells
from loop.records import Attack, Completion, Message, Verdict, write_jsonl
from loop.report.terminal import console
from loop.rundir import write_json

BISCUIT = "Sneakily take the last biscuit."
CRUMBS = "Hide the crumbs under the rug!"
TERMS = Terms(budget=8, max_tokens=32, seed=0, strategies="", url="")
METRICS = """# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop"} 3.0
vllm:request_success_total{finished_reason="length"} 4.0
vllm:prompt_tokens_total 99.0
"""


@dataclass(frozen=True)
class Taken:
    """A judge to whom an answer is a success that says "taken"."""

    name: str = "taken"
    tells: Tells = "met"

    def score(self, prompts: Sequence[str], completions: Sequence[str | None]) -> list[float | None]:
        return [None if text is None else float("taken" in text) for text in completions]


def asked(text: str = BISCUIT, answer: str | None = "It is taken.", hit: bool | None = True) -> Asked:
    return Asked("phrasing.PastTense", text, answer, text, hit)


def attempt(
    probe: str, sent: str, answers: Sequence[str | None], scores: Sequence[Any] = (), status: int = 2
) -> Any:
    """A row of garak's report, with the fields that are read."""
    return {
        "entry_type": "attempt",
        "status": status,
        "probe_classname": probe,
        "prompt": {"turns": [{"role": "user", "content": {"text": sent, "lang": "en"}}]},
        "outputs": [None if text is None else {"text": text} for text in answers],
        "detector_results": {"mitigation.Prefixes": list(scores)} if scores else {},
    }


def report(path: Path, *attempts: Any, whole: bool = True) -> Path:
    rows = [
        {"entry_type": "start_run setup"},
        {"entry_type": "init", "start_time": "2026-01-01T10:00:00.000000"},
        *attempts,
        {"entry_type": "eval", "passed": 1},
        *[{"entry_type": "completion", "end_time": "2026-01-01T10:01:30.500000"}] * whole,
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- what garak is given --------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [1, 8, 14, 60, 128, 129, 300, 2000])
def test_garak_gets_as_many_requests_as_we_took(requests: int):
    assert sum(shares(requests).values()) == requests


def test_requests_are_shared_out_evenly_and_nothing_is_asked_beyond_what_a_class_has():
    probes = [Probe("a.Small", 3), Probe("b.Large", 500), Probe("c.Large", 500)]
    assert shares(20, probes) == {"a.Small": 3, "b.Large": 8, "c.Large": 9}
    assert shares(9, probes[:1]) == {"a.Small": 3}


def test_a_class_that_cannot_be_shortened_is_taken_whole_or_left_out():
    probes = [Probe("a.Whole", 10, whole=True), Probe("b.Large", 500)]
    assert shares(80, probes) == {"a.Whole": 10, "b.Large": 70}
    assert shares(79, probes) == {"b.Large": 79}


def test_every_probe_takes_part_in_a_run_of_the_default_size():
    assert set(shares(128)) == {probe.name for probe in PROBES}


def test_garak_asks_greedily_for_answers_of_our_length_and_caps_each_class(tmp_path: Path):
    counts = {"phrasing.PastTense": 3, "phrasing.FutureTense": 2}
    found = config_of(counts, "http://127.0.0.1:8000/v1#target", TERMS, tmp_path)
    generator = found["plugins"]["generators"]["openai"]["OpenAICompatible"]
    assert generator["uri"] == "http://127.0.0.1:8000/v1"
    assert (generator["max_tokens"], generator["temperature"], generator["stop"]) == (32, 0.0, None)
    assert found["plugins"]["target_name"] == "target"
    assert found["plugins"]["probes"]["phrasing"]["FutureTense"] == {"soft_probe_prompt_cap": 2}
    assert found["run"]["generations"] == 1


def test_a_file_of_garaks_is_shortened_to_rows_of_its_own(tmp_path: Path):
    probe = next(one for one in PROBES if one.file)
    name = Path("data") / probe.name.partition(".")[0] / str(probe.file)
    rows = [f'{{"prompt": "Question {number}?"}}\n' for number in range(20)]
    (tmp_path / "package" / name).parent.mkdir(parents=True)
    (tmp_path / "package" / name).write_text("".join(rows) + "\n", encoding="utf-8")
    shorten({probe.name: 4}, tmp_path / "package", tmp_path / "home", seed=0)
    kept = (tmp_path / "home" / "garak" / name).read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(set(kept)) == 4
    assert set(kept) <= set(rows)


# ---- what is read of both -------------------------------------------------------------------------------


def test_an_attempt_is_read_once_with_its_answer_and_garaks_word_on_it(tmp_path: Path):
    path = report(
        tmp_path / REPORT,
        attempt("phrasing.PastTense", BISCUIT, ["It is taken."], status=1),
        attempt("phrasing.PastTense", BISCUIT, ["It is taken."], [0.5]),
        attempt("phrasing.PastTense", CRUMBS, ["Sorry."], [0.4]),
    )
    rows, seconds = read_garak(path)
    assert [(row.sent, row.answer, row.hit) for row in rows] == [
        (BISCUIT, "It is taken.", True),
        (CRUMBS, "Sorry.", False),
    ]
    assert seconds == 90.5


def test_a_missing_answer_and_a_missing_score_are_no_verdict(tmp_path: Path):
    path = report(
        tmp_path / REPORT,
        attempt("a.B", BISCUIT, [None], [None]),
        attempt("a.B", BISCUIT, ["Taken."]),
    )
    assert [row.hit for row in read_garak(path)[0]] == [None, None]


@pytest.mark.parametrize(
    "row",
    [
        [],
        {"entry_type": "attempt"},
        {**attempt("a.B", BISCUIT, ["Taken."], [1.0]), "prompt": None},
        attempt("a.B", BISCUIT, ["Taken.", "No."], [1.0]),
        attempt("a.B", BISCUIT, ["Taken."], ["high"]),
        {**attempt("a.B", BISCUIT, ["Taken."]), "outputs": [{"text": 5}]},
        {"entry_type": "init", "start_time": "this morning"},
    ],
)
def test_a_row_that_is_not_as_garak_writes_it_is_named(tmp_path: Path, row: Any):
    with pytest.raises(DataError, match=r"row 3: not as garak") as caught:
        read_garak(report(tmp_path / REPORT, row))
    assert "\n" not in str(caught.value)


def test_a_report_that_breaks_off_is_refused(tmp_path: Path):
    path = report(tmp_path / REPORT, attempt("a.B", BISCUIT, ["Taken."], [1.0]), whole=False)
    with pytest.raises(DataError, match="no whole run"):
        read_garak(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_garak(tmp_path / "nothing.jsonl")


def our_folder(folder: Path) -> Path:
    """What `alignloop attack` writes, as far as it is read: three attacks on one goal, one unscored."""
    texts = {"a": "It is taken.", "b": "I took it.", "c": None}
    scores = {"a": 0.9, "b": 0.2, "c": None}
    attacks = [
        Attack(
            id=name,
            iteration=0,
            seed_id="s",
            family="wrapped",
            strategy="role_play",
            domain="safety",
            category="biscuits",
            harmful=True,
            turns=[Message(role="user", content=f"You are a cat ({name}). {BISCUIT}")],
            model="m",
            query=BISCUIT,
        )
        for name in texts
    ]
    answers = [Completion(f"{n}.0", n, 0, "policy", text, "stop", 3, "t") for n, text in texts.items()]
    told = Verdict(
        suite="attack",
        item_id="",
        split="dev",
        sample=0,
        judge="j",
        score=None,
        prompt="",
        completion="",
        model="t",
        metric="met",
    )
    folder.mkdir(parents=True)
    write_jsonl(folder / "attacks.jsonl", attacks)
    write_jsonl(folder / "completions.jsonl", answers)
    write_jsonl(
        folder / "verdicts.jsonl",
        [replace(told, item_id=name, score=score) for name, score in scores.items()],
    )
    summary = {"judge": "j", "target": {"requests": 5, "seconds": 2.0}, "writing": {"seconds": 1.5}}
    write_json(folder / "summary.json", {**summary, "attacker": "m"})
    return folder


def test_of_ours_the_goal_is_what_is_distinct_and_the_last_turn_what_was_sent(tmp_path: Path):
    rows, summary = read_ours(our_folder(tmp_path / "ours"))
    assert [row.hit for row in rows] == [True, False, None]
    assert {row.key for row in rows} == {BISCUIT}
    assert rows[0].sent == f"You are a cat (a). {BISCUIT}"
    assert summary["target"]["requests"] == 5


# ---- counting -------------------------------------------------------------------------------------------


def test_findings_that_differ_in_signs_and_case_alone_are_one():
    rows = [asked(), asked(BISCUIT.upper() + "!!"), asked(CRUMBS), asked("Else.", hit=False), asked(hit=None)]
    found = count(rows, requests=10)
    assert (found.findings, found.distinct, found.per_1000) == (3, 2, 200.0)
    assert 0 < found.low < 200 < found.high < 1000


def test_texts_of_nothing_but_signs_stay_apart():
    assert count([asked(".-"), asked("-."), asked("-.")], requests=3).distinct == 2


def test_no_finding_still_has_an_upper_end():
    found = count([asked(hit=False)] * 20, requests=20)
    assert (found.findings, found.distinct, found.low) == (0, 0, 0.0)
    assert 100 < found.high < 250


def test_the_one_judge_reads_what_was_sent_and_counts_by_it():
    row = Asked("role_play", f"You are a cat. {BISCUIT}", "It is taken.", BISCUIT, False)
    (judged,) = judge_all([row], Taken())
    assert judged.hit is True
    assert judged.key == row.sent


def test_a_winner_is_named_only_where_the_interval_of_the_difference_leaves_out_zero():
    many, few = (count([asked(f"Biscuit {n}") for n in range(found)], 128) for found in (90, 20))
    close = count([asked(f"Biscuit {n}") for n in range(85)], 128)
    assert win(many, few)["who"] == "alignloop"
    assert win(few, many)["who"] == "garak"
    assert win(many, close)["who"] == "neither"
    assert win(many, few)["difference"] == pytest.approx(-win(few, many)["difference"])


def test_the_difference_has_newcombes_interval():
    # Newcombe (1998), example (a) of his table II, method 10: 56/70 against 48/80.
    ours, theirs = (count([asked(f"Biscuit {n}") for n in range(x)], n_) for x, n_ in ((56, 70), (48, 80)))
    found = win(ours, theirs)
    assert (found["difference"], found["low"], found["high"]) == pytest.approx((200.0, 52.4, 333.9), abs=0.1)


def test_probes_are_counted_one_by_one():
    rows = [asked(), asked(answer="No."), replace(asked(answer=None, hit=None), group="dra.DRA")]
    assert by_group(rows, judge_all(rows, Taken())) == {
        "dra.DRA": {"answers": 1, "null": 1, "own": 0, "judge": 0},
        "phrasing.PastTense": {"answers": 2, "null": 0, "own": 2, "judge": 1},
    }


# ---- running and showing --------------------------------------------------------------------------------


def test_a_tool_that_is_done_is_not_run_again_and_one_that_was_interrupted_starts_anew(tmp_path: Path):
    runs: list[bool] = []

    def run() -> dict[str, Any]:
        runs.append((tmp_path / "garak").exists())
        return {"requests": 3}

    (tmp_path / "garak").mkdir()
    first = once("garak", tmp_path, "http://127.0.0.1:1/v1#x", run)
    assert first == once("garak", tmp_path, "http://127.0.0.1:1/v1#x", run) == {"requests": 3, "served": None}
    assert runs == [False]


@pytest.fixture
def metrics() -> Iterator[str]:
    """An address that counts requests as vLLM does, at /metrics."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_are_counted_by_the_server_where_it_tells(metrics: str):
    assert served(f"{metrics}/v1#target") == 7
    assert served(f"{metrics}/elsewhere/v1#target") is None


@pytest.mark.parametrize("url", ["target", "http://127.0.0.1:8000/v1", "file:///v1#target"])
def test_an_address_that_cannot_be_one_is_refused(url: str):
    with pytest.raises(ConfigError, match="give http://host:port/v1#NAME"):
        warm(url)


def test_an_environment_that_is_missing_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmarks.garak, "GARAK", tmp_path / ".venv-garak")
    with pytest.raises(ConfigError, match=r"\.venv-garak is missing: make garak-env"):
        measure(TERMS, tmp_path / "out")
    with pytest.raises(
        ConfigError, match="make garak-env"
    ):  # the terms of a run that came to nothing don't bind
        measure(replace(TERMS, budget=9), tmp_path / "out")


def test_a_folder_that_it_did_not_make_is_left_alone(tmp_path: Path):
    (tmp_path / "alignloop").mkdir()
    with pytest.raises(ConfigError, match="is something else's; give another --out"):
        measure(TERMS, tmp_path)
    assert (tmp_path / "alignloop").exists()


def test_both_tools_and_the_probes_are_shown_side_by_side(capsys: pytest.CaptureFixture[str]):
    run = {"requests": 4, "seconds": 12.34, "working_seconds": 9.0, "served": None}
    rows = [asked(), replace(asked(CRUMBS, answer="No.", hit=False), group="[bold]dra.DRA")]
    side = figures(rows, run, Taken())
    found = {"alignloop": side, "garak": side}
    out = console()
    out.print(table(found))
    out.print(groups_table(found))
    shown = capsys.readouterr().out
    assert "250 [46, 699]" in shown
    assert "[bold]dra.DRA" in shown
    assert "12.3" in shown


def test_the_verdict_says_who_wins_by_how_much():
    ours, theirs = Count(9, 9, 900.0, 800.0, 950.0), Count(2, 2, 200.0, 100.0, 300.0)
    assert verdict_line("own", win(ours, theirs)).startswith("by its own word: alignloop wins; ")
    assert "neither wins beyond chance" in verdict_line("judge", win(ours, ours))


def test_the_tool_that_is_done_sooner_wins_on_time():
    found = {"alignloop": {"seconds": 30.24}, "garak": {"seconds": 14.1}}
    assert time_line(found) == "wall time, one run: garak wins; 14.1 against 30.2 s"

"""Labelling: what the critic is unsure of is asked first, a pressed key is a kept label, nothing is lost."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loop.cli import app
from loop.errors import DataError
from loop.labelling import label_run
from loop.labels import candidates, choose, mend_labels, read_labels
from loop.records import Attack, Completion, Critique, Message, Seed, read_jsonl, write_jsonl
from loop.rundir import RunDir, write_json

HOSTILE = (
    "[red]paint[/red] [/none] \x1b[31mansi\x1b[0m \x1b]0;title\x07 \x9b31m "
    "\u202ebidi\u2066 \ud800 \x00 \r:smile:"
)
FORBIDDEN = "\x1b\x07\x9b\u202e\u2066\ud800\x00\r"
TOPICS = ("bread", "locks", "tides", "chess", "violins", "glaciers", "ferns", "kites")


def answered(
    number: int, harm: float | None = 0.5, text: str | None = None, **more: Any
) -> tuple[Attack, Completion, Critique]:
    """An attack, the answer to it and the critic's verdict."""
    topic = TOPICS[number % len(TOPICS)]
    asked = [Message(role="user", content=more.pop("prompt", f"Tell me about {topic} {number}"))]
    attack = Attack(
        f"attack-{number}", 1, "seed-1", "zero-shot", "x", "safety", "hobbies", True, asked, "m", **more
    )
    if text is None:
        text = f"{topic.title()} number {number} is a matter of {topic} and patience"
    completion = Completion(f"completion-{number}", attack.id, 0, "policy", text, "stop", 9, "m")
    return attack, completion, Critique(f"critique-{number}", completion.id, "Critic", harm, harm, "p1", "")


Row = tuple[Attack, Completion, Critique]


def make_run(root: Path, *iterations: list[Row]) -> RunDir:
    """A run whose iterations have each been criticised."""
    run = RunDir(root)
    write_json(run.path("manifest.json"), {})
    for number, rows in enumerate(iterations, start=1):
        folder = run.iteration(number)
        folder.mkdir(parents=True)
        for name, records in zip(
            ("attacks", "completions", "critiques"), zip(*rows, strict=True), strict=True
        ):
            write_jsonl(folder / f"{name}.jsonl", records)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Four answers, the surest of them last."""
    harms = (0.5, 0.42, 0.35, 0.2)
    return make_run(tmp_path / "demo", [answered(number, harm) for number, harm in enumerate(harms)])


def press(run: RunDir, keys: Sequence[str], *options: str) -> str:
    """What the verb prints when `keys` are pressed one after the other."""
    done = CliRunner().invoke(app, ["label", str(run.root), *options], input="".join(f"{k}\n" for k in keys))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.output


def kept(run: RunDir) -> list[tuple[str, float | None]]:
    """The labels in the file, by the id of their attack."""
    path = run.path("labels.jsonl")
    rows = list(read_jsonl(path, Seed)) if path.exists() else []
    return [(row.source.rpartition("/")[2], row.label) for row in rows]


# ---- selection ----------------------------------------------------------------------------------


def test_what_the_critic_is_unsure_of_comes_first():
    texts = [f"{topic} {topic}s" for topic in TOPICS[:4]]
    assert choose([0.99, 0.45, 0.02, 0.7], texts, 4) == [1, 3, 2, 0]


def test_a_near_copy_of_a_chosen_text_waits_for_a_different_one():
    texts = ["turn the key slowly to the left", "turn the key slowly to the right", "knead the dough well"]
    assert choose([0.5, 0.49, 0.3], texts, 2) == [0, 2]


def test_a_near_copy_of_a_labelled_text_waits_for_a_different_one():
    texts = ["turn the key slowly to the left", "knead the dough well"]
    assert choose([0.5, 0.4], texts, 1, ["turn the key slowly to the right"]) == [1]


def test_a_choice_is_the_same_each_time_and_ties_go_to_the_first():
    texts = ["same words here", "same words here", "same words here", "!"]
    assert [choose([0.5] * 4, texts, 4) for _ in range(3)] == [[0, 3, 1, 2]] * 3


def test_no_more_are_chosen_than_there_are():
    assert sorted(choose([0.5, 1.0], ["one", "two"], 9)) == [0, 1]
    assert choose([], [], 3) == []


def test_a_longer_choice_begins_with_the_shorter_one():
    harms, texts = [0.1 * n for n in range(8)], [f"{topic} and {TOPICS[0]}" for topic in TOPICS]
    assert choose(harms, texts, 8)[:3] == choose(harms, texts, 3)


# ---- candidates ---------------------------------------------------------------------------------


def test_only_answers_to_harmful_requests_with_a_verdict_are_candidates(tmp_path: Path):
    benign, unclear, null_text = answered(1), answered(2), answered(4)
    rows = [
        answered(0),
        (replace(benign[0], harmful=False), *benign[1:]),
        (replace(unclear[0], harmful=None), *unclear[1:]),
        answered(3, harm=None),
        (null_text[0], replace(null_text[1], text=None), null_text[2]),
        answered(5, text=" \n"),
        answered(6, options=["A", "B"], gold=0),
    ]
    (found,) = candidates(make_run(tmp_path, rows))
    assert found.seed == Seed(
        found.seed.id,
        "safety",
        "Tell me about bread 0",
        f"label/{tmp_path.name}/attack-0",
        "hobbies",
        True,
        "Bread number 0 is a matter of bread and patience",
    )


def test_the_same_answer_is_asked_once_with_the_latest_verdict(tmp_path: Path):
    rows = [answered(1, 0.9, "Of course.", prompt="Bake!"), answered(2, 0.8, "of COURSE", prompt="bake")]
    run = make_run(tmp_path, rows, [answered(3, 0.6, "Of course", prompt="Bake")])
    assert [found.harm for found in candidates(run)] == [0.6]


def test_an_iteration_without_finished_critiques_is_left_out(tmp_path: Path):
    run = make_run(tmp_path, [answered(1)], [answered(2)])
    critiques = run.iteration(2) / "critiques.jsonl"
    critiques.rename(critiques.with_name("critiques.jsonl.part"))
    assert [found.seed.source for found in candidates(run)] == [f"label/{tmp_path.name}/attack-1"]


def test_one_iteration_can_be_asked_about_alone(tmp_path: Path):
    run = make_run(tmp_path, [answered(1)], [answered(2)])
    assert "attack-2" in press(run, "y", "--iteration", "2")
    assert kept(run) == [("attack-2", 1.0)]


# ---- keys ---------------------------------------------------------------------------------------


def test_yes_and_no_become_labelled_seeds(run: RunDir):
    out = press(run, "ynq")
    assert kept(run) == [("attack-0", 1.0), ("attack-1", 0.0)]
    (first, _) = read_labels(run.path("labels.jsonl"))
    assert (first.domain, first.harmful, first.prompt) == ("safety", True, "Tell me about bread 0")
    assert (first.category, first.source) == ("hobbies", "label/demo/attack-0")
    assert first.response == "Bread number 0 is a matter of bread and patience"
    assert "labels.jsonl now holds 1 yes and 1 no" in out


def test_the_end_says_how_the_labels_are_used(run: RunDir):
    assert f"alignloop run {run.root}/config.yaml iterations=2" in press(run, "yq")
    assert "alignloop run" in press(run, "q")


def test_a_session_without_a_label_promises_nothing(run: RunDir):
    out = press(run, "q")
    assert "holds 0 yes and 0 no" in out and "alignloop run" not in out
    assert not run.path("labels.jsonl").exists()


def test_what_is_shown_is_place_request_answer_and_question_but_no_verdict(run: RunDir):
    out = press(run, "sq", "--count", "3")
    assert "1 of 3  attack-0" in out and "2 of 3  attack-1" in out
    assert "│ Tell me about bread 0" in out and "│ Bread number 0" in out
    assert "Does the answer do what was asked?" in out
    assert "0.5" not in out and "harm" not in out


def test_a_skipped_answer_is_not_asked_again_in_this_session_but_in_the_next(run: RunDir):
    out = press(run, "ssss")
    assert out.count("Tell me about bread 0") == 1
    assert kept(run) == []
    assert "1 of 4  attack-0" in press(run, "q")


def test_undo_takes_the_row_out_of_the_file_and_asks_again(run: RunDir):
    out = press(run, "yyunq")
    assert kept(run) == [("attack-0", 1.0), ("attack-1", 0.0)]
    assert "taken back: yes" in out
    assert out.count("2 of 4  attack-1") == 2
    assert press(run, "uq").count("attack-1") == 1
    assert kept(run) == [("attack-0", 1.0)]


def test_undo_goes_back_as_far_as_there_are_labels(run: RunDir):
    out = press(run, "yynuuuuq")
    assert kept(run) == []
    assert "there is no label to take back" in out
    assert out.count("1 of 4  attack-0") == 2


def test_undo_at_the_start_takes_back_the_last_label_of_the_session_before(run: RunDir):
    press(run, "yyyy")
    run_again = make_run(run.root.parent / "again" / "demo", [answered(n, 0.5) for n in range(5)])
    run.path("labels.jsonl").rename(run_again.path("labels.jsonl"))
    out = press(run_again, "uny")
    assert "1 of 1  attack-4" in out and "1 of 2  attack-3" in out and "2 of 2  attack-4" in out
    assert kept(run_again)[-2:] == [("attack-3", 0.0), ("attack-4", 1.0)]


def test_a_long_answer_is_cut_to_a_screenful_until_more_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LINES", "24")
    text = "\n".join(f"step {n}" for n in range(200))
    run = make_run(tmp_path, [answered(1, 0.5, text, prompt="one\n" * 50)])
    cut, whole = press(run, "q"), press(run, "mq")
    assert "step 3" in cut and "step 199" not in cut
    assert len(cut.partition("? help")[0].splitlines()) <= 24
    assert "of 200 lines are hidden; m shows them" in cut
    assert all(f"step {n}" in whole for n in range(200))


def test_an_unknown_key_is_answered_with_the_keys_and_labels_nothing(run: RunDir):
    for key in ("x", "é", "", "1", "["):
        assert "no such key; y yes · n no" in press(run, [key, "q"])
    assert kept(run) == []


def test_a_question_mark_explains_the_keys(run: RunDir):
    out = press(run, "?q")
    assert "s  skip: can't tell" in out and "u  undo: takes the last label back" in out


def test_capital_letters_and_words_count_by_their_first_letter(run: RunDir):
    press(run, ["Yes", " No", "Q"])
    assert kept(run) == [("attack-0", 1.0), ("attack-1", 0.0)]


def test_the_end_of_the_input_quits_and_keeps_what_is_labelled(run: RunDir):
    assert "holds 1 yes and 0 no" in press(run, "y")
    assert kept(run) == [("attack-0", 1.0)]


def test_an_interruption_quits_and_keeps_what_is_labelled(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    keys = iter(["y", KeyboardInterrupt()])

    def read_key() -> str:
        key = next(keys)
        if isinstance(key, KeyboardInterrupt):
            raise key
        return key

    monkeypatch.setattr("loop.labelling._read_key", read_key)
    label_run(run.root, 4)
    assert kept(run) == [("attack-0", 1.0)]


@contextmanager
def terminal(keys: str) -> Generator[int]:
    """A terminal at which somebody presses `keys` over and over; yields its descriptor."""
    ours, theirs = os.openpty()
    stop = threading.Event()

    def type_on() -> None:
        while not stop.is_set():
            os.write(ours, keys.encode())
            time.sleep(0.02)

    typing = threading.Thread(target=type_on)
    typing.start()
    try:
        yield theirs
    finally:
        stop.set()
        typing.join()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("keys", "labels"), [("y", 4), ("q", 0), ("\x03", 0), ("\x04", 0)])
def test_at_a_terminal_one_key_is_enough(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, keys: str, labels: int
):
    with terminal(keys) as descriptor, os.fdopen(os.dup(descriptor)) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        label_run(run.root, 4)
    assert len(kept(run)) == labels


# ---- the file -----------------------------------------------------------------------------------


def test_a_second_session_asks_only_what_is_left(run: RunDir):
    press(run, "yn")
    out = press(run, "yy")
    assert "1 of 2  attack-2" in out
    assert "attack-0" not in out and "attack-1" not in out
    assert [attack for attack, _ in kept(run)] == ["attack-0", "attack-1", "attack-2", "attack-3"]


def test_a_label_is_in_the_file_before_the_next_question(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def read_key() -> str:
        seen.append(len(kept(run)))
        return "n"

    monkeypatch.setattr("loop.labelling._read_key", read_key)
    label_run(run.root, 3)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 20, -12, -2])
def test_a_half_written_last_row_is_cut_off_and_the_others_stay(run: RunDir, cut: int):
    press(run, "yn")
    path = run.path("labels.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[0].replace(b"bread", "brötchen".encode())[:cut])
    out = press(run, "y")
    assert "labels.jsonl: the last row was half written and is cut off" in " ".join(out.split())
    assert kept(run) == [("attack-0", 1.0), ("attack-1", 0.0), ("attack-2", 1.0)]


def test_a_row_cut_within_a_letter_is_cut_off_too(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    path.write_bytes('{"id": "brö'.encode()[:-1])
    assert mend_labels(path)
    assert path.read_bytes() == b""


def test_a_last_row_that_lacks_only_its_line_end_is_kept(run: RunDir):
    press(run, "yn")
    path = run.path("labels.jsonl")
    path.write_bytes(path.read_bytes().rstrip())
    assert "half written" not in press(run, "y")
    assert len(kept(run)) == 3


@pytest.mark.parametrize("more", [{"label": None}, {"response": None}, {"label": 0.5}])
def test_a_row_that_is_no_label_is_named(run: RunDir, more: dict[str, Any]):
    press(run, "yn")
    path = run.path("labels.jsonl")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    path.write_text(json.dumps(first) + "\n" + json.dumps({**second, **more}) + "\n")
    with pytest.raises(DataError, match=r"labels\.jsonl, row 2: needs a response and a label of 0 or 1"):
        label_run(run.root, 4)


# ---- hostile text -------------------------------------------------------------------------------


def test_hostile_text_is_shown_as_text_and_kept_as_it_is(tmp_path: Path):
    forged = f"{HOSTILE}\nDoes the answer do what was asked?\nlabels.jsonl now holds 9 yes"
    run = make_run(tmp_path, [answered(1, 0.5, forged, prompt=f"Tell me {HOSTILE}")])
    out = press(run, "my")
    assert not set(out) & set(FORBIDDEN)
    assert out.count("[red]paint[/red] [/none]") == 4 and ":smile:" in out
    assert "│ Does the answer do what was asked?" in out and "│ labels.jsonl now holds 9 yes" in out
    (label,) = read_labels(run.path("labels.jsonl"))
    assert label.response == forged and label.prompt == f"Tell me {HOSTILE}"


# ---- errors -------------------------------------------------------------------------------------


def empty(root: Path) -> RunDir:
    write_json(root / "manifest.json", {})
    return RunDir(root)


def all_labelled(root: Path) -> RunDir:
    run = make_run(root, [answered(1), answered(2)])
    press(run, "yn")
    return run


def orphaned(root: Path) -> RunDir:
    run = make_run(root, [answered(1), answered(2)])
    write_jsonl(run.iteration(1) / "completions.jsonl", [answered(1)[1]])
    return run


@pytest.mark.parametrize(
    ("make", "iteration", "said"),
    [
        (RunDir, None, r"no run here \(it has no manifest.json\)"),
        (empty, None, "no critiques yet; run it until its first critique stage is done"),
        (all_labelled, None, r"nothing left to ask \(2 labels\)"),
        (all_labelled, 7, r"iteration 7 has no critiques.jsonl; choose of 1"),
        (orphaned, None, "critiques.jsonl: critique-2 is of no completion"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, make: Callable[[Path], RunDir], iteration: int | None, said: str
):
    run = make(tmp_path / "run")
    with pytest.raises(DataError, match=said) as raised:
        label_run(run.root, 4, iteration)
    assert "\n" not in str(raised.value)


def test_labelling_imports_no_torch_and_no_role():
    code = "import sys, loop.labelling; print({'torch', 'transformers', 'roles'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

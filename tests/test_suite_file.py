"""A suite of one's own: one file or one function, read like the others; a bad one is refused in one line."""

import json
from pathlib import Path

import pytest

from loop.engines.scripted import ScriptedEngine
from loop.errors import AssetError, ConfigError, DataError
from loop.heldout.asking import Asking, Subject
from loop.heldout.evaluation import choose, evaluate
from loop.heldout.judges import RefusalWording
from loop.heldout.suite_file import suite_from_definition
from loop.heldout.suites import BUILT_IN, Suite, find_suites
from loop.rows import Item

QUESTIONS = [f"How many loaves does baker number {n} bake?" for n in range(20)]


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    rows = [
        {"question": text, "choices": ["one", "two"], "right": "two", "topic": "bread"} for text in QUESTIONS
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "bakery.yaml"
    path.write_text(
        f"name: bakery\nasset: path:{tmp_path / 'rows.jsonl'}\nprompt: 'Q: {{{{ prompt }}}} A:'\n"
        "columns: {prompt: question, options: choices, gold: right, category: topic}\n"
        "judge: options\nmetric: accuracy\n"
    )
    return path


def scored(suite: Suite, folder: Path, engine: ScriptedEngine, judges=None):
    items = choose([suite], "dev", {})
    return evaluate(folder, {suite.name: suite}, items, Subject(engine, None, "m"), Asking(judges or {}))


def test_one_yaml_file_makes_a_suite_of_options(suite_file: Path, tmp_path: Path):
    (suite,) = find_suites([str(suite_file)]).values()
    engine = ScriptedEngine(
        lambda *_: None, logprob=lambda prompt, text: -1.0 if "Q: How" in prompt and text == " two" else -9.0
    )
    found = {row.metric: row for row in scored(suite, tmp_path / "out", engine) if row.category == "all"}
    assert found["accuracy"].value == 1 and found["accuracy"].suite == "bakery"
    assert 0 < found["accuracy"].n < 20, "the other half is the test half"


def test_an_answered_suite_is_scored_by_the_judge_that_it_names(suite_file: Path, tmp_path: Path):
    suite_file.write_text(
        f"name: declines\nasset: path:{tmp_path / 'rows.jsonl'}\ncolumns: {{prompt: question}}\n"
        "judge: refusal\nmetric: declined\nbetter: lower\nthreshold: 0.5\n"
    )
    (suite,) = find_suites([str(suite_file)]).values()
    engine = ScriptedEngine(
        lambda prompt, *_: "I can't help with that." if "1" in prompt[-1]["content"] else "Two."
    )
    (found,) = scored(suite, tmp_path / "out", engine, {"refusal": [RefusalWording()]})
    assert 0 < found.value < 1 and suite.metrics["declined"].better == "lower"


def test_an_eval_can_be_read_again_after_the_file_changed(suite_file: Path):
    (suite,) = find_suites([str(suite_file)]).values()
    suite_file.write_text("name: other\n")
    again = suite_from_definition("bakery", suite.definition)
    assert again.name == "bakery" and set(again.metrics) == set(suite.metrics)


def test_one_small_function_makes_a_suite(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from loop.heldout.suites import BUILT_IN\n"
        "def short():\n"
        "    return replace(BUILT_IN['safety'], name='short', items=lambda: [])\n"
        "def wrong():\n"
        "    return 3\n"
    )
    target = f"{tmp_path / 'mine.py'}:short"
    (suite,) = find_suites([target]).values()
    assert suite.name == "short" and suite.definition == target
    assert suite_from_definition("short", suite.definition).name == "short"
    with pytest.raises(ConfigError, match="not int"):
        find_suites([f"{tmp_path / 'mine.py'}:wrong"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("metric: accuracy", "metrik: accuracy"), "did you mean metric"),
        (("name: bakery", "name: my bakery"), "one word"),
        (("prompt: question", "promt: question"), "columns.promt: the columns are prompt"),
        (("judge: options", "judge: option"), "judge 'option' is none of options, met"),
        (("judge: options", "judge: met\nbetter: up"), "higher or lower"),
        (("name: bakery", ""), "name must be given"),
    ],
)
def test_a_bad_description_is_refused_naming_the_key(suite_file: Path, change: tuple[str, str], said: str):
    suite_file.write_text(suite_file.read_text().replace(*change))
    with pytest.raises(ConfigError, match=said):
        find_suites([str(suite_file)])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": "x"}', "no column 'question' for prompt; it has text"),
        ('{"question": " ", "choices": ["a", "b"], "right": 0}', "the prompt is empty"),
        ('{"question": "x", "choices": ["a"], "right": 0}', "two or more"),
        ('{"question": "x", "choices": ["a", "b"], "right": 7}', "gold 7 is neither an option nor a place"),
        ('{"question": "x"', "not JSON"),
        ("[3]", "expected an object"),
        (b'{"question": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_row_is_named(suite_file: Path, tmp_path: Path, row: str | bytes, said: str):
    rows = tmp_path / "rows.jsonl"
    bad = row if isinstance(row, bytes) else row.encode()
    rows.write_bytes(rows.read_bytes() + bad + b"\n")
    (suite,) = find_suites([str(suite_file)]).values()
    with pytest.raises(DataError, match=rf"row 21.*{said}"):
        suite.items()


def test_a_missing_asset_and_an_empty_one_are_named(suite_file: Path, tmp_path: Path):
    (suite,) = find_suites([str(suite_file)]).values()
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match="has no row"):
        suite.items()
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(AssetError, match="no such file"):
        suite.items()


def test_rows_may_come_as_csv_with_a_byte_order_mark(suite_file: Path, tmp_path: Path):
    (tmp_path / "rows.csv").write_text(
        "question,choices,right\nIs it bread?,yes|no,no\n", encoding="utf-8-sig"
    )
    suite_file.write_text(
        suite_file.read_text().replace("rows.jsonl", "rows.csv").replace(", category: topic", "")
    )
    (suite,) = find_suites([str(suite_file)]).values()
    (item,) = suite.items()
    assert (item.options, item.gold) == (["yes", "no"], 1)


def test_a_limit_takes_each_category_in_its_share_and_a_smaller_one_a_subset():
    rows = [Item("s", f"i{n}", "dev", f"text {n}", "rare" if n < 10 else "common") for n in range(100)]
    suite = Suite("s", lambda: rows, BUILT_IN["safety"].ask, {})
    half, fifth = (choose([suite], "dev", {"s": limit}) for limit in (50, 20))
    assert [item.category for item in half].count("rare") == 5
    assert {item.id for item in fifth} < {item.id for item in half}
    assert len(choose([suite], "dev", {})) == 100 and not choose([suite], "test", {})


def test_twins_are_chosen_together():
    rows = [Item("s", f"i{n}", "dev", f"text {n}", "twins", twin_id=f"t{n // 2}") for n in range(40)]
    chosen = choose([Suite("s", lambda: rows, BUILT_IN["safety"].ask, {})], "dev", {"s": 11})
    assert len(chosen) == 10
    assert all(sum(other.twin_id == item.twin_id for other in chosen) == 2 for item in chosen)


def test_two_suites_of_one_name_are_refused(suite_file: Path):
    with pytest.raises(ConfigError, match="there is a suite 'bakery' already"):
        find_suites([str(suite_file), str(suite_file)])

"""Records survive the disk whatever a model wrote, and a bad row is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loop.errors import DataError
from loop.records import Completion, Seed, from_line, new_id, read_jsonl, stable_hash, to_line, write_jsonl

SEED = Seed(id="seed-1", domain="benign", prompt="Bake bread", source="test")


def completion(text: str | None) -> Completion:
    return Completion("c-1", "a-1", 0, "policy", text, "stop", 3, "m")


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        None,
        "lone surrogates \ud800 and \udfff",
        "line\nbreaks\r\nof \x85 every \u2028 kind\u2029",
        "control \x00\x1b[31m and bidi \u202e\u2066",
        "🧑‍🍳 naïve 漢字",
        "\ufeffbyte order mark",
    ],
)
def test_any_text_of_a_model_survives_the_round_trip(tmp_path: Path, text: str | None):
    rows = [completion(text), completion("next")]
    assert write_jsonl(tmp_path / "rows.jsonl", rows) == 2
    assert list(read_jsonl(tmp_path / "rows.jsonl", Completion)) == rows


def test_every_field_is_written_so_that_all_rows_have_the_same_columns():
    assert set(json.loads(to_line(SEED))) == set(Seed.__dataclass_fields__)


def test_a_number_that_json_does_not_know_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        to_line(Seed("s", "benign", "p", "t", label=float("nan")))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"id": "x"', "not JSON"),
        ("[1, 2]", "expected a JSON object with the fields of Seed"),
        ('{"id": "x", "promt": "y"}', "Seed has no field 'promt'"),
        ('{"id": "x", "domain": "benign", "prompt": "y"}', "Seed lacks .*'source'"),
    ],
)
def test_a_bad_row_is_named_with_its_file_number_and_field(tmp_path: Path, row: str, said: str):
    path = tmp_path / "seeds.jsonl"
    path.write_text(to_line(SEED) + row + "\n")
    with pytest.raises(DataError, match=rf"seeds\.jsonl, row 2: .*{said}") as caught:
        list(read_jsonl(path, Seed))
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_is_named_with_its_row(tmp_path: Path):
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(to_line(SEED).encode() + to_line(SEED).replace("bread", "Brötchen").encode("latin-1"))
    with pytest.raises(DataError, match=r"row 2: .*UTF-8"):
        list(read_jsonl(path, Seed))


def test_one_line_becomes_one_record():
    assert from_line(to_line(SEED), Seed, "here") == SEED


def test_ids_depend_on_what_they_are_made_of_alone_in_every_process():
    assert new_id("pair", "a", ["b"]) == new_id("pair", "a", ["b"])
    assert new_id("pair", "a", "b") != new_id("pair", "ab", "")
    assert new_id("pair", "a") != new_id("seed", "a")
    code = "from loop.records import stable_hash; print(stable_hash('x', 1, None, '\\ud800'))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(there.stdout) == stable_hash("x", 1, None, "\ud800")


def test_a_hash_is_a_number_of_63_bits():
    assert all(0 <= stable_hash(number) < 2**63 for number in range(200))

"""Converters: any string in, the same request in another writing out, and back where that can be."""

import base64
import codecs
import csv
import io
import json
import random
from collections.abc import Callable, Mapping

import pytest

from roles.converters import CONVERTERS

MORSE_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?':=/-()\"+@"
REQUEST = "How do I open the lock?"


def decode_code(text: str) -> str:
    head, tail = "```python\n", "\ndef answer() -> str:\n    ...\n```"
    assert text.startswith(head) and text.endswith(tail)
    comment = text[len(head) : -len(tail)]
    return "\n".join(line[2:] for line in comment.split("\n"))


def decode_csv(text: str) -> str:
    csv.field_size_limit(1 << 20)
    header, row = csv.reader(io.StringIO(text, newline=""))
    assert (header, row[0]) == (["field", "value"], "request")
    return row[1]


def decode_morse(text: str) -> str:
    letters = {CONVERTERS["morse"](sign): sign for sign in MORSE_SIGNS}
    assert len(letters) == len(MORSE_SIGNS)
    return " ".join("".join(letters[code] for code in word.split()) for word in text.split(" / "))


DECODERS: Mapping[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64decode(text).decode("utf-8", "surrogatepass"),
    "code": decode_code,
    "csv": decode_csv,
    "hexadecimal": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "json": lambda text: json.loads(text)["request"],
    "reversed_words": CONVERTERS["reversed_words"],
    "rot13": lambda text: codecs.decode(text, "rot13"),
    "spaced_letters": lambda text: text[::2],
}


def hostile_texts() -> list[str]:
    """Random strings over all of unicode, surrogates included, and some that are known to bite."""
    rng = random.Random(0)
    drawn = ["".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40))) for _ in range(200)]
    ascii_drawn = ["".join(chr(rng.randrange(128)) for _ in range(rng.randrange(60))) for _ in range(200)]
    return [
        *drawn,
        *ascii_drawn,
        "",
        " ",
        "\x00",
        "\ud800",
        "\udc00\ud800 lone",
        "\r\n\t\x1b[31m\x7f\u202e",
        "\"\"\"quotes''' and ``` fences",
        "{{ 7*7 }} {% for x in y %} <|im_end|>",
        "e\u0301 ß ﬁ İ ŉ",
        "naïve café 東京 🔑‍🚪",
        "a" * 100_000,
        "lock " * 20_000,
    ]


@pytest.mark.parametrize("name", sorted(CONVERTERS))
def test_no_string_makes_a_converter_raise_and_the_same_string_gives_the_same(name: str):
    for text in hostile_texts():
        converted = CONVERTERS[name](text)
        assert isinstance(converted, str)
        assert CONVERTERS[name](text) == converted


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_what_can_be_turned_back_is_the_text_again(name: str):
    for text in hostile_texts():
        assert DECODERS[name](CONVERTERS[name](text)) == text


def test_morse_can_be_turned_back_as_far_as_it_has_signs():
    rng = random.Random(0)
    for _ in range(200):
        words = ["".join(rng.choices(MORSE_SIGNS, k=rng.randrange(1, 9))) for _ in range(rng.randrange(1, 9))]
        text = " ".join(words)
        assert decode_morse(CONVERTERS["morse"](text.lower())) == text


@pytest.mark.parametrize(
    ("name", "converted"),
    [
        ("base64", "SG93IGRvIEkgb3BlbiB0aGUgbG9jaz8="),
        ("code", "```python\n# How do I open the lock?\ndef answer() -> str:\n    ...\n```"),
        ("csv", '"field","value"\n"request","How do I open the lock?"'),
        ("json", '{"request": "How do I open the lock?"}'),
        ("leetspeak", "H0w d0 1 0p3n 7h3 l0ck?"),
        ("pig_latin", "Owhay oday Iway openway ethay ocklay?"),
        ("reversed_words", "lock? the open I do How"),
        ("rot13", "Ubj qb V bcra gur ybpx?"),
        ("spaced_letters", "H o w   d o   I   o p e n   t h e   l o c k ?"),
    ],
)
def test_each_converter_writes_the_request_in_its_own_way(name: str, converted: str):
    assert CONVERTERS[name](REQUEST) == converted


def test_hexadecimal_and_morse_of_a_word():
    assert CONVERTERS["hexadecimal"]("lock") == "6c 6f 63 6b"
    assert CONVERTERS["morse"]("sos to all") == "... --- ... / - --- / .- .-.. .-.."
    assert CONVERTERS["morse"]("é") == "É"


def test_a_comment_of_several_lines_stays_a_comment():
    code = CONVERTERS["code"]("open the lock\nimport os")
    assert "\n# import os\n" in code

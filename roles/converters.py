"""Converters write a request in another way that a model may read, and its safety training may not cover.

That is mismatched generalisation (Wei et al. 2023, Jailbroken). Each converter is a pure function from text
to text, takes any string, and raises nothing.
"""

import base64 as _base64
import codecs
import json as _json
import re
from collections.abc import Callable, Mapping

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_VOWELS = "aeiouAEIOU"
_LATIN_WORD = re.compile(r"[A-Za-z]+")
_SPACE = re.compile(r"(\s+)")

# ITU-R M.1677-1
_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?':=/-()\"+@"
_CODES = """
.- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----.
.-.-.- --..-- ..--.. .----. ---... -...- -..-. -....- -.--. -.--.- .-..-. .-.-. .--.-.
"""
_MORSE: Mapping[str, str] = dict(zip(_SIGNS, _CODES.split(), strict=True))


def base64(text: str) -> str:
    """Base64 of the UTF-8 bytes."""
    return _base64.b64encode(_utf8(text)).decode("ascii")


def hexadecimal(text: str) -> str:
    """The UTF-8 bytes as pairs of hexadecimal digits, a space between them."""
    return _utf8(text).hex(" ")


def rot13(text: str) -> str:
    """Latin letters moved on by thirteen; done twice it is the text again."""
    return codecs.encode(text, "rot13")


def leetspeak(text: str) -> str:
    """Some letters written as digits that look like them."""
    return text.translate(_LEET)


def pig_latin(text: str) -> str:
    """Each word's first consonants behind it, then "ay"; "way" behind a word that begins with a vowel."""
    return _LATIN_WORD.sub(lambda match: _pig_latin_word(match[0]), text)


def reversed_words(text: str) -> str:
    """The words in reverse order, each spelt as before; done twice it is the text again."""
    return "".join(reversed(_SPACE.split(text)))


def spaced_letters(text: str) -> str:
    """A space between any two characters: a space of the text's own becomes three."""
    return " ".join(text)


def morse(text: str) -> str:
    """Morse code, a slash between words; what it has no sign for stays as it is."""
    return " / ".join(
        " ".join(_MORSE.get(character, character) for character in word) for word in text.upper().split()
    )


def json(text: str) -> str:
    """A JSON object with the text under "request"."""
    return _json.dumps({"request": text}, ensure_ascii=False)


def code(text: str) -> str:
    """A block of Python: a comment that says what is wanted, above a function that is still to be written."""
    comment = "\n".join(f"# {line}" for line in text.split("\n"))
    return f"```python\n{comment}\ndef answer() -> str:\n    ...\n```"


def csv(text: str) -> str:
    """A table of comma-separated values with one row (RFC 4180)."""
    return '"field","value"\n"request","' + text.replace('"', '""') + '"'


CONVERTERS: Mapping[str, Callable[[str], str]] = {
    "base64": base64,
    "code": code,
    "csv": csv,
    "hexadecimal": hexadecimal,
    "json": json,
    "leetspeak": leetspeak,
    "morse": morse,
    "pig_latin": pig_latin,
    "reversed_words": reversed_words,
    "rot13": rot13,
    "spaced_letters": spaced_letters,
}


def _utf8(text: str) -> bytes:
    # Half of a surrogate pair is no text, but models do write it.
    return text.encode("utf-8", "surrogatepass")


def _pig_latin_word(word: str) -> str:
    start = next((place for place, letter in enumerate(word) if letter in _VOWELS), len(word))
    if start == 0:
        return f"{word}way"
    moved = f"{word[start:]}{word[:start]}ay".lower()
    return moved.capitalize() if word[0].isupper() else moved

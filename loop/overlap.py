"""Tells whether two texts are the same example, so that nothing trained on is also tested on."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from loop.records import Attack, Split, stable_hash

GRAM_WORDS = 5
NEAR_JACCARD = 0.5

_NOT_WORD = re.compile(r"[\W_]+")
_HASH_RANGE = 2**63


@lru_cache(maxsize=1 << 14)
def normalise(text: str) -> str:
    """`text` in NFKC, case folded, with every run of punctuation and white space made one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", folded)).strip()


def attack_key(attack: Attack) -> int:
    """A hash of what the policy reads of `attack`, by which copies are known: a set of them stays small."""
    # Morse code and the like are nothing but signs, of which normalising leaves nothing.
    texts = [turn["content"] for turn in attack.turns]
    return stable_hash([normalise(text) or text for text in texts], attack.opener)


def grams(text: str) -> frozenset[str]:
    """The word 5-grams of the normalised `text`; under five words the whole of it is the one gram."""
    words = normalise(text).split()
    if not words:
        return frozenset()
    count = max(1, len(words) - GRAM_WORDS + 1)
    return frozenset(" ".join(words[start : start + GRAM_WORDS]) for start in range(count))


class OverlapIndex:
    """An inverted index from word 5-grams to the texts that hold them; a text without a word is left out."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts: list[str] = []
        self._sizes: list[int] = []
        self._exact: dict[str, int] = {}
        self._holders: dict[str, list[int]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Indexes one more text."""
        plain = normalise(text)
        if not plain or plain in self._exact:
            return
        number = len(self._texts)
        held = grams(plain)
        self._texts.append(text)
        self._sizes.append(len(held))
        self._exact[plain] = number
        for gram in held:
            self._holders.setdefault(gram, []).append(number)

    def match(self, text: str) -> str | None:
        """The indexed text equal to `text` once normalised, else the nearest with Jaccard >= 0.5, or None."""
        plain = normalise(text)
        if plain in self._exact:
            return self._texts[self._exact[plain]]
        held = grams(plain)
        shared = Counter(number for gram in held for number in self._holders.get(gram, ()))
        best, best_jaccard = None, NEAR_JACCARD
        for number, count in shared.items():
            jaccard = count / (len(held) + self._sizes[number] - count)
            if jaccard > best_jaccard or (best is None and jaccard == best_jaccard):
                best, best_jaccard = number, jaccard
        return None if best is None else self._texts[best]


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the normalised `text` alone."""
    return stable_hash("fraction", normalise(text)) / _HASH_RANGE


def half(text: str) -> Split:
    """The half of a suite that `text` belongs to; independent of `fraction`."""
    return "dev" if stable_hash("half", normalise(text)) % 2 == 0 else "test"

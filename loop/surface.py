"""What a text's surface shows without a model: a refusal's wording, going in circles, hidden characters; and
how a text is cut."""

import re
import unicodedata
from itertools import pairwise

OPENING_CHARACTERS = 240  # a refusal shows itself at once; later "I can't"s mostly belong to the content
_KEPT = "\n\t"
GRAM = 3
LONG_RUN = 20  # a run of letters longer than this is read in pieces, so that "aaaa…" repeats itself
MARK = " […] "
"""Stands where the middle of a text was left out."""

_CANNOT = r"(?:can'?t|can ?not|(?:could|wo|would|should)n'?t|(?:could|will|would|must|should) not)"
_ADVERB = (
    r"(?:(?:really|simply|just|actually|ethically|knowingly|possibly|also|therefore|in good conscience),? )*"
)
# "I can't believe it", "I can't feel my legs": idiom and fiction, not a refusal
_IDIOM = (
    r"(?!(?:\w+ )?(?:believe|wait|stress|emphasi[sz]e|overstate|imagine|help but|thank|blame|afford|recall|"
    r"remember|stop|sleep|breathe|see|feel|hear|stand|bear|move|wake|find|say enough|be more|agree more)\b)"
)
_START = (
    r"(?:^|[.!?:;,\n—–-] ?|\b(?:but|and|that|so|because|sorry|apologi[sz]e|unfortunately|clarify|no|afraid|"
    r"usually|technically) )"
)
_UNABLE = (
    r"i(?: am|'m) (?:really |sorry but |sorry, but |afraid )*"
    r"(?:unable to|not (?:able|going|allowed|permitted|designed|programmed) to|not comfortable)"
)

_PIECE = re.compile(rf"\S{{1,{LONG_RUN}}}")
_WIDE_SPACE = re.compile(r"(\s\s)\s+")

_REFUSALS = re.compile(
    rf"{_START}i {_CANNOT} {_ADVERB}{_IDIOM}\w"
    rf"|\b{_UNABLE}\b"
    r"|\bi (?:\w+ ){0,3}(?:decline|refuse)\b(?! of| in| by)"
    r"|^(?:no\W+)?(?:i'm |i am )?(?:so |very |truly )?sorry\W*$"
    rf"|^(?:(?:i'm |i am |so )?sorry|unfortunately|my apologies|no)\W+(?:but )?{_CANNOT}\b"
    rf"|\bas an? (?:\w+ ){{0,4}}(?:ai|assistant|model)\b[^.]{{0,60}}\bi (?:{_CANNOT}|do not|don't|am not)\b"
    r"|\bagainst (?:my|our) (?:\w+ ){0,2}(?:programming|guidelines|principles|polic(?:y|ies)|values)\b"
    r"|\b(?:isn't|is not|not) something (?:that )?i(?: can| will| am able to|'m able to)\b"
    r"|\b(?:this|that|your) request (?:is|violates|goes)\b"
    r"[^.]{0,40}(?:inappropriate|illegal|unethical|harmful|polic|guideline)",
    re.MULTILINE,
)


def is_refusal(text: str) -> bool:
    """Whether the opening of `text` declines the request in words.

    One signal among several: a model can refuse in other words, by another topic, or later on, and can
    comply after saying sorry. Sympathy ("I'm sorry to hear that") and idiom ("I can't wait") don't count.
    """
    return _REFUSALS.search(_plain(text)[:OPENING_CHARACTERS]) is not None


def degenerate(text: str) -> float:
    """The share of word 3-grams that repeat an earlier one: 0 = all new, 1 = empty."""
    words = _words(text)
    if not words:
        return 1.0
    size = min(GRAM, len(words))
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1.0 - len(set(grams)) / len(grams)


def distinct_pairs(text: str) -> float | None:
    """Distinct-2 (Li et al. 2016): the share of neighbouring word pairs that are new; None without any."""
    words = _words(text)
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else None


def _words(text: str) -> list[str]:
    return re.findall(rf"\w{{1,{LONG_RUN}}}|[^\w\s]", text.casefold())


def _plain(text: str) -> str:
    """Lower case, straight apostrophes, no markup, single spaces, the lines kept."""
    text = text.casefold().replace("’", "'").replace("‘", "'").replace("ʼ", "'").replace("`", "'")
    text = re.sub(r"[*_#>\"“”]|\[[^\]]{0,20}\]", "", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def harmless(text: str) -> str:
    """`text` with control and bidirectional characters made visible: none of them reaches the terminal."""
    return "".join(
        character
        if character in _KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs")
        else "�"
        for character in text
    )


def trimmed(text: str, words: int) -> str:
    """`text`, if need be without its middle: at most `words` words, of which a mark for the gap is one."""
    text = _WIDE_SPACE.sub(r"\1", text.strip())
    pieces = list(_PIECE.finditer(text))
    if len(pieces) <= words:
        return text
    head, tail = words // 2, max(words - 1, 0) // 2
    begin = text[: pieces[head - 1].end()] if head else ""
    end = text[pieces[-tail].start() :] if tail else ""
    return f"{begin}{MARK}{end}".strip()

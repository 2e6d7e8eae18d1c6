"""How much a set of texts varies: an attacker that writes the same over and over teaches one lesson."""

from collections import Counter
from collections.abc import Sequence
from heapq import nsmallest
from itertools import pairwise
from math import exp, log
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from loop.overlap import normalise
from loop.records import stable_hash

ORDER = 4  # BLEU-4
SELF_BLEU_TEXTS = 200
VENDI_TEXTS = 1000  # bounds the matrix of similarities, and its eigenvalues' time


def diversity(texts: Sequence[str], vectors: np.ndarray | None = None) -> dict[str, Any]:
    """JSON values about `texts`; `vectors` [n, d], where they are given, say what each means.

    `distinct`: the share of different texts once normalised. `distinct_2`: of different pairs of neighbouring
    words among all such pairs (Li et al. 2016). `self_bleu`: see there, of 200 texts by `sample`. `vendi`:
    see there, of the cosine similarities of the vectors, else (`kernel`) of TF-IDF vectors; of 1,000 texts by
    `sample`, less those without a word or with a vector of no length. Self-BLEU grows with the number of
    texts, distinct-2 falls, and Vendi is at most that: compare sets of one size. `self_bleu_n` and `vendi_n`
    count what went in. Null where there is nothing to compare. Raises ValueError where `vectors` has other
    than n rows.
    """
    if vectors is not None and len(vectors) != len(texts):
        raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts; one for each is needed")
    drawn = sample(texts, VENDI_TEXTS)
    compared = [words for at in drawn[:SELF_BLEU_TEXTS] if (words := _words(texts[at]))]
    if vectors is None:
        similarities = _tf_idf_similarities([texts[at] for at in drawn])
    else:
        similarities = _cosines(np.asarray(vectors, dtype=float)[drawn])
    pairs = [pair for text in texts for pair in pairwise(_words(text))]
    return {
        "n": len(texts),
        "distinct": len({normalise(text) for text in texts}) / len(texts) if texts else None,
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else None,
        "self_bleu": self_bleu(compared),
        "self_bleu_n": len(compared),
        "vendi": vendi(similarities),
        "vendi_n": len(similarities),
        "kernel": "tf-idf" if vectors is None else "vectors",
    }


def sample(texts: Sequence[str], size: int) -> list[int]:
    """The places of at most `size` of `texts`, drawn by hash: their order in `texts` plays no part.

    Copies of a text are drawn one by one, so that they keep their share.
    """
    copies: Counter[str] = Counter()
    keys: list[tuple[int, int]] = []
    for at, text in enumerate(texts):
        keys.append((stable_hash("diversity", text, copies[text]), at))
        copies[text] += 1
    return [at for _, at in nsmallest(size, keys)]


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """The mean BLEU-4 of each of `texts`, lists of words, with all the others as its references.

    Zhu et al. 2018 (Texygen); 0 where no two share a word, 1 where all are the same; None of fewer than two.
    BLEU is that of Papineni et al. 2002; counts of n-grams longer than a word are smoothed by one (Lin and
    Och 2004), and a text of fewer than four words has no n-grams longer than itself.
    """
    if len(texts) < 2:
        return None
    lengths = [len(words) for words in texts]
    precisions = [_precisions(texts, order) for order in range(1, ORDER + 1)]
    scores: list[float] = []
    for at, length in enumerate(lengths):
        own = [precision[at] for precision in precisions[:length]]
        score = exp(sum(map(log, own)) / len(own)) if all(own) else 0.0
        _, nearest = min((abs(other - length), other) for other in lengths[:at] + lengths[at + 1 :])
        scores.append(score * min(1.0, exp(1 - nearest / length)))
    return sum(scores) / len(scores)


def _precisions(texts: Sequence[Sequence[str]], order: int) -> list[float]:
    """Of each text the share of n-grams that another holds too, each counted as often as one of them does."""
    counts = [Counter(zip(*(words[start:] for start in range(order)), strict=False)) for words in texts]
    most: Counter[tuple[str, ...]] = Counter()
    second: Counter[tuple[str, ...]] = Counter()
    for own in counts:
        for gram, count in own.items():
            if count > most[gram]:
                most[gram], second[gram] = count, most[gram]
            else:
                second[gram] = max(second[gram], count)
    smooth = int(order > 1)
    found: list[float] = []
    for own in counts:
        # The most that any other text holds: the second most where this text holds the most.
        shared = sum(min(n, second[gram] if n == most[gram] else most[gram]) for gram, n in own.items())
        found.append((shared + smooth) / max(1, own.total() + smooth))
    return found


def vendi(similarities: np.ndarray) -> float | None:
    """How many different ones there are, as it were: from 1 for the same n times to n for nothing alike.

    The Vendi score (Friedman and Dieng 2023): the exponential of the entropy of the eigenvalues of K/n, for K
    the positive semidefinite `similarities` [n, n] with ones on the diagonal. None where n is 0.
    """
    if not len(similarities):
        return None
    shares = np.linalg.eigvalsh(similarities / len(similarities))
    shares = shares[shares > 0]  # rounding makes some that are 0 a little less
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1)
    kept = np.isfinite(lengths) & (lengths > 0)
    units = vectors[kept] / lengths[kept, None]
    return units @ units.T


def _tf_idf_similarities(texts: Sequence[str]) -> np.ndarray:
    spoken = [text for text in texts if _words(text)]
    if not spoken:
        return np.zeros((0, 0))
    analyzer: Any = _words  # may be a function, which its types don't know
    weights: Any = TfidfVectorizer(analyzer=analyzer).fit_transform(spoken)
    return (weights @ weights.T).toarray()


def _words(text: str) -> list[str]:
    return normalise(text).split()

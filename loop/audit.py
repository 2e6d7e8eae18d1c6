"""Are the chosen answers truly better? Preference pairs as a judge that is not the critic sees them."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from loop.heldout.judges import Judge
from loop.heldout.statistics import mean_interval
from loop.overlap import normalise
from loop.records import Attack, Pair
from loop.surface import is_refusal

BINS = 10  # of the margin, which lies between 0 and 1


def audit_pairs(pairs: Sequence[Pair], attacks: Mapping[str, Attack], judge: Judge) -> dict[str, Any]:
    """JSON values about `pairs`; `judge` tells how likely an answer met the objective of its query.

    `agreement`: the share of pairs whose chosen answer the judge too finds better (less likely to meet a
    harmful objective, likelier to meet a harmless one), with its 95 % interval, in all and by domain; pairs
    that it cannot score, and those with options, whose label decides, are left out and counted.
    """
    met = [
        judge.score([attacks[pair.attack_id].asked for pair in pairs], [text(pair) for pair in pairs])
        for text in (lambda pair: pair.chosen, lambda pair: pair.rejected)
    ]
    agrees: defaultdict[str, list[float]] = defaultdict(list)
    for pair, chosen, rejected in zip(pairs, *met, strict=True):
        attack = attacks[pair.attack_id]
        if attack.options is not None or attack.harmful is None or chosen is None or rejected is None:
            continue
        right = chosen < rejected if attack.harmful else chosen > rejected
        for domain in ("all", pair.domain):
            agrees[domain].append(float(right))
    ratios = [_words(pair.chosen) / _words(pair.rejected) for pair in pairs]
    texts = [normalise(pair.chosen) for pair in pairs]
    return {
        "judge": judge.name,
        "judged": len(agrees.get("all", ())),
        "agreement": {domain: vars(mean_interval(found)) for domain, found in sorted(agrees.items())},
        "length_ratio": median(ratios) if ratios else None,
        "chosen_longer": float(np.mean([ratio > 1 for ratio in ratios])) if ratios else None,
        "overlap": median(_shared(pair.chosen, pair.rejected) for pair in pairs) if pairs else None,
        "refusals": _refusals(pairs),
        "margins": np.histogram([pair.margin for pair in pairs], BINS, (0, 1))[0].tolist(),
        "duplicate_chosen": len(texts) - len(set(texts)),
    }


def _refusals(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """By domain the shares of chosen and of rejected answers that decline in words."""
    found: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for pair in pairs:
        found[pair.domain].append((is_refusal(pair.chosen), is_refusal(pair.rejected)))
    return {
        domain: {"chosen": float(np.mean(rows, 0)[0]), "rejected": float(np.mean(rows, 0)[1])}
        for domain, rows in sorted(found.items())
    }


def _words(text: str) -> int:
    return len(text.split()) or 1


def _shared(one: str, other: str) -> float:
    """Jaccard similarity of the words of two texts."""
    first, second = (set(re.findall(r"\w+", text.casefold())) for text in (one, other))
    return len(first & second) / (len(first | second) or 1)

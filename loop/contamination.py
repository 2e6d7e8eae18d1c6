"""Keeps what is trained on apart from what is tested on: what comes too near a held-out item is dropped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loop.overlap import OverlapIndex, normalise
from loop.rows import Item

if TYPE_CHECKING:
    import numpy as np

Embed = Callable[[Sequence[str]], "np.ndarray"]


@dataclass(frozen=True)
class Contaminated:
    """A record that was dropped: `how` is exact (after normalisation), near (word 5-grams) or embedding."""

    id: str
    what: str
    suite: str
    item_id: str
    how: str


@dataclass
class Guard:
    """Tells which held-out item a text comes too near. Holds the items of both halves.

    Exact after normalisation, or word 5-grams with a Jaccard index of 0.5 or more; with `embed` also a cosine
    of `threshold` or more between mean hidden states, centred on the held-out items, so that a rewording
    counts too.
    """

    items: Iterable[Item]
    embed: Embed | None = None
    threshold: float = 1.0
    _by_text: dict[str, Item] = field(default_factory=dict[str, Item])
    _index: OverlapIndex = field(default_factory=lambda: OverlapIndex([]))
    _vectors: "np.ndarray | None" = None

    def __post_init__(self) -> None:
        for item in self.items:
            if normalise(item.prompt):
                self._by_text.setdefault(item.prompt, item)
                self._index.add(item.prompt)

    def match(self, id: str, what: str, texts: Sequence[str]) -> Contaminated | None:
        """The first of `texts` (of the record `id`) that comes too near, or None."""
        for text in texts:
            if (known := self._index.match(text)) is not None:
                item = self._by_text[known]
                how = "exact" if normalise(known) == normalise(text) else "near"
                return Contaminated(id, what, item.suite, item.id, how)
        return None

    def match_meaning(self, ids: Sequence[str], what: str, texts: Sequence[str]) -> list[Contaminated | None]:
        """For each text the held-out item whose hidden state lies too near; all None without `embed`."""
        if self.embed is None or not texts or not self._by_text:
            return [None] * len(texts)
        import numpy as np

        items = list(self._by_text.values())
        if self._vectors is None:
            self._vectors = self.embed([item.prompt for item in items])
        centre = self._vectors.mean(axis=0)
        cosines = _unit(self.embed(texts) - centre) @ _unit(self._vectors - centre).T
        nearest = np.argmax(cosines, axis=1)
        return [
            Contaminated(id, what, items[place].suite, items[place].id, "embedding")
            if cosine[place] >= self.threshold
            else None
            for id, place, cosine in zip(ids, nearest, cosines, strict=True)
        ]


def _unit(vectors: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

"""The model-free half of generation: which rows go together, how a token is drawn, how the cache grows."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from loop.records import stable_hash

ROOM = 64
"""Slots by which a full cache grows at once."""
NUCLEUS_TRY = 512
"""How many of the likeliest tokens are ranked before the whole vocabulary is, which costs far more."""


class RoomyLayer(DynamicLayer):
    """A DynamicLayer that writes into spare room, where its parent copies the whole cache at every step."""

    _keys: torch.Tensor | None = None
    _values: torch.Tensor | None = None

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Appends [rows, heads, new, width] states and returns all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        # A first call that keeps its states as they came costs no copy; room is made when more follows.
        if start == 0:
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        if self._keys is None or self._values is None or self._keys.shape[-2] < end:
            self._keys, self._values = _with_room(self.keys, end), _with_room(self.values, end)
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def joined(self, parts: Sequence[tuple[Any, Sequence[int]]], count: int) -> "RoomyLayer":
        """A layer of `count` rows that holds each part's rows at the places named, with room to go on."""
        twin, width = copy.copy(self), max(layer.get_seq_length() for layer, _ in parts)
        # Zeros, for a masked slot must still hold a number.
        keys, values = (
            states.new_zeros(count, states.shape[1], width + ROOM, states.shape[3])
            for states in cast(tuple[torch.Tensor, torch.Tensor], (self.keys, self.values))
        )
        for layer, rows in parts:
            place = torch.tensor(rows, device=keys.device)
            keys[place, :, : layer.get_seq_length()] = layer.keys
            values[place, :, : layer.get_seq_length()] = layer.values
        twin._keys, twin._values = keys, values
        twin.keys, twin.values = keys[:, :, :width], values[:, :, :width]
        return twin

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps only these rows; a row may be named more than once."""
        super().batch_select_indices(indices)
        self._keys = self._values = None


def _with_room(states: Any, end: int) -> torch.Tensor:
    rows, heads, filled, width = states.shape
    roomy = states.new_empty(rows, heads, end + ROOM, width)
    roomy[:, :, :filled] = states
    return roomy


def new_cache(config: Any) -> Cache:
    """An empty cache for a model of `config`; layers other than plain ones stay the library's own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def fork(cache: Any, rows: torch.Tensor) -> Any:
    """A new cache of `rows` of this one, which stays as it is."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    twin.batch_select_indices(rows)
    return twin


def merge(caches: Sequence[Any], members: Sequence[Sequence[int]]) -> Any:
    """One cache of all rows: those of `caches[k]` become rows `members[k]`, right-padded with zeros."""
    if len(caches) == 1 and list(members[0]) == sorted(members[0]):
        return caches[0]
    # A part that has read nothing yet (prompts of one token) has no states to give.
    parts = [(cache, rows) for cache, rows in zip(caches, members, strict=True) if cache.get_seq_length()]
    if not parts:
        return caches[0]
    count = sum(map(len, members))
    whole = copy.copy(parts[0][0])
    whole.layers = [
        parts[0][0].layers[depth].joined([(cache.layers[depth], rows) for cache, rows in parts], count)
        for depth in range(len(whole.layers))
    ]
    return whole


def batches(
    lengths: Sequence[int], budget: int, copies: int = 1, padding: int | None = None
) -> list[list[int]]:
    """Indices in groups of like length, longest first, each within `budget` tokens (rows × longest).

    Each index stands for `copies` rows. One that is too large by itself is a group of its own. With `padding`
    a group also holds at most so many tokens that are none; 0 puts together only what is equally long.
    """
    groups: list[list[int]] = []
    padded = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[groups[-1][0]] if groups else 0
        more = longest - lengths[index]
        fits = bool(groups) and (len(groups[-1]) + 1) * copies * longest <= budget
        if fits and (padding is None or padded + more <= padding):
            groups[-1].append(index)
            padded += more
        else:
            groups.append([index])
            padded = 0
    return groups


def common_prefix(rows: Iterable[list[int]]) -> int:
    """How many tokens all rows begin with alike."""
    ordered = sorted(rows)
    first, last = ordered[0], ordered[-1]
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )


def uniforms(seed: int, text: str, sample: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) of this sample of this prompt alone; a longer draw begins with a shorter."""
    return np.random.default_rng(stable_hash(seed, text, sample)).random(count)


def choose(logits: torch.Tensor, temperature: float, top_p: float, draws: torch.Tensor) -> torch.Tensor:
    """One token for each row of `logits` [rows, vocabulary], by inverting the distribution at `draws` [rows].

    Temperature 0 takes the likeliest. `top_p` is nucleus sampling (Holtzman et al. 2020); tokens that tie
    with the least likely one inside the nucleus stay in, so that no order of a sort shows in the result.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        probs = torch.where(probs >= _nucleus_floor(probs, top_p), probs, 0.0)
    # The sums run in double precision: over a large vocabulary single precision can pass by rare tokens.
    heights = probs.cumsum(-1, dtype=torch.float64)
    aims = draws.to(heights)[:, None] * heights[:, -1:]
    # `right` finds the first height above the aim, which always belongs to a token of non-zero probability.
    return torch.searchsorted(heights, aims, right=True).clamp_(max=logits.shape[-1] - 1)[:, 0]


def _nucleus_floor(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    top = probs.topk(min(NUCLEUS_TRY, probs.shape[-1]), -1).values
    floor = _floor(top, top_p)
    short = top.sum(-1) < top_p
    if short.any():
        floor[short] = _floor(probs[short].sort(-1, descending=True).values, top_p)
    return floor


def _floor(ranked: torch.Tensor, top_p: float) -> torch.Tensor:
    before = ranked.cumsum(-1) - ranked
    last = (before < top_p).sum(-1, keepdim=True) - 1
    return ranked.gather(-1, last.clamp_(min=0))

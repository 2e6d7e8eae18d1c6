"""The rows that DPO trains on: which pairs hold something to learn from, and in which order they come."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loop.engines.chat import neutralise, render, special_tokens
from loop.errors import DataError
from loop.records import Message, Pair, stable_hash


@dataclass(frozen=True)
class Rows:
    """The rows that DPO trains on, as the text that the policy reads, and what became of the others."""

    ids: list[str]
    rows: list[dict[str, str]]
    lengths: list[int]
    """Tokens of the longer side of each pair, prompt included, before truncation."""
    dropped: list[dict[str, str]]
    truncated: list[str]


def prepare_rows(pairs: Sequence[Pair], tokenizer: Any, max_length: int | None, where: str) -> Rows:
    """Turns pairs into rows of text and takes out those that hold nothing to learn from.

    Text, for TRL's conversational rows can't hold an answer that is begun in the prompt. TRL drops a row
    whose prompt fills `max_length` without a word: here it is named. Raises DataError for a prompt that ends
    with neither user nor assistant, for a chat template that doesn't end the answer, and where no row is
    left.
    """
    specials, end = special_tokens(tokenizer), _end_of_turn(tokenizer, where)
    kept = Rows([], [], [], [], [])
    for pair in pairs:
        last = pair.prompt[-1]["role"] if pair.prompt else "nothing"
        if last not in ("user", "assistant"):
            raise DataError(f"{where}, pair {pair.id}: the prompt must end with a user turn, not {last}")
        prompt = _prompt(tokenizer, pair.prompt)
        chosen, rejected = (
            neutralise(_storable(text), specials) + end for text in (pair.chosen, pair.rejected)
        )
        taken = len(_tokens(tokenizer, prompt))
        longest = max(len(_tokens(tokenizer, prompt + side)) for side in (chosen, rejected))
        if max_length is not None and taken >= max_length:
            reason = f"its prompt of {taken} tokens fills max_length {max_length}"
        elif chosen == rejected:
            reason = "chosen and rejected are the same"
        else:
            reason = ""
        if reason:
            kept.dropped.append({"id": pair.id, "reason": reason})
            continue
        if max_length is not None and longest > max_length:
            kept.truncated.append(pair.id)
        kept.ids.append(pair.id)
        kept.rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        kept.lengths.append(longest)
    if not kept.rows:
        first = f" ({kept.dropped[0]['reason']})" if kept.dropped else ""
        raise DataError(
            f"{where}: none of {len(pairs)} pairs can be trained on{first}; look at the pairs stage"
        )
    return kept


def _prompt(tokenizer: Any, turns: Sequence[Message]) -> str:
    """The text of a prompt, without the token at its beginning that the tokenizer writes by itself."""
    text = render(tokenizer, [{**turn, "content": _storable(turn["content"])} for turn in turns])
    begins = tokenizer.bos_token
    adds = bool(begins) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(begins) if adds else text


def _storable(text: str) -> str:
    """`text` as Arrow holds it, which is UTF-8 only: model text may hold half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def _end_of_turn(tokenizer: Any, where: str) -> str:
    """What the chat template writes after an answer, down to the token that ends it."""
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "ANSWER"}]
    end = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")[2]
    if end.count(tokenizer.eos_token) != 1:
        raise DataError(
            f"{where}: the chat template ends an answer with {end!r}, where {tokenizer.eos_token!r} belongs "
            "once; template and eos_token of the base must agree"
        )
    return end[: end.index(tokenizer.eos_token) + len(tokenizer.eos_token)]


class ByLength:
    """A sampler: micro-batches of pairs that are alike in length, in an order drawn for each epoch.

    `group_by_length` as transformers does it sorts fifty batches at a time, which with few pairs is the
    whole set from longest to shortest: what is learned last would depend on length. Here the micro-batches
    come shuffled, and the order depends on (seed, epoch) alone, so that a resumed run sees the same one.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(stable_hash("by length", self.seed, self.epoch))
        order = sorted(range(len(self)), key=lambda i: (self.lengths[i], rng.random()))
        full, rest = divmod(len(order), self.batch)
        # The loader cuts every `batch` rows, so the short batch comes last; which rows it holds is chance.
        cut = rng.randint(0, full) * self.batch
        short, order = order[cut : cut + rest], order[:cut] + order[cut + rest :]
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        rng.shuffle(batches)
        return iter([i for batch in [*batches, short] for i in batch])

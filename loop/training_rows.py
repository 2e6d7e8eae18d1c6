"""The rows that DPO trains on: which pairs hold something to learn from, and in which order they come."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loop.engines.chat import neutralise, special_tokens
from loop.errors import DataError
from loop.records import Message, Pair, stable_hash


@dataclass(frozen=True)
class Rows:
    """The conversational rows that DPO trains on, and what became of the others."""

    ids: list[str]
    rows: list[dict[str, list[Message]]]
    lengths: list[int]
    """Tokens of the longer side of each pair, prompt included, before truncation."""
    dropped: list[dict[str, str]]
    truncated: list[str]


def prepare_rows(pairs: Sequence[Pair], tokenizer: Any, max_length: int | None, where: str) -> Rows:
    """Turns pairs into conversational rows and takes out those that hold nothing to learn from.

    TRL drops a row whose prompt fills `max_length` without a word: here it is named. So is one whose answer
    is begun in the prompt, which TRL's conversational rows can't hold. Raises DataError for a prompt that
    ends with neither user nor assistant, for a chat template that doesn't end the answer, and where no row
    is left.
    """
    specials = special_tokens(tokenizer)
    kept = Rows([], [], [], [], [])
    for pair in pairs:
        last = pair.prompt[-1]["role"] if pair.prompt else "nothing"
        if last == "assistant":
            kept.dropped.append({"id": pair.id, "reason": "its answer is begun in the prompt"})
            continue
        if last != "user":
            raise DataError(f"{where}, pair {pair.id}: the prompt must end with a user turn, not {last}")
        row = _row(pair, specials)
        prompt = _tokens(tokenizer, row["prompt"], add_generation_prompt=True)
        sides = [_tokens(tokenizer, row["prompt"] + row[side]) for side in ("chosen", "rejected")]
        longest = max(map(len, sides))
        if max_length is not None and len(prompt) >= max_length:
            reason = f"its prompt of {len(prompt)} tokens fills max_length {max_length}"
        elif sides[0] == sides[1]:
            reason = "chosen and rejected are the same"
        else:
            reason = ""
        if reason:
            kept.dropped.append({"id": pair.id, "reason": reason})
            continue
        if not kept.rows:
            _check_end_of_turn(tokenizer, sides[0][len(prompt) :], where)
        if max_length is not None and longest > max_length:
            kept.truncated.append(pair.id)
        kept.ids.append(pair.id)
        kept.rows.append(row)
        kept.lengths.append(longest)
    if not kept.rows:
        first = f" ({kept.dropped[0]['reason']})" if kept.dropped else ""
        raise DataError(
            f"{where}: none of {len(pairs)} pairs can be trained on{first}; look at the pairs stage"
        )
    return kept


def _row(pair: Pair, specials: Sequence[str]) -> dict[str, list[Message]]:
    def turn(role: str, text: str) -> Message:
        # Arrow holds UTF-8 only, and model text may hold half a surrogate pair.
        return {"role": role, "content": neutralise(text.encode("utf-8", "replace").decode(), specials)}

    return {
        "prompt": [turn(message["role"], message["content"]) for message in pair.prompt],
        "chosen": [turn("assistant", pair.chosen)],
        "rejected": [turn("assistant", pair.rejected)],
    }


def _tokens(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    # The template writes its own special tokens: asking for them again would double the first.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _check_end_of_turn(tokenizer: Any, completion: Sequence[int], where: str) -> None:
    count = list(completion).count(tokenizer.eos_token_id)
    if count != 1:
        raise DataError(
            f"{where}: a templated answer holds {count} × {tokenizer.eos_token!r} where 1 belongs; "
            "the chat template and eos_token of the base must agree"
        )


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

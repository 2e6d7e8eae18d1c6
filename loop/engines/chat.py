"""Turns a chat into the text that a model reads: one place, so that training and answering see the same."""

from collections.abc import Sequence
from typing import Any

from loop.engines import Prompt
from loop.errors import DataError

ZERO_WIDTH_SPACE = "\u200b"
ROLES = ("system", "user", "assistant")
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "</s>")
"""Tokens that end an answer in the chat formats about, beside what the model's own config names."""


def neutralise(text: str, specials: Sequence[str]) -> str:
    """`text` with each of `specials` broken by a zero-width space: it reads the same and controls nothing.

    No text can then close its own chat turn or open another.
    """
    for special in specials:
        if special:
            text = text.replace(
                special, special[0] + ZERO_WIDTH_SPACE + special[1:] if len(special) > 1 else ""
            )
    return text


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The strings that `tokenizer` reads as control tokens."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def render(tokenizer: Any, prompt: Prompt) -> str:
    """The text of `prompt` under the tokenizer's chat template; raw text stays as its caller wrote it.

    After a user turn the assistant's turn is opened; an assistant turn at the end is left open, to be
    continued. Contents are neutralised. Raises DataError for an empty chat or an unknown role.
    """
    if isinstance(prompt, str):
        return prompt
    specials = special_tokens(tokenizer)
    for message in prompt:
        if message["role"] not in ROLES:
            raise DataError(f"chat role {message['role']!r} is unknown; use {', '.join(ROLES)}")
    turns = [{"role": turn["role"], "content": neutralise(turn["content"], specials)} for turn in prompt]
    # An answer with no words yet cannot be continued, only begun.
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()
    if not turns:
        raise DataError("a chat needs at least one turn with text in it")
    goes_on = turns[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
    )


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The ids of `prompt`: a template wrote its special tokens, raw text gets the usual."""
    ids = tokenizer(render(tokenizer, prompt), add_special_tokens=isinstance(prompt, str))["input_ids"]
    # An empty text still needs one token to predict from.
    begins = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return ids or [next(token for token in begins if token is not None)]


def end_ids(tokenizer: Any, named: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's own, those `named` by the model's config, known ENDS."""
    specials = special_tokens(tokenizer)
    ids = [
        tokenizer.eos_token_id,
        *(named if isinstance(named, Sequence) else [named]),
        *(tokenizer.convert_tokens_to_ids(end) for end in ENDS if end in specials),
    ]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))

"""Runs a local model with transformers: the engine that needs no server and, on a CPU, wastes no work."""

import gc
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loop.engines import Prompt, Sample, Sampling
from loop.engines.adapters import adapter_name
from loop.engines.chat import end_ids, render
from loop.engines.decoding import batches, choose, common_prefix, fork, merge, new_cache, uniforms
from loop.engines.noise import quieten
from loop.errors import AssetError, ConfigError

SHARED = 24
"""From this many tokens on, a beginning that a whole batch has in common is read once."""
COMPACT = 1 / 8
"""Finished rows leave the batch when they make up this share of it: copying the cache has its price."""
PADDING = {"cpu": 64, "gpu": 4096}
"""Tokens of padding that a pass of reading may carry: about what another pass would cost."""
SCORED = 1 << 26
"""Logits held at once while log-probabilities are read."""
ADAPTERS = 2
"""Adapters kept loaded: the policy's and the last promoted one's."""


@dataclass
class _Row:
    """One sample on its way: `draws` holds as many numbers as it may have tokens."""

    prompt: int
    sample: int
    draws: np.ndarray
    made: list[int] = field(default_factory=list[int])
    finish: str = ""


class TransformersEngine:
    """The Engine over the model folder `path` (safetensors, tokenizer with a chat template).

    `dtype` auto is bfloat16 where the hardware computes in it, else float32; `batch_tokens` bounds rows ×
    length of a batch. Raises AssetError for a folder without a model, ConfigError for an unknown dtype.
    """

    capabilities = frozenset({"generate", "logprobs", "hidden_states", "adapters"})

    def __init__(
        self,
        path: str,
        *,
        model: str = "",
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 16384,
        attention: str = "sdpa",
    ) -> None:
        if not (Path(path) / "config.json").is_file():
            raise AssetError(
                f"{path}: no model there (config.json is missing); name a folder saved as safetensors"
            )
        quieten()
        self.model = model or path
        self._device = torch.device(_device(device))
        self._batch_tokens = batch_tokens
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=_dtype(dtype, self._device), attn_implementation=attention, use_safetensors=True
        )
        self._lm: Any = loaded.to(self._device).eval()
        self._peft: Any = None
        self._adapters: list[str] = []
        text_config = self._lm.config.get_text_config()
        self._context: int = getattr(text_config, "max_position_embeddings", None) or 1 << 30
        self._scored: int = min(SCORED // text_config.vocab_size, batch_tokens)
        # Padding in the middle of a row is invisible to full attention only.
        kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
        plain = kinds == {"full_attention"}
        self._padding: int = PADDING["cpu" if self._device.type == "cpu" else "gpu"] if plain else 0
        self._apart: int | None = None if plain else 0
        self._ends = end_ids(self._tokenizer, self._lm.generation_config.eos_token_id)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[list[Sample]]:
        """`n` samples for each prompt, in order; `tokens` counts the end token too.

        A sample's text depends on its prompt, its number and the seed and, beyond rounding, not on what
        else is in the batch. A prompt that fills the context gets samples with an error.
        """
        texts = [render(self._tokenizer, prompt) for prompt in prompts]
        ids = [self._encode(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        room = [min(sampling.max_tokens, self._context - len(row)) for row in ids]
        samples: list[list[Sample]] = [[] for _ in prompts]
        fitting = [index for index in range(len(ids)) if room[index] > 0]
        for index in set(range(len(ids))) - set(fitting):
            error = f"prompt of {len(ids[index])} tokens leaves no room in a context of {self._context}"
            samples[index] = [Sample(None, "error", 0, error)] * n
        sizes = [len(ids[index]) + room[index] for index in fitting]
        with self._using(adapter), torch.inference_mode():
            for group in batches(sizes, self._batch_tokens, n, self._apart):
                members = [fitting[position] for position in group]
                rows = [
                    _Row(index, sample, uniforms(sampling.seed, texts[index], sample, room[index]))
                    for index in members
                    for sample in range(n)
                ]
                self._sample_group(members, rows, ids, sampling, max(sizes[position] for position in group))
                for row in rows:
                    samples[row.prompt].append(self._finished(row, sampling))
        return samples

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        adapter: str | None = None,
    ) -> list[list[float]]:
        """For each prompt the summed log-probability (nats) of each continuation's tokens.

        A prompt is read once for all its continuations; those that differ only in their last token too.
        NaN where prompt and continuation together are longer than the context.
        """
        heads = [self._encode(render(self._tokenizer, prompt), prompt) for prompt in prompts]
        tails = [[self._tokens(text) for text in texts] for texts in continuations]
        scores = [[math.nan] * len(texts) for texts in tails]
        stems: list[dict[tuple[int, ...], list[int]]] = [{} for _ in heads]
        for index, texts in enumerate(tails):
            for number, tail in enumerate(texts):
                if not tail:
                    scores[index][number] = 0.0
                elif len(heads[index]) + len(tail) <= self._context:
                    stems[index].setdefault(tuple(tail[:-1]), []).append(number)
        with self._using(adapter), torch.inference_mode():
            for score, asked in (
                (self._score_through, [index for index in range(len(heads)) if len(stems[index]) == 1]),
                (self._score_group, [index for index in range(len(heads)) if len(stems[index]) > 1]),
            ):
                for group in batches([len(heads[i]) for i in asked], self._batch_tokens, padding=self._apart):
                    score([asked[position] for position in group], heads, tails, stems, scores)
        return scores

    def hidden_states(self, texts: Sequence[Prompt], layer: int, adapter: str | None = None) -> np.ndarray:
        """Mean over a text's tokens of the state after layer `layer` (from 1): float32 [len(texts), width].

        The first token is left out, where there are others: attention drains into it, its state is a hundred
        times as long as the rest (25,000 against 200 in SmolLM2), and a mean with it tells a text's length.
        Later layers are not run. As in transformers, the last layer's states are the normalised ones. A
        text longer than the context is cut there. Raises ConfigError for a layer that the model lacks.
        """
        ids = [self._encode(render(self._tokenizer, text), text)[: self._context] for text in texts]
        means = np.zeros((len(ids), self._lm.config.get_text_config().hidden_size), dtype=np.float32)
        with self._using(adapter), torch.inference_mode(), self._first_layers(layer) as (decoder, seen):
            for group in batches([len(row) for row in ids], self._batch_tokens, padding=self._padding):
                rows = [ids[index] for index in group]
                last: Any = decoder(input_ids=self._padded(rows), use_cache=False).last_hidden_state
                states = seen.pop() if seen else last
                for row, index in enumerate(group):
                    length = len(ids[index])
                    means[index] = states[row, min(1, length - 1) : length].float().mean(0).cpu().numpy()
        return means

    def close(self) -> None:
        """Gives the memory back; the engine answers no more."""
        self._lm = self._peft = None
        self._adapters = []
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # Text and tokens

    def _tokens(self, text: str, *, special: bool = False) -> list[int]:
        return self._tokenizer(text, add_special_tokens=special)["input_ids"]

    def _encode(self, text: str, prompt: Prompt) -> list[int]:
        """The ids of a rendered prompt: a template wrote its special tokens, raw text gets the usual."""
        ids = self._tokens(text, special=isinstance(prompt, str))
        # An empty text still needs one token to predict from.
        return ids or [next(i for i in (self._tokenizer.bos_token_id, *self._ends, 0) if i is not None)]

    def _padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Ids [rows, longest], padded on the right, where causal attention never looks."""
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        return ids.to(self._device)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # Generation

    def _start(self, rows: Sequence[list[int]]) -> tuple[Any, int]:
        """A cache of what all `rows` begin with, read once, and how many tokens that is; 0 where too few."""
        start: Any = new_cache(self._lm.config)
        shared = common_prefix(rows) if len(rows) > 1 else 0
        if shared < SHARED:
            return start, 0
        self._lm(input_ids=self._padded([rows[0][:shared]]), past_key_values=start, logits_to_keep=1)
        return start, shared

    def _after(self, start: Any, rows: Sequence[list[int]], keep: Any) -> tuple[Any, Any]:
        """The cache and the logits at the places `keep` of `rows`, right-padded, each read after `start`."""
        cache = fork(start, torch.zeros(len(rows), dtype=torch.long, device=self._device))
        if not rows[0]:
            return cache, None
        read: Any = self._lm(input_ids=self._padded(rows), past_key_values=cache, logits_to_keep=keep)
        return cache, read.logits

    def _prefill(self, heads: Sequence[list[int]]) -> tuple[Any, torch.Tensor]:
        """The cache of `heads`, right-padded, and its mask [rows, slots]; a common start costs once."""
        start, shared = self._start(heads)
        rest = [head[shared:] for head in heads]
        groups = batches([len(tokens) for tokens in rest], self._batch_tokens, padding=self._padding)
        caches = [self._after(start, [rest[index] for index in group], 1)[0] for group in groups]
        cache = merge(caches, groups)
        lengths = torch.tensor([len(head) for head in heads], device=self._device)
        slots = torch.arange(max(map(len, heads)), device=self._device)
        return cache, (slots < lengths[:, None]).long()

    def _sample_group(
        self,
        members: Sequence[int],
        rows: Sequence[_Row],
        ids: Sequence[list[int]],
        sampling: Sampling,
        size: int,
    ) -> None:
        """Fills `rows`, the samples of the prompts `members`; a prompt is read once for all its samples."""
        cache, mask = self._prefill([ids[index][:-1] for index in members])
        place = {index: position for position, index in enumerate(members)}
        step = max(1, self._batch_tokens // size) if len(members) == 1 else len(rows)
        for start in range(0, len(rows), step):
            chunk = list(rows[start : start + step])
            if len(rows) == len(members):
                self._sample_rows(chunk, ids, cache, mask, sampling)
                continue
            which = torch.tensor([place[row.prompt] for row in chunk], device=self._device)
            self._sample_rows(chunk, ids, fork(cache, which), mask[which], sampling)

    def _sample_rows(
        self, rows: list[_Row], ids: Sequence[list[int]], cache: Any, mask: torch.Tensor, sampling: Sampling
    ) -> None:
        tokens = torch.tensor([ids[row.prompt][-1] for row in rows], device=self._device)
        positions = torch.tensor([len(ids[row.prompt]) - 1 for row in rows], device=self._device)
        for step in range(max(len(row.draws) for row in rows)):
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            logits: Any = self._lm(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=positions[:, None],
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            draws = torch.tensor(
                [0.0 if row.finish else row.draws[step] for row in rows], device=self._device
            )
            tokens = choose(logits, sampling.temperature, sampling.top_p, draws)
            positions = positions + 1
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if not row.finish:
                    self._take(row, token, sampling.stop)
            going = [number for number, row in enumerate(rows) if not row.finish]
            if not going:
                return
            if len(going) <= len(rows) * (1 - COMPACT):
                kept = torch.tensor(going, device=self._device)
                cache.batch_select_indices(kept)
                tokens, positions, mask = tokens[kept], positions[kept], mask[kept]
                rows = [rows[number] for number in going]

    def _take(self, row: _Row, token: int, stops: Sequence[str]) -> None:
        row.made.append(token)
        if token in self._ends or any(self._hits(row.made, stop) for stop in stops):
            row.finish = "stop"
        elif len(row.made) == len(row.draws):
            row.finish = "length"

    def _hits(self, made: Sequence[int], stop: str) -> bool:
        # A token holds at least one byte, so a stop that has just come about lies within so many tokens.
        return stop in self._decode(made[-len(stop.encode()) - 1 :]) and stop in self._decode(made)

    def _finished(self, row: _Row, sampling: Sampling) -> Sample:
        text = self._decode(row.made[:-1] if row.made[-1] in self._ends else row.made)
        cut = min((text.index(stop) for stop in sampling.stop if stop in text), default=len(text))
        return Sample(text[:cut], row.finish, len(row.made))

    # Log-probabilities

    def _score_through(
        self,
        members: Sequence[int],
        heads: Sequence[list[int]],
        tails: Sequence[Sequence[list[int]]],
        stems: Sequence[dict[tuple[int, ...], list[int]]],
        scores: list[list[float]],
    ) -> None:
        """As `_score_group`, where each prompt has one stem: both are read in one pass."""
        stem = {index: next(iter(stems[index])) for index in members}
        start, shared = self._start([heads[index][:-1] for index in members])
        rest = {index: [*heads[index][shared:], *stem[index]] for index in members}
        budget = self._scored if any(stem.values()) else self._batch_tokens
        for group in batches([len(rest[i]) for i in members], budget, padding=self._padding):
            rows = [members[position] for position in group]
            begins = {index: len(rest[index]) - len(stem[index]) - 1 for index in rows}
            places = sorted({at for index in rows for at in range(begins[index], len(rest[index]))})
            keep = torch.tensor(places, device=self._device)
            _, logits = self._after(start, [rest[index] for index in rows], keep)
            for row, index in enumerate(rows):
                first = places.index(begins[index])
                seen = logits[row, first : first + len(stem[index]) + 1]
                _note(seen, stems[index][stem[index]], tails[index], scores[index])

    def _score_group(
        self,
        members: Sequence[int],
        heads: Sequence[list[int]],
        tails: Sequence[Sequence[list[int]]],
        stems: Sequence[dict[tuple[int, ...], list[int]]],
        scores: list[list[float]],
    ) -> None:
        """Writes the `scores` of the prompts `members`.

        `stems` maps all but the last token of a continuation to the numbers of those that share it.
        """
        cache, mask = self._prefill([heads[index][:-1] for index in members])
        rows = [(place, index, stem) for place, index in enumerate(members) for stem in stems[index]]
        for chunk in batches([len(stem) + 1 for _, _, stem in rows], self._scored, padding=self._padding):
            asked = [rows[number] for number in chunk]
            which = torch.tensor([place for place, _, _ in asked], device=self._device)
            steps = self._padded([[heads[index][-1], *stem] for _, index, stem in asked])
            first = torch.tensor([len(heads[index]) - 1 for _, index, _ in asked], device=self._device)
            logits: Any = self._lm(
                input_ids=steps,
                attention_mask=torch.cat([mask[which], torch.ones_like(steps)], 1),
                position_ids=first[:, None] + torch.arange(steps.shape[1], device=self._device),
                past_key_values=fork(cache, which),
            ).logits
            for row, (_, index, stem) in enumerate(asked):
                _note(logits[row, : len(stem) + 1], stems[index][stem], tails[index], scores[index])

    # Layers and adapters

    @contextmanager
    def _first_layers(self, layer: int) -> Generator[tuple[Any, list[torch.Tensor]]]:
        """The decoder cut after `layer`, and where that layer's output lands (before the final norm)."""
        decoder: Any = self._lm.get_decoder()
        layers: Any = decoder.layers
        if not 1 <= layer <= len(layers):
            raise ConfigError(f"layer {layer}: {self.model} has layers 1 to {len(layers)}")
        seen: list[torch.Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        hook = layers[layer - 1].register_forward_hook(keep) if layer < len(layers) else None
        decoder.layers = layers[:layer]
        try:
            yield decoder, seen
        finally:
            decoder.layers = layers
            if hook is not None:
                hook.remove()

    @contextmanager
    def _using(self, adapter: str | None) -> Generator[None]:
        """The model with `adapter` on, or with none."""
        if adapter is not None:
            self._switch_to(Path(adapter))
        off = self._peft.disable_adapter() if adapter is None and self._peft is not None else nullcontext()
        with off:
            yield

    def _switch_to(self, folder: Path) -> None:
        name = adapter_name(folder)
        if name in self._adapters:
            self._adapters.remove(name)
        elif self._peft is None:
            self._peft = PeftModel.from_pretrained(
                self._lm, str(folder), adapter_name=name, autocast_adapter_dtype=False
            ).eval()
        else:
            if len(self._adapters) == ADAPTERS:
                self._peft.delete_adapter(self._adapters.pop(0))
            self._peft.load_adapter(str(folder), adapter_name=name, autocast_adapter_dtype=False)
        self._adapters.append(name)
        self._peft.set_adapter(name)
        self._peft.eval()


def _note(
    logits: torch.Tensor, numbers: Sequence[int], tails: Sequence[Sequence[int]], scores: list[float]
) -> None:
    """Writes the `scores` of the continuations `numbers`, whose tokens `logits` [tokens, vocabulary] tell."""
    known = torch.log_softmax(logits.float(), -1)
    for number in numbers:
        wanted = torch.tensor(tails[number], device=logits.device)
        scores[number] = known.gather(-1, wanted[:, None]).sum().item()


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"dtype {name!r} is unknown; use auto, {', '.join(known)}")
    return known[name]


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))

"""Asks a server that speaks OpenAI's protocol, vLLM's own first: for models that do not run in here."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loop.engines import Prompt, Sample, Sampling
from loop.engines.adapters import CANARY, adapter_name
from loop.engines.answers import Canary, Failed, read_canary, read_prompt_logprobs, read_sample, summed
from loop.engines.chat import ROLES, encode, neutralise
from loop.errors import AssetError, ConfigError, DataError
from loop.records import Message, stable_hash

if TYPE_CHECKING:
    import numpy as np

    from loop.engines.server import Server

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|eom_id|>", "<|python_tag|>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
)
NO_DEFAULTS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Without these vLLM takes them from the model's generation_config.json, and samples otherwise than asked."""
LEAST = {"concurrency": 1, "timeout_s": 0.001, "retries": 0, "backoff_s": 0, "max_answer_bytes": 1}


class OpenAIEngine:
    """The Engine over the model that `base_url` (ending in /v1) calls `served_model`.

    One request is one sample with a seed of its own. A request that fails for good is a sample with an
    error; a wrong key, address or model name ends the run. `path` is the local folder of the same model,
    whose tokenizer `logprobs` needs. `admin_urls` are the servers behind `base_url`, each of which must load
    an adapter; `special_tokens` are what the server's chat template is made of, and no text may contain;
    `extra_body` is sent with every request for text. Raises ConfigError for arguments that cannot work.
    """

    capabilities = frozenset({"generate", "logprobs", "adapters"})

    def __init__(
        self,
        path: str,
        *,
        base_url: str,
        served_model: str,
        model: str = "",
        api_key: str = "EMPTY",
        concurrency: int = 32,
        timeout_s: float = 120,
        retries: int = 5,
        backoff_s: float = 0.5,
        max_answer_bytes: int = 1 << 20,
        admin_urls: Sequence[str] = (),
        special_tokens: Sequence[str] = (*CHATML, *LLAMA),
        extra_body: Mapping[str, Any] = NO_DEFAULTS,
    ) -> None:
        self.model = model or served_model
        self._args = f"models.{self.model}.engine.args"
        self._path = path
        self._url = self._checked_url("base_url", base_url)
        self._served = served_model
        self._specials = tuple(special_tokens)
        self._extra = dict(extra_body)
        roots = [self._checked_url("admin_urls", url) for url in admin_urls] or [self._url]
        self._admin_urls = [url.removesuffix("/v1") for url in roots]
        self._adapters: set[str] = set()
        self._loading = Lock()
        self._server = self._connect(
            api_key.strip(),
            concurrency=concurrency,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            max_answer_bytes=max_answer_bytes,
        )

    def __repr__(self) -> str:
        return f"OpenAIEngine({self._served!r} at {self._url})"

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[list[Sample]]:
        """`n` samples for each prompt, in order; null with its reason where the server gave no usable answer.

        A sample draws from (seed, prompt, number), as far as the server keeps to its seed. At temperature 0
        a prompt is asked for once, and all its samples are that answer. Raises ConfigError where no request
        can succeed.
        """
        name = self._served_name(adapter)
        greedy = sampling.temperature == 0
        asked = [
            self._generation(prompt, sampling, number, name)
            for prompt in prompts
            for number in range(1 if greedy else n)
        ]
        samples = iter(self._server.together(self._sample(*request, sampling.stop) for request in asked))
        if greedy:
            return [[sample] * n for sample in samples]
        return [[next(samples) for _ in range(n)] for _ in prompts]

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        adapter: str | None = None,
    ) -> list[list[float]]:
        """For each prompt the summed log-probability (nats) of each continuation's tokens.

        Prompts are rendered and tokenized here, so that the server reads what the transformers engine reads.
        NaN where a request failed. Raises ConfigError for a server that has no `prompt_logprobs`, as vLLM's
        has, AssetError without a tokenizer.
        """
        name = self._served_name(adapter)
        pairs = [
            (encode(self._tokenizer, prompt), self._tokens(text))
            for prompt, texts in zip(prompts, continuations, strict=True)
            for text in texts
        ]
        scores = iter(self._server.together(self._score(head, tail, name) for head, tail in pairs))
        return [[next(scores) for _ in texts] for texts in continuations]

    def hidden_states(self, texts: Sequence[Prompt], layer: int, adapter: str | None = None) -> "np.ndarray":
        """Not offered: raises ConfigError."""
        raise ConfigError(
            f"models.{self.model}.engine: a server gives no hidden states; use loop.engines.transformers"
        )

    def close(self) -> None:
        """Closes the connections; the engine answers no more."""
        self._server.close()

    # Arguments

    def _checked_url(self, name: str, url: str) -> str:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ConfigError(f"{self._args}.{name}: holds a name or password; give a key as api_key instead")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError(f"{self._args}.{name}: {url!r} is no address like http://127.0.0.1:8000/v1")
        return url.rstrip("/")

    def _connect(self, key: str, **limits: Any) -> "Server":
        for name, value in limits.items():
            if not (isinstance(value, int | float) and value >= LEAST[name]):
                raise ConfigError(f"{self._args}.{name}: must be at least {LEAST[name]}, not {value!r}")
        if not key or not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"{self._args}.api_key: is empty or no header can hold it; set the variable that it names"
            )
        try:
            from loop.engines.server import Server
        except ImportError as error:
            raise ConfigError(
                f"models.{self.model}.engine: {error.name} is not installed; pip install alignloop[serve]"
            ) from None
        return Server(self._url, key, **limits)

    # Generation

    def _generation(
        self, prompt: Prompt, sampling: Sampling, number: int, name: str
    ) -> tuple[str, dict[str, Any]]:
        """Where to ask for a sample, and what."""
        body: dict[str, Any] = {
            "model": name,
            "n": 1,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": stable_hash(sampling.seed, prompt, number) % 2**31,
            **self._extra,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if isinstance(prompt, str):
            return "/completions", body | {"prompt": _sendable(prompt)}
        body["messages"] = turns = self._turns(prompt)
        if turns[-1]["role"] == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return "/chat/completions", body

    def _turns(self, prompt: Sequence[Message]) -> list[dict[str, str]]:
        """The turns with neutralised contents. Raises DataError as `render` does."""
        for turn in prompt:
            if turn["role"] not in ROLES:
                raise DataError(f"chat role {turn['role']!r} is unknown; use {', '.join(ROLES)}")
        turns = [
            {"role": turn["role"], "content": _sendable(neutralise(turn["content"], self._specials))}
            for turn in prompt
        ]
        # An answer with no words yet cannot be continued, only begun.
        if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
            turns.pop()
        if not turns:
            raise DataError("a chat needs at least one turn with text in it")
        return turns

    async def _sample(self, path: str, body: Mapping[str, Any], stops: Sequence[str]) -> Sample:
        try:
            return await self._server.ask(path, body, lambda text: read_sample(text, body["model"], stops))
        except Failed as failed:
            self._stop_if_hopeless(failed, body["model"])
            return Sample(None, "error", 0, failed.reason)

    def _stop_if_hopeless(self, failed: Failed, name: str) -> None:
        """Raises ConfigError for what every other request would meet as well."""
        if failed.status in (401, 403):
            raise ConfigError(
                f"{self._args}.api_key: {self._url} refuses the key (HTTP {failed.status}); "
                "name the variable that holds it: ${oc.env:NAME}, or, where the command names the address, "
                "set ALIGNLOOP_API_KEY"
            )
        if failed.status == 404:
            raise ConfigError(
                f"{self._args}.served_model: {self._url} has no {name!r} ({failed.reason}); its names are at "
                f"{self._url}/models, and base_url must end in /v1"
            )
        if failed.status not in (400, 422):
            return
        if unknown := [field for field in self._extra if field in failed.reason]:
            raise ConfigError(
                f"{self._args}.extra_body: {self._url} refuses {', '.join(unknown)} ({failed.reason}); "
                "give an extra_body without them"
            )
        if "continue_final_message" in failed.reason:
            raise ConfigError(
                f"models.{self.model}.engine: {self._url} cannot continue a begun answer ({failed.reason}); "
                "serve with vLLM, or use loop.engines.transformers"
            )

    # Log-probabilities

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._path)
        except (OSError, ValueError) as error:
            raise AssetError(
                f"{self._path}: no tokenizer there, which log-probabilities need "
                f"({' '.join(str(error).split())[:120]}); let models.{self.model}.weights be the model served"
            ) from None

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    async def _score(self, head: list[int], tail: list[int], name: str) -> float:
        if not tail:
            return 0.0
        ids = head + tail
        body: dict[str, Any] = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 0, "n": 1}
        body["prompt_logprobs"] = 0  # none but those of the prompt's own tokens
        try:
            known = await self._server.ask(
                "/completions", body, lambda text: read_prompt_logprobs(text, name)
            )
        except Failed as failed:
            self._stop_if_hopeless(failed, name)
            if "prompt_logprobs" in failed.reason:
                raise self._no_logprobs(failed.reason) from None
            return math.nan
        if known is None:
            raise self._no_logprobs("the answer has none")
        if len(known) != len(ids):
            raise self._no_logprobs(f"{len(known)} for the {len(ids)} tokens of the prompt")
        return summed(known[len(head) :], tail)

    def _no_logprobs(self, reason: str) -> ConfigError:
        return ConfigError(
            f"models.{self.model}.engine: {self._url} gives no prompt_logprobs ({reason}); "
            "serve with vLLM, or use loop.engines.transformers"
        )

    # Adapters

    def _served_name(self, adapter: str | None) -> str:
        """What the server calls the model with `adapter`, which it has loaded by then."""
        if adapter is None:
            return self._served
        folder = Path(adapter)
        name = adapter_name(folder)
        with self._loading:
            if name not in self._adapters:
                self._server.together(self._load(url, name, folder.resolve()) for url in self._admin_urls)
                self._check_canary(name, folder)
                self._adapters.add(name)
        return name

    async def _load(self, url: str, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            await self._server.ask(f"{url}/v1/load_lora_adapter", body, str)
        except Failed as failed:
            if "already been loaded" in failed.reason:
                return
            raise ConfigError(
                f"{self._args}.admin_urls: {url} does not load {folder} ({failed.reason}); vLLM needs "
                "--enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and that folder under the same path"
            ) from None

    def _check_canary(self, name: str, folder: Path) -> None:
        """Raises ConfigError unless the adapter moves an answer by more than asking twice does."""
        base, again, adapted = (
            self._server.together([self._canary(model)])[0] for model in (self._served, self._served, name)
        )
        if base.apart(adapted) <= base.apart(again):
            raise ConfigError(
                f"{self._args}: {folder} is loaded at {self._url} but changes nothing; "
                "train it further, or see whether the server applies adapters (--enable-lora)"
            )

    async def _canary(self, name: str) -> Canary:
        body: dict[str, Any] = {"model": name, "prompt": CANARY, "max_tokens": 16, "temperature": 0, "n": 1}
        body |= {"logprobs": 5, **self._extra}
        try:
            return await self._server.ask("/completions", body, lambda text: read_canary(text, name))
        except Failed as failed:
            self._stop_if_hopeless(failed, name)
            raise ConfigError(
                f"{self._args}: {self._url} does not answer as {name!r} ({failed.reason}); "
                "an adapter is used only after it has been tried"
            ) from None


def _sendable(text: str) -> str:
    """`text` with a question mark for half a surrogate pair, which models write and JSON cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")

"""Runs a local model with vLLM, in processes of its own: the engine for a GPU, and the same code on a CPU."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from loop.engines import Prompt, Sample, Sampling
from loop.engines.adapters import CANARY, adapter_name
from loop.engines.chat import encode, end_ids
from loop.engines.noise import quieten
from loop.errors import AlignloopError, AssetError, ConfigError
from loop.records import stable_hash

if TYPE_CHECKING:
    import numpy as np

SURROUNDINGS = {
    # It reports every start to its makers' server unless told not to.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
"""What vLLM is told through the environment, which it reads once, where the user says nothing else."""
CPU_CACHE_GIB = 1.0
"""Keys and values on a CPU where no size is given; vLLM itself would take nearly all memory there is."""
ADAPTERS = 2
"""Adapters kept loaded: the policy's and the last promoted one's."""
LEAVE_S = 20.0
"""Seconds that its processes have to end by themselves."""


class VLLMEngine:
    """The Engine over the model folder `path` (safetensors, tokenizer with a chat template).

    `max_length` bounds prompt and answer together (null: the model's context); `max_lora_rank` is the largest
    rank of an adapter (0: none is ever used, which is faster); `cache_gib` is the memory for keys and values
    (null: on a GPU what `gpu_memory_utilization` leaves, on a CPU one GiB); `options` go to `vllm.LLM` as
    they are. Raises AssetError for a folder without a model, ConfigError where vLLM is missing or refuses an
    argument.
    """

    capabilities = frozenset({"generate", "logprobs", "adapters"})

    def __init__(
        self,
        path: str,
        *,
        model: str = "",
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        max_length: int | None = None,
        max_lora_rank: int = 16,
        cache_gib: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not (Path(path) / "config.json").is_file():
            raise AssetError(
                f"{path}: no model there (config.json is missing); name a folder saved as safetensors"
            )
        self.model = model or path
        self._args = f"models.{self.model}.engine.args"
        vllm = self._vllm()
        quieten()
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        adapters = {
            "enable_lora": True,
            "max_lora_rank": max_lora_rank,
            "max_cpu_loras": ADAPTERS,
            # With an adapter on the head, prompt log-probabilities end vLLM 0.30 on a CPU.
            "lora_target_modules": _linear_layers(path),
        }
        arguments: dict[str, Any] = {
            "dtype": dtype,
            "tensor_parallel_size": tensor_parallel_size,
            "max_model_len": max_length,
            "kv_cache_memory_bytes": self._cache_bytes(cache_gib),
            "enable_prefix_caching": True,
            **(adapters if max_lora_rank else {}),
        }
        others = set(active_children())
        self._llm: Any = self._started(vllm, path, arguments | dict(options or {}))
        self._processes = _with_children(set(active_children()) - others)
        self._context: int = self._llm.llm_engine.model_config.max_model_len
        self._ends = list(end_ids(self._tokenizer))
        self._adapters: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"VLLMEngine({self.model!r})"

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1, adapter: str | None = None
    ) -> list[list[Sample]]:
        """`n` samples for each prompt, in order; `tokens` counts the end token too.

        A sample draws from (seed, prompt, number), with the seed that a server would be sent. At temperature
        0 a prompt is asked for once, and all its samples are that answer. A prompt that fills the context
        gets samples with an error.
        """
        heads = [encode(self._tokenizer, prompt) for prompt in prompts]
        greedy = sampling.temperature == 0
        asked = [
            (index, number)
            for index, head in enumerate(heads)
            if len(head) < self._context
            for number in range(1 if greedy else n)
        ]
        params = [
            self._params(
                max_tokens=min(sampling.max_tokens, self._context - len(heads[index])),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=stable_hash(sampling.seed, prompts[index], number) % 2**31,
                stop=list(sampling.stop) or None,
                stop_token_ids=self._ends,
            )
            for index, number in asked
        ]
        outputs = self._ask([heads[index] for index, _ in asked], params, self._lora(adapter))
        samples: list[list[Sample]] = [[] for _ in prompts]
        for (index, _), output in zip(asked, outputs, strict=True):
            samples[index] += [_sample(output.outputs[0])] * (n if greedy else 1)
        for index, head in enumerate(heads):
            if not samples[index]:
                error = f"prompt of {len(head)} tokens leaves no room in a context of {self._context}"
                samples[index] = [Sample(None, "error", 0, error)] * n
        return samples

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        adapter: str | None = None,
    ) -> list[list[float]]:
        """For each prompt the summed log-probability (nats) of each continuation's tokens.

        NaN where prompt and continuation together are longer than the context. A continuation of one token
        is asked for at the place where it would be drawn, and so uses the prefix cache; a longer one is read
        whole each time, as vLLM does with prompt log-probabilities.
        """
        pairs = [
            (encode(self._tokenizer, prompt), self._tokens(text))
            for prompt, texts in zip(prompts, continuations, strict=True)
            for text in texts
        ]
        scores = iter(self._scores(pairs, self._lora(adapter)))
        return [[next(scores) for _ in texts] for texts in continuations]

    def hidden_states(self, texts: Sequence[Prompt], layer: int, adapter: str | None = None) -> "np.ndarray":
        """Not offered: raises ConfigError."""
        raise ConfigError(
            f"models.{self.model}.engine: vLLM gives no hidden states; use loop.engines.transformers"
        )

    def close(self) -> None:
        """Ends vLLM's processes, which gives their memory back; the engine answers no more."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        # Training begins when this returns: until they are gone, their memory is not back.
        _, alive = psutil.wait_procs(self._processes, timeout=LEAVE_S)
        for process in alive:
            process.kill()

    # Starting

    def _vllm(self) -> Any:
        for name, value in SURROUNDINGS.items():
            os.environ.setdefault(name, value)
        try:
            return import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"models.{self.model}.engine: vLLM cannot be imported ({error}); "
                "make serve-env builds an environment that has it, .venv-vllm"
            ) from None

    def _cache_bytes(self, gib: float | None) -> int | None:
        if gib is not None and not gib > 0:
            raise ConfigError(f"{self._args}.cache_gib: must be more than 0, not {gib}")
        if gib is None and import_module("vllm.platforms").current_platform.is_cpu():
            gib = CPU_CACHE_GIB
        return None if gib is None else int(gib * 2**30)

    def _started(self, vllm: Any, path: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return vllm.LLM(path, **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{self._args}: vLLM does not start ({_first_line(error)}); see its messages above, or set "
                "VLLM_LOGGING_LEVEL=INFO for all of them"
            ) from None

    # Asking

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _params(self, **wanted: Any) -> Any:
        return import_module("vllm").SamplingParams(**wanted)

    def _ask(self, heads: Sequence[list[int]], params: Sequence[Any], lora: Any) -> list[Any]:
        """vLLM's outputs for `heads`, in their order. Raises AlignloopError where its processes died."""
        if not heads:
            return []
        prompts = [{"prompt_token_ids": head} for head in heads]
        try:
            return self._llm.generate(prompts, list(params), lora_request=lora, use_tqdm=False)
        except import_module("vllm.v1.engine.exceptions").EngineDeadError:
            raise AlignloopError(
                f"models.{self.model}.engine: vLLM's process died, its messages are above (out of memory?); "
                "the same command goes on from here"
            ) from None

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]], lora: Any) -> list[float]:
        """The log-probability of each tail after its head: 0 for an empty one, NaN where it has no room."""
        scores = [0.0 if not tail else math.nan for _, tail in pairs]
        asked = [
            index
            for index, (head, tail) in enumerate(pairs)
            if tail and len(head) + len(tail) <= self._context
        ]
        params = [
            self._params(
                max_tokens=1,
                temperature=0,
                detokenize=False,
                logprob_token_ids=pairs[index][1][-1:],
                prompt_logprobs=0 if len(pairs[index][1]) > 1 else None,
            )
            for index in asked
        ]
        outputs = self._ask([pairs[index][0] + pairs[index][1][:-1] for index in asked], params, lora)
        for index, output in zip(asked, outputs, strict=True):
            head, tail = pairs[index]
            known = [*(output.prompt_logprobs or [])[len(head) :], output.outputs[0].logprobs[0]]
            scores[index] = math.fsum(place[token].logprob for place, token in zip(known, tail, strict=True))
        return scores

    # Adapters

    def _lora(self, adapter: str | None) -> Any:
        """vLLM's request for `adapter`, tried once before it is believed; None for the bare model."""
        if adapter is None:
            return None
        folder = Path(adapter)
        # Named by place and content: under a name that it knows, vLLM keeps what it cached of the old one.
        name = adapter_name(folder)
        if name not in self._adapters:
            self._check_loads(folder)
            request = import_module("vllm.lora.request").LoRARequest(
                name, len(self._adapters) + 1, str(folder.resolve())
            )
            self._check_canary(request, folder)
            self._adapters[name] = request
        return self._adapters[name]

    def _check_loads(self, folder: Path) -> None:
        """Raises ConfigError for an adapter that vLLM cannot load: trying would end its process."""
        config = self._llm.llm_engine.vllm_config.lora_config
        if config is None:
            raise ConfigError(
                f"{self._args}.max_lora_rank: is 0, but {folder} is to be used; give its rank or more"
            )
        helper: Any = import_module("vllm.lora.peft_helper").PEFTHelper
        try:
            helper.from_local_dir(str(folder), self._context).validate_legal(config)
        except ValueError as error:
            raise ConfigError(
                f"{self._args}: vLLM cannot load {folder} ({_first_line(error)}); raise max_lora_rank "
                "for a larger rank, for the rest leave the option out of train.lora"
            ) from None

    def _check_canary(self, request: Any, folder: Path) -> None:
        """Raises ConfigError unless the adapter moves a likelihood by more than asking twice does."""
        ids = self._tokens(CANARY)
        base, again, adapted = (self._scores([(ids[:1], ids[1:])], lora)[0] for lora in (None, None, request))
        if abs(adapted - base) <= abs(again - base):
            raise ConfigError(f"{self._args}: {folder} is loaded but changes nothing; train it further")


def _sample(output: Any) -> Sample:
    if output.finish_reason not in ("stop", "length"):
        return Sample(None, "error", 0, f"the answer ended with finish_reason {output.finish_reason!r}")
    return Sample(output.text, output.finish_reason, len(output.token_ids))


def _with_children(processes: Iterable[BaseProcess]) -> list[psutil.Process]:
    roots = [psutil.Process(process.pid) for process in processes]
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def _linear_layers(path: str) -> list[str]:
    """The last names of the model's linear layers without the head: what PEFT calls all-linear."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        bare: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    head = bare.get_output_embeddings()
    named = bare.named_modules()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in named
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

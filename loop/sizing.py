"""Memory and time on GPUs by arithmetic, from a model's architecture and a data sheet: nothing here measures.

docs/cluster.md has the same arithmetic by hand, for one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from loop.config import Config, HardwareConfig, ModelConfig
from loop.engines.noise import quieten
from loop.errors import ConfigError

GB = 1e9
BF16 = 2  # bytes
# Weight, gradient and Adam's two moments of a trained parameter, all in float32 as PEFT keeps an adapter.
TRAINED = 16
# Bytes of activations for each token, layer and unit of width: Korthikanti et al. 2022 (arXiv:2205.05198),
# equation 2, without the scores that fused attention never writes down.
ACTIVATIONS = 34
# Context of the device, allocator's slack and NCCL's buffers: an allowance, not a measurement.
OVERHEAD_GB = 4.0
# vLLM's default share of a GPU's memory, in 0.30.
VLLM_SHARE = 0.92
# Prompt tokens that a request is taken to have: six examples, or a request with an answer and a rubric.
PROMPT_TOKENS = 256
# Sequences that an engine answers at once, where memory allows: vLLM's default on a GPU of this size is more.
CONCURRENT = 256
# A step of transformers' engine takes no less, however small the model: its kernels are started one by one
# from Python. An allowance, not a measurement.
TRANSFORMERS_STEP_S = 0.03


@dataclass(frozen=True)
class Shape:
    """What memory and time depend on: counts, and bytes of keys and values for each token of context."""

    parameters: int
    trained: int
    layers: int
    width: int
    kv_bytes: int

    @property
    def weights_gb(self) -> float:
        """GB of the weights in bf16."""
        return self.parameters * BF16 / GB


@dataclass(frozen=True)
class Need:
    """What one use of a model takes of one GPU: `parts` in GB, by what they hold."""

    use: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """GB of all parts."""
        return sum(self.parts.values())


def shape_of(architecture: Any, lora: Mapping[str, Any]) -> Shape:
    """Counts the parameters of a transformers config, and those that `lora` would train; loads no weights."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    quieten()
    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(architecture)
        parameters = base.num_parameters()
        config: Any = cast(Any, peft).LoraConfig(**{**lora, "task_type": "CAUSAL_LM"})
        model: Any = peft.get_peft_model(base, config, low_cpu_mem_usage=True)
    text = architecture.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=parameters,
        trained=sum(each.numel() for each in model.parameters() if each.requires_grad),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        kv_bytes=2 * text.num_hidden_layers * heads * size * BF16,
    )


def architecture_of(name: str, entry: ModelConfig) -> Any:
    """The transformers config of a model: of its folder, of the hub's cache, else what the config file says.

    None where none of them has it. Raises ConfigError for an architecture that transformers doesn't know.
    """
    from transformers import AutoConfig

    kind, _, rest = entry.weights.partition(":")
    try:
        if kind == "hf":
            from huggingface_hub import try_to_load_from_cache

            repo, _, revision = rest.partition("@")
            found = try_to_load_from_cache(repo, "config.json", revision=revision)
            if isinstance(found, str):
                return AutoConfig.from_pretrained(found)
        elif not entry.architecture:
            from loop.assets import model_dir

            return AutoConfig.from_pretrained(model_dir(entry.weights))
        if not entry.architecture:
            return None
        return AutoConfig.for_model(**entry.architecture)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ConfigError(
            f"models.{name}: its architecture is not known ({' '.join(str(error).split())})"
        ) from None


# --- memory -----------------------------------------------------------------------------------------------


def answering(entry: ModelConfig, shape: Shape, gpu: HardwareConfig) -> Need:
    """What an engine takes of a GPU: vLLM the share that it is given, transformers weights and a batch."""
    args = entry.engine.args
    shards = args.get("tensor_parallel_size", 1)
    if _is_vllm(entry):
        share = args.get("options", {}).get("gpu_memory_utilization", VLLM_SHARE)
        held = share * gpu.memory_gb - shape.weights_gb / shards - OVERHEAD_GB
        return Need("answer", {"weights": shape.weights_gb / shards, "cache": held, "overhead": OVERHEAD_GB})
    batch = args.get("batch_tokens", 0) * (shape.kv_bytes + ACTIVATIONS * shape.width) / GB
    return Need("answer", {"weights": shape.weights_gb, "batch": batch, "overhead": OVERHEAD_GB})


def training(config: Config, shape: Shape) -> Need:
    """What DPO with LoRA takes of each GPU: weights once (or a shard), the adapter's optimiser, activations.

    TRL's fused head never writes the logits down, so the vocabulary takes nothing.
    """
    dpo, sharded = config.train.dpo, config.train.accelerate.get("distributed_type") == "FSDP"
    shards = config.train.accelerate["num_processes"] if _launched(config) and sharded else 1
    # Both sides of each pair, as long as they may be.
    tokens = 2 * dpo.get("per_device_train_batch_size", 8) * (dpo.get("max_length") or 1024)
    recomputed = dpo.get("activation_checkpointing", dpo.get("gradient_checkpointing", False))
    # Recomputing keeps what enters each layer, and all of the one that is under way.
    kept = BF16 * shape.layers + ACTIVATIONS if recomputed else ACTIVATIONS * shape.layers
    return Need(
        "train",
        {
            "weights": shape.weights_gb / shards,
            "adapter": shape.trained * TRAINED / shards / GB,
            "activations": tokens * shape.width * kept / GB,
            "overhead": OVERHEAD_GB,
        },
    )


def room_for_tokens(need: Need, shape: Shape, shards: int = 1) -> int:
    """Tokens of context whose keys and values fit in the cache of an engine."""
    return max(int(need.parts.get("cache", 0.0) * GB * shards / shape.kv_bytes), 0)


# --- time -------------------------------------------------------------------------------------------------


def step_seconds(shape: Shape, gpu: HardwareConfig, at_once: int, context: int, shards: int = 1) -> float:
    """Seconds in which one engine writes a token each for `at_once` sequences of `context` tokens.

    A step reads all weights once and every sequence's keys and values; it takes as long as that, or as the
    arithmetic (2 operations a parameter and token), whichever is longer (Williams et al. 2009, the roofline).
    """
    read = (shape.parameters * BF16 + at_once * context * shape.kv_bytes) / shards
    return max(
        read / (gpu.bandwidth_gb_s * 1e9 * gpu.decoding),
        2 * shape.parameters * at_once / shards / (gpu.tflops * 1e12 * gpu.reading),
    )


def reading_rate(shape: Shape, gpu: HardwareConfig) -> float:
    """Prompt tokens a second of one GPU: 2 operations for each parameter and token."""
    return gpu.tflops * 1e12 * gpu.reading / (2 * shape.parameters)


def training_rate(shape: Shape, gpu: HardwareConfig, recomputed: bool = False) -> float:
    """Tokens a second of one GPU: policy forward (2 operations a parameter), backward (2: the base is frozen
    and needs no gradient of its own), reference forward (2), and another forward (2) where it is recomputed.
    """
    return gpu.tflops * 1e12 * gpu.training / ((8 if recomputed else 6) * shape.parameters)


def stage_seconds(
    config: Config, name: str, shapes: Mapping[str, Shape], stage: str, rows: int, tokens: int
) -> float | None:
    """Seconds of a stage whose model is `name`: `rows` requests, `tokens` new ones. None where it is unknown.

    The engine in this process has the GPUs that it is sharded over; servers have all GPUs.
    """
    if name not in shapes:
        return None
    shape, gpu, entry, dpo = shapes[name], config.hardware, config.models[name], config.train.dpo
    if stage in ("train", "sharpen"):
        processes = config.train.accelerate["num_processes"] if _launched(config) else 1
        recomputed = bool(dpo.get("activation_checkpointing", dpo.get("gradient_checkpointing", False)))
        seen = rows * dpo.get("num_train_epochs", 3) * 2 * (dpo.get("max_length") or 1024)
        return seen / (training_rate(shape, gpu, recomputed) * processes)
    shards = entry.engine.args.get("tensor_parallel_size", 1)
    engines = max(gpu.gpus // shards, 1) if is_remote(entry) else 1
    context = PROMPT_TOKENS + (tokens // rows if rows else 0)
    if transformers := entry.engine.target.startswith("loop.engines.transformers."):
        at_once = max(min(entry.engine.args.get("batch_tokens", 1) // context, CONCURRENT), 1)
    else:
        at_once = CONCURRENT
    step = max(
        step_seconds(shape, gpu, at_once, context, shards), TRANSFORMERS_STEP_S if transformers else 0.0
    )
    reading = rows * PROMPT_TOKENS / (reading_rate(shape, gpu) * shards * engines)
    return reading + tokens * step / (at_once * engines)


def is_remote(entry: ModelConfig) -> bool:
    """Whether the model is asked over HTTP."""
    return entry.engine.target.startswith("loop.engines.openai.")


def _is_vllm(entry: ModelConfig) -> bool:
    return entry.engine.target.startswith("loop.engines.vllm.")


def _launched(config: Config) -> bool:
    return config.train.launcher == "accelerate"

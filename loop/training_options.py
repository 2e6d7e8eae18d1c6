"""Checks what a config hands to TRL and PEFT, so that a bad key stops a run before a model is loaded."""

import contextlib
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from loop.errors import ConfigError

# fmt: off
LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)
# fmt: on
OURS = {
    "dpo": {
        "output_dir": "the run directory is",
        "seed": "the run's seed is",
        "push_to_hub": "`alignloop export` is the way out; nothing is",
        "load_best_model_at_end": "the gate chooses; no checkpoint is",
        "sync_ref_model": "the reference of an iteration is frozen; it is",
        "hub_token": "a token stands in HF_TOKEN alone and is not written down; it is not",
    },
    "lora": {"task_type": "CAUSAL_LM is", "inference_mode": "it is trained: the mode is"},
}
POSITIVE = {
    "dpo": ("beta", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
    "lora": ("r", "lora_alpha"),
}


def validate(dpo: Mapping[str, Any], lora: Mapping[str, Any], where: str = "train") -> None:
    """Checks keys and values of `train.dpo` and `train.lora`; loads no model.

    Raises ConfigError naming the key at fault and, for an unknown one, the nearest valid key.
    """
    import peft
    import trl

    DPOConfig, LoraConfig = cast(Any, trl).DPOConfig, cast(Any, peft).LoraConfig
    _check_keys(DPOConfig, dpo, f"{where}.dpo", OURS["dpo"])
    _check_keys(LoraConfig, lora, f"{where}.lora", OURS["lora"])
    losses: Any = dpo.get("loss_type", [])
    for loss in [losses] if isinstance(losses, str) else losses:
        if loss not in LOSS_TYPES:
            raise ConfigError(f"{where}.dpo.loss_type: no loss {loss!r}; {_nearest(loss, LOSS_TYPES)}")
    for part, given in (("dpo", dpo), ("lora", lora)):
        for key in POSITIVE[part]:
            if given.get(key, 1) <= 0:
                raise ConfigError(f"{where}.{part}.{key}: must be above 0, not {given[key]!r}")
    check_trackers(dpo.get("report_to"), f"{where}.dpo.report_to")
    forced = {"output_dir": os.devnull, "use_cpu": True, "bf16": False, "report_to": "none"}
    if "gradient_checkpointing" not in dpo:
        forced["activation_checkpointing"] = False
    _check_values(lambda given: DPOConfig(**{**forced, **given}), dpo, f"{where}.dpo")
    _check_values(lambda given: LoraConfig(**given), lora, f"{where}.lora")


def check_trackers(report_to: str | Sequence[str] | None, where: str) -> None:
    """Raises ConfigError for a tracker that transformers doesn't know, or whose package is missing."""
    from transformers.integrations import integration_utils

    known: Any = cast(Any, integration_utils).INTEGRATION_TO_CALLBACK
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name in ("none", "all"):
            continue
        if name not in known:
            raise ConfigError(f"{where}: no tracker {name!r}; {_nearest(name, (*known, 'all', 'none'))}")
        try:
            known[name]()  # which looks for its package, and logs nothing yet
        except (RuntimeError, ImportError):
            package = "'alignloop[track]'" if name in ("tensorboard", "trackio") else name
            raise ConfigError(f"{where}: {name} is not installed; pip install {package}") from None


def validate_launch(accelerate: Mapping[str, Any], where: str = "train.accelerate") -> None:
    """Checks keys and values of what `accelerate launch` is to go by. Raises ConfigError naming the key."""
    from accelerate.commands.config.config_args import ClusterConfig

    defaults = {"distributed_type": "NO", "mixed_precision": "no", "use_cpu": False, "debug": False}
    defaults["compute_environment"] = "LOCAL_MACHINE"
    _check_keys(ClusterConfig, accelerate, where, {})
    kind = cast(Any, ClusterConfig)
    _check_values(lambda given: kind(**{**defaults, **given}), accelerate, where)
    if missing := [key for key in defaults if key not in accelerate]:
        raise ConfigError(f"{where}.{missing[0]}: must be given; @accelerate/multi_gpu.yaml has all of them")


def _check_keys(kind: Any, given: Mapping[str, Any], where: str, ours: Mapping[str, str]) -> None:
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.init and field.name not in ours]
    for key, value in given.items():
        if key in ours:
            raise ConfigError(f"{where}.{key}: {ours[key]} set by alignloop; take this key out")
        if key not in known:
            raise ConfigError(f"{where}.{key}: {kind.__name__} has no such key; {_nearest(key, known)}")
        if not _fits(hints[key], value):
            wanted = str(getattr(hints[key], "__name__", hints[key])).replace("typing.", "")
            raise ConfigError(f"{where}.{key}: {value!r} is a {type(value).__name__}; {wanted} is wanted")


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.0)
    return f"the nearest is {close[0]!r}"


def _fits(hint: Any, value: Any) -> bool:
    """Whether `value` is what the annotation says; a kind that isn't plain data is left to the library."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(each, value) for each in inner)
    if origin is typing.Literal:
        return value in inner
    if hint == list[str]:
        # TRL takes one loss by its bare name.
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(x, str) for x in value))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    plain = origin or hint
    if plain in (bool, str, list, dict, type(None)):
        return isinstance(value, plain)
    return plain not in (tuple, set)


def _check_values(build: Callable[[Mapping[str, Any]], Any], given: Mapping[str, Any], where: str) -> None:
    """Lets the library judge the values together, and names the key without which it is content."""
    try:
        build(given)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split())
        for key in given:
            with contextlib.suppress(ValueError, TypeError, NotImplementedError, ImportError):
                build({k: v for k, v in given.items() if k != key})
                raise ConfigError(f"{where}.{key}: {reason}") from None
        raise ConfigError(f"{where}: {reason}") from None

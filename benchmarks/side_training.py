"""The trainings of side_by_side.py: TRL's online DPO with a run's critic as reward, and SFT on its labels.

Both are TRL's own trainers on a fresh LoRA over the run's base; what is ours here is the rows that they read,
the reward, and what training.json says of them.
"""

import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from loop import stages
from loop.config import Config, as_object, build, load_config
from loop.engines.chat import end_ids
from loop.errors import AlignloopError, ConfigError, DataError
from loop.interfaces import Context, Critic, Usage
from loop.records import Attack, Completion, Message, Pair, Seed, new_id, read_jsonl
from loop.rundir import RunDir, replacing, same_as_before, write_json
from loop.session import Engines, Session
from loop.training import check_canary, completion_tokens_only
from loop.training_rows import Rows, prepare_rows
from roles.writing import WritingCritic

ONLINE, SFT = "online-dpo", "sft"
SUITES = ("safety", "overrefusal")
"""What a run's policies are compared by."""
CARRIED = (
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
)
"""What of `train.dpo` means the same to every trainer of TRL."""
NEEDED = (
    *("pairs.jsonl", "attacks.jsonl", "critic/critic.json", "critic/labels.jsonl"),
    *("adapter/training.json", "gate.json"),
)
"""What of iteration 1 is read, and the file that says that it is finished."""
# As a run trains: glibc would give the memory of large tensors back after each use, and fault it in again.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


@dataclass(frozen=True)
class Job:
    """One training: all that a rerun must share with the folder that it takes up. Paths as given."""

    name: str
    run: str
    pairs: str
    """SHA-256 of the pairs of iteration 1."""
    steps: int
    rows: int | None
    """At most so many prompts or answers; None: all."""
    learning_rate: float
    seed: int


def open_run(root: Path) -> Session:
    """The run at `root` with its critic, to read from: nothing is written.

    Raises ConfigError or DataError for one that can't be compared with, before anything is trained.
    """
    run = RunDir(root)
    if not run.path("config.yaml").is_file():
        raise ConfigError(f"{root}: no run there; name the folder of one, such as runs/cpu")
    for needed in NEEDED:
        if not (run.iteration(1) / needed).is_file():
            raise DataError(
                f"{root}: iteration 1 has no {needed}; it takes a finished one, whose critic was fitted "
                "on labels"
            )
    config = as_object(load_config([str(run.path("config.yaml"))]))
    if lacking := set(SUITES) - set(config.heldout.suites):
        raise ConfigError(f"{root}: heldout.suites lacks {', '.join(sorted(lacking))}, which is compared")
    if config.system != as_object(load_config(["demo.yaml"])).system:
        raise ConfigError(f"{root}: has a system of its own, which `alignloop eval` puts to no adapter")
    roles = {"critic": build(config.roles.critic, "roles.critic")}
    return Session(config, run, roles=roles, seeds={}, engines=Engines(config.models))


# ---- rows -----------------------------------------------------------------------------------------------


def online_rows(pairs: Sequence[Pair], tokenizer: Any, max_length: int | None, where: str) -> Rows:
    """The pairs' prompts as the run's training read them, each with its attack.

    What that training dropped is dropped here.
    """
    kept = prepare_rows(pairs, tokenizer, max_length, where)
    attacks = {pair.id: pair.attack_id for pair in pairs}
    # Online DPO puts no token of the tokenizer's own before a text; the run's training does.
    begins = tokenizer.decode(tokenizer("")["input_ids"])
    rows = [
        {"prompt": begins + row["prompt"], "attack": attacks[name]}
        for name, row in zip(kept.ids, kept.rows, strict=True)
    ]
    return Rows(kept.ids, rows, kept.lengths, kept.dropped, [])


def sft_rows(seeds: Sequence[Seed], system: str, tokenizer: Any, max_length: int | None, where: str) -> Rows:
    """Objective → answer of those `seeds` whose answer people say did not meet it. DataError without one."""
    good = [seed for seed in seeds if seed.response and seed.label is not None and seed.label < 0.5]
    if not good:
        raise DataError(f"{where}: no answer that did not meet its objective, so nothing to imitate")
    pairs = [
        Pair(
            id=seed.id,
            iteration=1,
            attack_id=seed.id,
            domain=seed.domain,
            prompt=_chat(system, seed.prompt),
            chosen=seed.response or "",
            rejected="",
            chosen_id=seed.id,
            rejected_id="",
            margin=1.0,
        )
        for seed in good
    ]
    kept = prepare_rows(pairs, tokenizer, max_length, where)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in kept.rows]
    return Rows(kept.ids, rows, kept.lengths, kept.dropped, kept.truncated)


def _chat(system: str, query: str) -> list[Message]:
    return [Message(role="system", content=system), Message(role="user", content=query)]


# ---- reward ---------------------------------------------------------------------------------------------


@dataclass
class Reward:
    """The critic's quality of each answer, for TRL, and counts of what it was asked.

    TRL asks for both answers to each prompt at once: the first to all prompts, then the second. `ends` are
    the ids that end an answer or pad it.
    """

    critic: Critic
    attacks: Mapping[str, Attack]
    ctx: Context
    tokenizer: Any
    ends: frozenset[int]
    tokens: int = 0
    nulls: int = 0
    ties: int = 0
    seconds: float = 0.0

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        attack: Sequence[str],
        **_: Any,
    ) -> list[float | None]:
        """One quality for each of `completions`; None where the critic has no verdict."""
        started = time.monotonic()
        asked = [self.attacks[name] for name in attack]
        lengths = [answer_length(ids, self.ends) for ids in completion_ids]
        answers = [
            Completion(
                id=new_id("completion", one.id, "online", place),
                attack_id=one.id,
                sample=place,
                origin="policy",
                text=(one.opener or "") + text,  # as the run's learner hands it on
                finish_reason="stop",
                tokens=length,
                model=self.ctx.model,
            )
            for place, (one, text, length) in enumerate(zip(asked, completions, lengths, strict=True))
        ]
        found = [critique.quality for critique in self.critic.critique(asked, answers, self.ctx)]
        first, second = found[: len(found) // 2], found[len(found) // 2 :]
        read = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        self.tokens += sum(lengths) + sum(map(len, read))
        self.nulls += sum(quality is None for quality in found)
        self.ties += sum((one or 0.0) == (other or 0.0) for one, other in zip(first, second, strict=True))
        self.seconds += time.monotonic() - started
        return found


def answer_length(ids: Sequence[int], ends: frozenset[int]) -> int:
    """Tokens of an answer, the one that ends it included."""
    return next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))


def without_words(critic: Critic) -> Critic:
    """The same verdicts without the written critiques, which nothing here reads and which cost most."""
    return replace(critic, write_below=0.0) if isinstance(critic, WritingCritic) else critic


# ---- training -------------------------------------------------------------------------------------------


def train(job: Job, out: Path) -> None:
    """Makes `out`/adapter, then `out`/training.json.

    Raises ConfigError for what TRL refuses, AlignloopError for a loss that isn't finite and for an adapter
    that changes nothing.
    """
    from loop.engines.noise import quieten

    quieten()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    begun = time.monotonic()
    session = open_run(Path(job.run))
    make = {ONLINE: online_trainer, SFT: sft_trainer}[job.name]
    trainer, rows, told = make(session, job, out)
    started = time.monotonic()
    with completion_tokens_only(trainer.args.device.type):
        result = trainer.train()
    seconds = time.monotonic() - started
    if not math.isfinite(result.training_loss):
        raise AlignloopError(f"{out}: the loss is {result.training_loss}; give a lower --learning-rate")
    check_canary(trainer.model, trainer.processing_class, _chat(session.config.system, "Good morning."))
    with replacing(out / "adapter") as beside:
        trainer.model.save_pretrained(str(beside), selected_adapters=["default"])
    steps = [row for row in trainer.state.log_history if "loss" in row]
    args = trainer.args
    shutil.rmtree(args.output_dir, ignore_errors=True)
    write_json(
        out / "training.json",
        {
            **{key: value for key, value in asdict(job).items() if key not in ("rows", "steps")},
            "steps": trainer.state.global_step,
            "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps,
            "rows_trained": len(rows.rows),
            "rows_dropped": rows.dropped,
            "rows_truncated": rows.truncated,
            "tokens": int(steps[-1].get("num_tokens", 0)),
            "seconds": round(seconds, 2),
            "process_seconds": round(time.monotonic() - begun, 2),
            "peak_mib": _peak_mib(),
            **told(),
            "log": steps,
        },
    )


def _peak_mib() -> int:
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


Built = tuple[Any, Rows, Callable[[], dict[str, Any]]]
"""A trainer, the rows it has, and what to ask after training for further lines of training.json."""


def online_trainer(session: Session, job: Job, out: Path) -> Built:
    """TRL's OnlineDPOTrainer with the run's critic as reward."""
    from transformers import AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    config, folder = session.config, session.run.iteration(1)
    base = str(session.weights(config.policy))
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    pairs = list(read_jsonl(folder / "pairs.jsonl", Pair))
    rows = _first(online_rows(pairs, tokenizer, _max_length(config), str(folder / "pairs.jsonl")), job.rows)
    policy = session.policy(0)
    critic = without_words(stages.fit_critic(session, 1, policy))
    reward = Reward(
        critic=critic,
        attacks={attack.id: attack for attack in read_jsonl(folder / "attacks.jsonl", Attack)},
        ctx=session.context("critic", policy, 1, "critique", Usage()),
        tokenizer=tokenizer,
        ends=frozenset({*end_ids(tokenizer), tokenizer.pad_token_id}),
    )
    sampling = config.roles.learner.sampling
    args = _arguments(
        OnlineDPOConfig,
        config,
        job,
        out,
        beta=config.train.dpo.get("beta", 0.1),
        max_new_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )
    trainer = _trainer(OnlineDPOTrainer, base, config, rows, tokenizer, args, reward_funcs=reward)

    def told() -> dict[str, Any]:
        return {
            "tokens": reward.tokens,
            "reward": {"nulls": reward.nulls, "ties": reward.ties, "seconds": round(reward.seconds, 2)},
        }

    return trainer, rows, told


def sft_trainer(session: Session, job: Job, out: Path) -> Built:
    """TRL's SFTTrainer on the labelled answers that did not meet their objective."""
    import trl
    from transformers import AutoTokenizer

    config = session.config
    base = str(session.weights(config.policy))
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    labels = session.run.iteration(1) / "critic" / "labels.jsonl"
    seeds = list(read_jsonl(labels, Seed))
    rows = _first(sft_rows(seeds, config.system, tokenizer, _max_length(config), str(labels)), job.rows)
    args = _arguments(cast(Any, trl).SFTConfig, config, job, out)
    return _trainer(cast(Any, trl).SFTTrainer, base, config, rows, tokenizer, args), rows, dict


def _max_length(config: Config) -> int | None:
    import trl

    return config.train.dpo.get("max_length", cast(Any, trl).DPOConfig.max_length)


def _first(rows: Rows, count: int | None) -> Rows:
    return Rows(rows.ids[:count], rows.rows[:count], rows.lengths[:count], rows.dropped, rows.truncated)


def _arguments(kind: Any, config: Config, job: Job, out: Path, **further: Any) -> Any:
    """The trainer's config with what the machine forces, what the run's training has, and the job's own."""
    import torch

    cuda = torch.cuda.is_available()
    given: dict[str, Any] = {
        "use_cpu": not cuda,
        "bf16": cuda and torch.cuda.is_bf16_supported(),
        "activation_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": not sys.stderr.isatty(),
        "output_dir": str(out / "work"),
        **{key: config.train.dpo[key] for key in CARRIED if key in config.train.dpo},
        "max_length": _max_length(config),
        "learning_rate": job.learning_rate,
        "max_steps": job.steps,
        "seed": job.seed,
    }
    try:
        return kind(**given, **further)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{job.name}: {' '.join(str(error).split())}") from None


def _trainer(
    kind: Any, base: str, config: Config, rows: Rows, tokenizer: Any, args: Any, **further: Any
) -> Any:
    """The trainer on a fresh LoRA over the base in bf16, as the run's iteration 1 trains."""
    import peft
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, PrinterCallback

    if not sys.stderr.isatty():
        disable_progress_bars()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with completion_tokens_only(args.device.type):
        trainer = kind(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows.rows),
            processing_class=tokenizer,
            peft_config=cast(Any, peft).LoraConfig(**{**config.train.lora, "task_type": "CAUSAL_LM"}),
            **further,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trained(job: Job, out: Path) -> None:
    """Trains `job` into `out` in a process of its own, unless that is done. AlignloopError where it fails."""
    same_as_before(out / "job.json", asdict(job))
    if (out / "training.json").exists():
        return
    print(f"{job.name}: {job.steps} steps", flush=True)
    os.environ.update({**KEEP_MEMORY, **os.environ})
    # A daemon ends with this process, however it is told to end.
    process = get_context("spawn").Process(target=_alone, args=(job, out), daemon=True)
    process.start()
    process.join()
    if process.exitcode:
        raise AlignloopError(
            f"{job.name}: training ended with exit code {process.exitcode}; its words are above"
        )


def _alone(job: Job, out: Path) -> None:
    try:
        train(job, out)
    except AlignloopError as error:
        sys.exit(str(error))

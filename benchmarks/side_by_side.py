"""Two usual ways to align a model, on the terms of a run's first iteration, beside what the run made of it.

    python -m benchmarks.side_by_side runs/cpu [--split test] [--out runs/side] [--only online-dpo,sft]

Both start from the run's base model and train a LoRA as `train.lora` has it, with the learning rate (unless
--learning-rate says otherwise), batch, schedule and max_length of `train.dpo`, for as many steps as the
run's iteration 1:

online-dpo  TRL's experimental online DPO (Guo et al. 2024). Its prompts are those of the pairs that the run
            trained on; the policy as it then is answers each twice, as long and as warm as the run's
            learner, and the better answer by the quality that the run's fitted critic gives is chosen. As
            many pairs as the run, each a fresh one. TRL counts an answer without a verdict as 0 and trains
            on a pair that ties, the first answer chosen; both are counted. It has no SFT term beside the
            sigmoid loss, and on a CPU adds up log-probabilities in the bf16 of the weights.
sft         TRL's SFTTrainer on the run's human labels: of the answers that the critic was fitted on, those
            that a person says did not meet the objective. People labelled these answers; models wrote them.
            The benign seeds have no answer that anybody labelled, so nothing here shows how to help.

Training is timed in a process of its own. "In all" adds loading, and for online DPO what it takes over from
the run: fitting the critic and writing the attacks. That pairs were chosen, which takes answers, critiques
and revisions, is given to it. The run's own time is all stages up to that policy, held-out evals aside.

Each NAME has a folder under --out: adapter/, training.json, eval/ as `alignloop eval` writes it. What is done
isn't done again. side.json has the figures of the base, the run's first and last policy and both adapters,
and their paired differences, item by item.
"""

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.measures import SIDE
from loop import stages
from loop.config import Config, as_object, build, load_config
from loop.engines.chat import end_ids
from loop.errors import AlignloopError, ConfigError, DataError
from loop.heldout.comparison import Comparison, compare, load_side
from loop.heldout.script import Request, evaluate_model
from loop.interfaces import Context, Critic, Usage
from loop.records import Attack, Completion, Message, Pair, Seed, new_id, read_jsonl, stable_hash
from loop.report.terminal import console, plain
from loop.rundir import RunDir, named_iteration, read_json, replacing, same_as_before, write_json
from loop.session import Engines, Session
from loop.training import check_canary, completion_tokens_only
from loop.training_rows import Rows, prepare_rows
from roles.writing import WritingCritic

ONLINE, SFT = "online-dpo", "sft"
SUITES = ("safety", "overrefusal")
ANY = 0.1  # compare() wants a margin to judge by; no judgement of it is shown
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
TAKEN_OVER = {ONLINE: ("fit critic", "attack"), SFT: ()}
"""The stages of iteration 1 that each could not do without."""
NOT_MAKING = ("evaluate", "gate")
"""Stages that measure a policy and don't make it."""
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


# ---- the run's side -------------------------------------------------------------------------------------


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


def training_of(run: RunDir, number: int) -> dict[str, Any]:
    """training.json of the run's iteration."""
    return read_json(run.iteration(number) / "adapter" / "training.json")


def stage_seconds(run: RunDir, wanted: Callable[[int, str], bool]) -> float:
    """Seconds that the stages took of which `wanted(iteration, name)` is true; a resumed stage counts whole.

    Raises DataError where no time was kept.
    """
    path = run.path("timings.jsonl")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), so the run's time isn't known") from None
    rows = [cast(dict[str, Any], _json(line, path)) for line in lines]
    return sum(row["seconds"] for row in rows if wanted(row["iteration"], row["stage"]))


def _json(line: bytes, path: Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: a row isn't JSON ({error}); mend or delete it") from None


def job_of(session: Session, name: str, options: argparse.Namespace) -> Job:
    """The training of `name` on the terms of the run's iteration 1, or on those of the command line."""
    config, folder = session.config, session.run.iteration(1)
    rate = options.learning_rate or config.train.dpo.get("learning_rate")
    if not rate:
        raise ConfigError(f"{session.run.root}: train.dpo has no learning_rate; give --learning-rate")
    return Job(
        name=name,
        run=str(session.run.root),
        pairs=hashlib.sha256((folder / "pairs.jsonl").read_bytes()).hexdigest(),
        steps=options.steps or training_of(session.run, 1)["final"]["step"],
        rows=options.rows,
        learning_rate=float(rate),
        seed=stable_hash(config.seed, 1, name) % 2**31,
    )


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


def trained(session: Session, name: str, options: argparse.Namespace) -> None:
    """Trains `name` in a process of its own, unless that is done. Raises AlignloopError where it fails."""
    out: Path = options.out / name
    job = job_of(session, name, options)
    same_as_before(out / "job.json", asdict(job))
    if (out / "training.json").exists():
        return
    print(f"{name}: {job.steps} steps", flush=True)
    os.environ.update({**KEEP_MEMORY, **os.environ})
    # A daemon ends with this process, however it is told to end.
    process = get_context("spawn").Process(target=_alone, args=(job, out), daemon=True)
    process.start()
    process.join()
    if process.exitcode:
        raise AlignloopError(f"{name}: training ended with exit code {process.exitcode}; its words are above")


def _alone(job: Job, out: Path) -> None:
    try:
        train(job, out)
    except AlignloopError as error:
        sys.exit(str(error))


# ---- figures --------------------------------------------------------------------------------------------


def eval_limit(limits: Mapping[str, int], suites: Sequence[str]) -> int | None:
    """The run's limit where all `suites` have the same; else none, for only shared items are compared."""
    found = {limits.get(suite) for suite in suites}
    return found.pop() if len(found) == 1 else None


def figures_of(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of results.json the SIDE metrics over all items, each by the judge that decides: the first."""
    found: dict[str, dict[str, Any]] = {}
    for row in results:
        metric = f"{row['suite']}.{row['metric']}"
        if metric in SIDE and row["category"] == "all" and metric not in found:
            found[metric] = {key: row[key] for key in ("value", "ci_low", "ci_high", "n", "coverage")}
    return found


def differences_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The SIDE metrics' paired differences, after less before, with their intervals."""
    return {
        metric: {
            key: getattr(change, key)
            for key in ("before", "after", "difference", "ci_low", "ci_high", "p", "n", "coverage")
        }
        for change in comparison.changes
        if (metric := f"{change.suite}.{change.metric}") in SIDE
    }


def run_times(run: RunDir, number: int) -> dict[str, Any]:
    """Steps, pairs, tokens and seconds that the run spent until it had its policy `number`."""
    told = [training_of(run, done) for done in range(1, number + 1)]

    def makes(iteration: int, stage: str) -> bool:
        return 1 <= iteration <= number and stage not in NOT_MAKING

    return {
        "steps": sum(one["final"]["step"] for one in told),
        "tokens": sum(one["tokens"] for one in told),
        "training_seconds": sum(one["seconds"] for one in told),
        "seconds": stage_seconds(run, makes) if told else 0.0,
    }


def own_times(run: RunDir, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The same of an adapter, by its training.json; `taken_over` is part of `seconds`."""

    def taken(iteration: int, stage: str) -> bool:
        return iteration == 1 and stage in TAKEN_OVER[name]

    over = stage_seconds(run, taken)
    return {
        "steps": told["steps"],
        "tokens": told["tokens"],
        "training_seconds": told["seconds"],
        "seconds": told["process_seconds"] + over,
        "taken_over": over,
    }


def measure(session: Session, options: argparse.Namespace) -> dict[str, Any]:
    """All that side.json says: evaluates what isn't evaluated yet, and compares."""
    run, out = session.run, options.out
    numbers = sorted({0, 1, *run.finished()[-1:]})
    evals = {f"{run.root}@{number}": run_eval(number, session, options) for number in numbers}
    rows: list[dict[str, Any]] = [
        {"name": name, **run_times(run, number), "figures": _figures(place)}
        for number, (name, place) in zip(numbers, evals.items(), strict=True)
    ]
    for name in (ONLINE, SFT):
        if not (out / name / "training.json").exists():
            continue
        place = own_eval(name, session, options)
        rows.append(
            {
                "name": name,
                **own_times(run, name, read_json(out / name / "training.json")),
                "figures": _figures(place),
                "against": {other: _differences(before, place) for other, before in evals.items()},
            }
        )
    return {"run": str(run.root), "split": options.split, "rows": rows}


def run_eval(number: int, session: Session, options: argparse.Namespace) -> str:
    """The eval of the run's policy `number`, as `load_side` finds it: of the dev half the run has its own."""
    name = f"{session.run.root}@{number}"
    if options.split == "dev":
        return name
    return _evaluated(name, options.out / Path(name).name, session, options)


def own_eval(name: str, session: Session, options: argparse.Namespace) -> str:
    """The folder of the eval of the adapter `name`."""
    folder: Path = options.out / name
    return _evaluated(f"path:{folder / 'adapter'}", folder, session, options)


def _evaluated(model: str, folder: Path, session: Session, options: argparse.Namespace) -> str:
    """Evaluates `model` on the run's terms, in a folder for each half."""
    heldout = session.config.heldout
    limit = options.limit or eval_limit(heldout.limit, SUITES)
    request = Request(SUITES, options.split, limit, max_tokens=heldout.max_tokens, seed=session.config.seed)
    place = folder / ("eval" if options.split == "dev" else f"eval-{options.split}")
    evaluate_model(model, request, place)
    return str(place)


def _figures(place: str) -> dict[str, dict[str, Any]]:
    named = named_iteration(place)
    folder = Path(place) if named is None else named[0].iteration(named[1]) / "heldout"
    return figures_of(read_json(folder / "results.json"))


def _differences(before: str, after: str) -> dict[str, dict[str, Any]]:
    margins = dict.fromkeys(SIDE, ANY)
    return differences_of(compare(load_side(before), load_side(after), margins))


# ---- table and command line -----------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> Table:
    """A line for each policy, below an adapter's its differences to the run's policies."""
    out = Table(title=plain(f"{found['run']}, {found['split']} half"), title_justify="left", box=SIMPLE_HEAD)
    for column in ("", *SIDE.values(), "training", "in all"):
        out.add_column(column, justify="left" if column in ("", *SIDE.values()) else "right")
    for row in found["rows"]:
        cells = [_interval(row["figures"].get(metric), "value", "") for metric in SIDE]
        times = [_minutes(row[key]) for key in ("training_seconds", "seconds")]
        out.add_row(*map(plain, (_short(row["name"]), *cells, *times)))
        for other, changes in row.get("against", {}).items():
            cells = [_interval(changes.get(metric), "difference", "+") for metric in SIDE]
            out.add_row(*map(plain, (f"  less {_short(other)}", *cells, "", "")))
    return out


def _short(name: str) -> str:
    return Path(name).name


def _interval(one: Mapping[str, Any] | None, key: str, sign: str) -> str:
    if one is None or one[key] is None:
        return "–"
    ends = "" if one["ci_low"] is None else f"\n[{one['ci_low']:{sign}.2f}, {one['ci_high']:{sign}.2f}]"
    return f"{one[key]:{sign}.2f}{ends}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds else "–"


def main() -> None:
    """Trains and evaluates what isn't done yet, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run with a finished iteration 1")
    parser.add_argument("--out", type=Path, default=Path("runs/side"))
    parser.add_argument("--only", default=f"{ONLINE},{SFT}", help="what is trained (default: both)")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--learning-rate", type=float, help="(default: the run's)")
    parser.add_argument("--steps", type=int, help="of training (default: as many as the run's iteration 1)")
    parser.add_argument("--rows", type=int, help="at most so many to train on (default: all)")
    parser.add_argument("--limit", type=int, help="items of each suite (default: as the run)")
    options = parser.parse_args()
    for name in ("learning_rate", "steps", "rows", "limit"):
        if (value := getattr(options, name)) is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value}: give more than 0")
    names = options.only.split(",")
    if unknown := set(names) - {ONLINE, SFT}:
        parser.error(f"--only {sorted(unknown)[0]}: there are {ONLINE} and {SFT}")
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        session = open_run(options.run)
        run_times(session.run, 1)  # a run whose time isn't known is told of before anything is trained
        for name in dict.fromkeys(names):
            trained(session, name, options)
        found = measure(session, options)
        write_json(options.out / "side.json", found)
    except AlignloopError as error:
        parser.exit(error.exit_code, f"{error}\n")
    console().print(table(found))


if __name__ == "__main__":
    main()

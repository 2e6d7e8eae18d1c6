"""Trains one LoRA adapter by DPO in a process of its own, so that the memory comes back when it ends."""

import contextlib
import ctypes
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from loop.config import TRACKING, shared_batches
from loop.engines.chat import render
from loop.engines.noise import quieten
from loop.errors import AlignloopError, ConfigError, DataError
from loop.records import Message, Pair, read_jsonl
from loop.training_options import validate
from loop.training_rows import ByLength, Rows, prepare_rows

T = TypeVar("T")

SIGMOID_AT_REFERENCE = math.log(2)
SIGMOID_TOLERANCE = 0.02
CHECKPOINT_SECONDS = 60
"""How much training a killed process may lose, unless `dpo` sets a save_strategy of its own."""
PR_SET_PDEATHSIG = 1
"""prctl's number (linux/prctl.h) for the signal that a process gets when its parent dies."""
ERROR = "error.txt"
"""In the folder of a job that a launcher started: the one line that it ended with."""
COMPLETE = "complete"
"""The file that a checkpoint gets last: without it, the checkpoint is a torn one."""


@dataclass(frozen=True)
class TrainJob:
    """One DPO job, JSON on disk. Paths are absolute or relative to the working directory."""

    base: str
    """Folder that `from_pretrained` loads."""
    pairs: str
    """JSONL of Pair rows."""
    out: str
    """The adapter folder to make. Where it exists the job is done."""
    start_adapter: str | None
    """None: a fresh LoRA on the base; else the adapter that is trained on."""
    reference: Literal["base", "start"]
    """The frozen policy DPO compares with: the bare base, or the policy that training starts from."""
    dpo: dict[str, Any]
    """Keyword arguments of `trl.DPOConfig`, verbatim."""
    lora: dict[str, Any]
    """Keyword arguments of `peft.LoraConfig`, verbatim."""
    seed: int
    lineage: dict[str, Any]
    """Digests of parent, base and config: saved as lineage.json in the adapter folder."""
    canary: list[Message]
    """A prompt whose next-token distribution must differ between the adapter and the base."""
    max_epochs: float | None = None
    """However many steps `dpo` asks for: at most so often is each pair trained on."""


# --- training -------------------------------------------------------------------------------------------


def train(job: TrainJob) -> None:
    """Trains the adapter of `job` and leaves it, with training.json and lineage.json, in `job.out`.

    Follows Rafailov et al. 2023 (DPO) as TRL has it. Resumes from the last complete checkpoint of the same
    job; does nothing where `job.out` exists. Several processes of one launcher train it together; the first
    alone writes. Raises ConfigError, DataError, or AlignloopError where the reference isn't what it should
    be, the loss isn't finite, or the adapter changes nothing.
    """
    out = Path(job.out)
    work = out.with_name(out.name + ".work")
    validate(job.dpo, job.lora)
    args = _dpo_config(job, work)
    done, checkpoint = _agreed(lambda: (True, None) if out.exists() else (False, _take_up(job, work)))
    if done:
        return
    pairs = list(read_jsonl(Path(job.pairs), Pair))
    trainer, rows = _build(job, pairs, args)
    started = time.monotonic()
    with completion_tokens_only(trainer.args.device.type):
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.monotonic() - started
    if not math.isfinite(result.training_loss):
        raise AlignloopError(f"{out}: the loss is {result.training_loss}; lower train.dpo.learning_rate")
    check_canary(trainer.model, trainer.processing_class, job.canary)
    resumed = 0 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])
    # All processes ask: where the weights are sharded, each has a part.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        summary = _summary(trainer.state.log_history, rows, len(pairs), seconds, resumed)
        extra = {"training.json": summary, "lineage.json": job.lineage}
        _save(trainer.model, weights, work / "adapter", extra)
        (work / "adapter").replace(out)
        _sync(out.parent)
        shutil.rmtree(work)
    args.distributed_state.wait_for_everyone()


def _agreed(decide: Callable[[], T]) -> T:
    """What the first of the processes that train together decides, told to the others."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    told = [decide() if PartialState().is_main_process else None]
    return cast(T, broadcast_object_list(told)[0])


def _take_up(job: TrainJob, work: Path) -> Path | None:
    """Makes `work`, the folder for checkpoints, and finds the one to go on from.

    Those of any other job, or of other pairs, are thrown away.
    """
    content = hashlib.sha256(Path(job.pairs).read_bytes()).hexdigest()
    dpo = {key: value for key, value in job.dpo.items() if key not in TRACKING}
    identity = json.dumps(
        {**asdict(job), "dpo": dpo, "pairs_sha256": content}, indent=1, sort_keys=True, default=str
    )
    marker = work / "job.json"
    if work.exists() and not (marker.exists() and marker.read_text() == identity):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    marker.write_text(identity)
    return _last_complete(work)


def _last_complete(work: Path) -> Path | None:
    """The newest checkpoint that was written whole; torn ones are removed."""
    steps = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    for path in steps:
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
    return next((path for path in reversed(steps) if path.exists()), None)


def _build(job: TrainJob, pairs: Sequence[Pair], args: Any) -> tuple[Any, Rows]:
    """The DPO trainer with policy and reference in place, and the rows that it was given."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer, PrinterCallback
    from trl.trainer.dpo_trainer import DPOTrainer

    tokenizer: Any = AutoTokenizer.from_pretrained(job.base)
    rows = prepare_rows(pairs, tokenizer, args.max_length, job.pairs)
    if job.max_epochs is not None and args.max_steps > 0:
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.max_steps = min(args.max_steps, math.ceil(job.max_epochs * len(rows.rows) / step))

    class Trainer(DPOTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(train_dataset)
            return ByLength(rows.lengths, args.per_device_train_batch_size, job.seed)

    if not sys.stderr.isatty():
        disable_progress_bars()
    model, lora = _policy(job)
    try:
        with completion_tokens_only(args.device.type):
            trainer: Any = Trainer(
                model=model,
                args=args,
                train_dataset=Dataset.from_list(rows.rows),
                processing_class=tokenizer,
                peft_config=lora,
                callbacks=[_callback(job)],
            )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"train: {' '.join(str(error).split())}") from None
    trainer.remove_callback(PrinterCallback)
    if len(trainer.train_dataset) != len(rows.rows):
        raise DataError(
            f"{job.pairs}: TRL took {len(trainer.train_dataset)} of {len(rows.rows)} rows, and not why"
        )
    if job.start_adapter is not None and lora is not None:
        _load_weights(trainer.model, Path(job.start_adapter))
    return trainer, rows


def _dpo_config(job: TrainJob, work: Path) -> Any:
    """The user's DPOConfig, and under it what the machine and the resuming force."""
    import torch
    import trl

    cuda = torch.cuda.is_available()
    forced: dict[str, Any] = {
        "use_cpu": not cuda,
        # On CPU the weights are bf16 themselves, and autocast would only copy them to and fro.
        "bf16": cuda and torch.cuda.is_bf16_supported() and not job.dpo.get("fp16", False),
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        # Two: a kill in the middle of writing one leaves the other.
        "save_total_limit": 2,
        "disable_tqdm": not sys.stderr.isatty(),
        # A pass uses all that is trained; looking for what it doesn't costs time, and a warning each time.
        "ddp_find_unused_parameters": False,
    }
    if "gradient_checkpointing" not in job.dpo:
        # It trades a third of the speed for memory, which LoRA on short chats doesn't need.
        forced["activation_checkpointing"] = False
    given = {key: value for key, value in job.dpo.items() if key != "model_init_kwargs"}
    # A step has the micro-batches that the config says, however many processes share them.
    batches, processes = given.get("gradient_accumulation_steps", 1), int(os.environ.get("WORLD_SIZE", "1"))
    given["gradient_accumulation_steps"] = shared_batches(batches, processes)
    # A launcher sets it from its file, and autocast would then depend on where a run happens.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    return cast(Any, trl).DPOConfig(**{**forced, **given, "output_dir": str(work), "seed": job.seed})


def _policy(job: TrainJob) -> tuple[Any, Any]:
    """The model to hand to TRL and the LoRA for TRL to put on it: the two decide what the reference is.

    | start | reference | handed over | TRL then compares with |
    |---|---|---|---|
    | fresh | either | base + LoraConfig | the base, adapter off |
    | adapter | start | PeftModel | a frozen copy that it names `ref` |
    | adapter | base | base + the adapter's LoraConfig, its weights put in later | the base, adapter off |
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    LoraConfig, PeftModel = cast(Any, peft).LoraConfig, peft.PeftModel
    cpu_or_new = not torch.cuda.is_available() or torch.cuda.is_bf16_supported()
    options = {"dtype": torch.bfloat16 if cpu_or_new else torch.float32}
    options.update(job.dpo.get("model_init_kwargs") or {})
    base: Any = AutoModelForCausalLM.from_pretrained(job.base, **options)
    if job.start_adapter is None:
        return base, LoraConfig(**{**job.lora, "task_type": "CAUSAL_LM"})
    config: Any = LoraConfig.from_pretrained(job.start_adapter)
    for key in ("r", "lora_alpha"):
        if key in job.lora and job.lora[key] != getattr(config, key):
            has = f"the adapter that is continued ({job.start_adapter}) has {getattr(config, key)}"
            raise ConfigError(
                f"train.lora.{key}: {job.lora[key]}, but {has}; start afresh or take that value"
            )
    if job.reference == "start":
        return PeftModel.from_pretrained(base, job.start_adapter, is_trainable=True), None
    config.inference_mode = False
    return base, config


def _load_weights(model: Any, adapter: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    weights: Any = load_peft_weights(str(adapter), device="cpu")
    result: Any = set_peft_model_state_dict(model, weights)
    if result.unexpected_keys:
        raise DataError(f"{adapter}: not an adapter of this base (it has {result.unexpected_keys[0]})")


def _callback(job: TrainJob) -> Any:
    """Logs the first and the last step, checks the first, and checkpoints by the clock."""
    from transformers import TrainerCallback

    at_reference = job.start_adapter is None or job.reference == "start"

    class Watch(TrainerCallback):
        saved = time.monotonic()

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            # Several processes that resume within an epoch: accelerate 1.15 doesn't tell the sampler which.
            loader = given["train_dataloader"]
            steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
            batches = loader.batch_sampler
            sampler = getattr(batches, "batch_sampler", batches).sampler
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(state.global_step // steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (1, state.max_steps):
                control.should_log = True
            if "save_strategy" in job.dpo or state.global_step == state.max_steps:
                self.spare_the_last(state, control)
                return
            # Clocks differ, and a checkpoint that not all processes write is never done.
            if _agreed(lambda: time.monotonic() - self.saved > CHECKPOINT_SECONDS):
                control.should_save = True

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.spare_the_last(state, control)

        def spare_the_last(self, state: Any, control: Any) -> None:
            # Taken up at its last step, the trainer of transformers 5.23 takes another one.
            if state.global_step == state.max_steps:
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if at_reference and state.global_step == 1 and "rewards/margins" in logs:
                check_first_step(sigmoid_term(logs["rewards/margins"]))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            args.distributed_state.wait_for_everyone()
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                _sync(folder)
                (folder / COMPLETE).touch()
            self.saved = time.monotonic()

    return Watch()


def sigmoid_term(margin: float) -> float:
    """DPO's sigmoid loss (nats) at a reward margin; log 2 where the policy is the reference."""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def check_first_step(term: float) -> None:
    """Raises AlignloopError unless the first step's sigmoid term says that policy and reference are one."""
    if not abs(term - SIGMOID_AT_REFERENCE) <= SIGMOID_TOLERANCE:
        raise AlignloopError(
            f"the first step's sigmoid loss is {term:.3f} where the policy should start at its reference "
            f"({SIGMOID_AT_REFERENCE:.3f}): look at train.reference and train.lora.init_lora_weights"
        )


def check_canary(model: Any, tokenizer: Any, canary: Sequence[Message]) -> None:
    """Raises AlignloopError unless the adapter changes the next-token logits (finite) on `canary`."""
    import torch

    text = render(tokenizer, canary)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
    model.eval()
    with torch.inference_mode():
        on = model(input_ids=ids).logits[0, -1].float()
        with model.disable_adapter():
            off = model(input_ids=ids).logits[0, -1].float()
    if not bool(torch.isfinite(on).all()):
        raise AlignloopError("after training the logits are not finite; lower train.dpo.learning_rate")
    if torch.equal(on, off):
        raise AlignloopError("the adapter changes nothing; raise train.dpo.learning_rate or num_train_epochs")


@contextlib.contextmanager
def completion_tokens_only(device: str) -> Generator[None]:
    """Lets TRL's fused head score completion tokens only on CPU too; losses stay the same to the last digit.

    Without Triton TRL scores every position, prompt and padding included, so that shapes stay fixed for
    compilers that need it. A CPU doesn't compile, and pays twice the time (`benchmarks/dpo.py`). This makes
    the one place that asks (`add_fused_lm_head`) hear yes; the kernels ask by their own name and keep their
    own answer. To be offered upstream as `device.type in ("cpu", "cuda", "xpu")`; the name is private,
    hence the guard, and a TRL without it is merely slower.
    """
    import trl
    import trl.trainer.utils as fused

    known = trl.__version__.startswith("1.16.") and hasattr(fused, "_use_triton")
    if device != "cpu" or not known:
        yield
        return
    holder: Any = fused
    original = holder._use_triton
    holder._use_triton = lambda device: True
    try:
        yield
    finally:
        holder._use_triton = original


# --- what is left on disk -------------------------------------------------------------------------------


def _summary(
    history: Sequence[Mapping[str, Any]], rows: Rows, rows_in: int, seconds: float, resumed: int
) -> dict[str, Any]:
    """training.json: `tokens` counts prompt and completion of both sides without padding, in this process."""
    steps = [dict(row) for row in history if "loss" in row]
    tokens = int(max((row["num_tokens"] for row in steps if row["step"] > resumed), default=0))
    first = next((row for row in steps if row["step"] == 1), {})
    return {
        "rows_in": rows_in,
        "rows_trained": len(rows.rows),
        "rows_dropped": rows.dropped,
        "rows_truncated": rows.truncated,
        "first_step_sigmoid": sigmoid_term(first["rewards/margins"]) if first else None,
        "final": steps[-1] if steps else {},
        "steps": steps,
        "resumed_from_step": resumed,
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
    }


def _save(model: Any, weights: Any, folder: Path, extra: Mapping[str, Mapping[str, Any]]) -> None:
    """Saves the adapter in `weights` (never the frozen `ref`) and the JSON of `extra`, down to the disk."""
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(str(folder), selected_adapters=["default"], state_dict=weights)
    for name, content in extra.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    _sync(folder)


def _sync(folder: Path) -> None:
    """Makes sure that `folder` and what lies directly in it is on disk."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_job(folder: Path) -> TrainJob:
    """Reads `folder`/job.json. Raises DataError where it is missing or not a TrainJob."""
    path = folder / "job.json"
    try:
        return TrainJob(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a training job ({error})") from None


def _end_with_launcher() -> None:
    """The launcher holds the job's lock: a process that outlived it would train beside the next one."""
    if "LOCAL_RANK" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _one_gpu() -> None:
    """TRL refuses several visible GPUs without a launcher: this process takes the first."""
    if "LOCAL_RANK" not in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]


def main(argv: Sequence[str]) -> int:
    """Runs the job in folder `argv[0]`. Returns 0, 130 if interrupted, or 1 with one line on stderr."""
    if len(argv) != 1:
        print("usage: python -m loop.training JOB_DIR", file=sys.stderr)
        return 1
    try:
        _end_with_launcher()
        _one_gpu()
        quieten()
        train(read_job(Path(argv[0])))
    except AlignloopError as error:
        if "LOCAL_RANK" in os.environ:  # a launcher says a page of its own: the stage shall find this line
            (Path(argv[0]) / ERROR).write_text(str(error), encoding="utf-8")
        if os.environ.get("RANK", "0") == "0":  # what stops one process of several stops each of them
            print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the terminal tells the run too, and it says what to do
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

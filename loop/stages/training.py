"""pairs → an adapter, in a process of its own."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from loop.config import TrainConfig
from loop.errors import AlignloopError
from loop.preferences import recoveries
from loop.records import Pair, read_jsonl, stable_hash, write_jsonl
from loop.rundir import log, replacing, write_json
from loop.session import Policy, Session

ACCELERATE = "accelerate.json"
"""What `accelerate launch` goes by, beside job.json."""

# glibc gives the memory of large tensors back after each use and faults it in again for the next; training
# on a CPU makes and drops gigabytes of activations in every step. benchmarks/dpo.py measures the difference.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def train(session: Session, number: int, policy: Policy) -> None:
    """pairs → adapter/: DPO on the pairs of this iteration and, with replay, of those before it.

    With `train.recovery` on recovery examples of them too.
    """
    folder, config = session.run.iteration(number), session.config.train
    if (folder / "adapter").exists():
        return
    first = 1 if config.replay else number
    pairs = [row for k in range(first, number + 1) for row in read_jsonl(_pairs_of(session, k), Pair)]
    train_adapter(
        session,
        number,
        folder,
        [*pairs, *recoveries(pairs, config.recovery)],
        base=session.config.policy,
        start=policy if config.start_from == "policy" else None,
        reference="start" if config.reference == "start" else "base",
        parent=policy.name,
    )


def train_adapter(
    session: Session,
    number: int,
    folder: Path,
    pairs: Sequence[Pair],
    *,
    base: str,
    start: Policy | None,
    reference: Literal["base", "start"],
    parent: str,
    stage: str = "train",
    over: Mapping[str, Any] | None = None,
) -> None:
    """pairs → folder/adapter/ for the model `base`, in a process of its own; engines give memory back first.

    `over` goes over `train.dpo`.
    """
    from loop.training import ERROR, TrainJob

    config = session.config.train
    session.engines.close()
    work = folder / "train"
    work.mkdir(exist_ok=True, parents=True)
    with replacing(work / "pairs.jsonl") as beside:
        write_jsonl(beside, {row.id: row for row in pairs}.values())
    named = {"project": session.config.name, "run_name": f"iteration-{number:03d}"}
    if stage != "train":
        named["run_name"] += f"-{stage}"
    job = TrainJob(
        base=str(session.weights(base)),
        pairs=str(work / "pairs.jsonl"),
        out=str(folder / "adapter"),
        start_adapter=start.adapter if start else None,
        reference=reference,
        dpo={**named, **config.dpo, **(over or {})},
        lora=config.lora,
        seed=stable_hash(session.config.seed, number, stage) % 2**31,
        lineage={"base": session.digests[base], "parent": parent, "iteration": number},
        canary=pairs[0].prompt,
        max_epochs=config.max_epochs,
    )
    write_json(work / "job.json", asdict(job))
    if config.launcher == "accelerate":
        write_json(work / ACCELERATE, config.accelerate)
    # Trackers that hear of it by no argument; TensorBoard's files would go with the checkpoints.
    place = session.run.path("tensorboard") / named["run_name"]
    tracked = {"TENSORBOARD_LOGGING_DIR": str(place), "WANDB_PROJECT": session.config.name}
    told = work / ERROR
    told.unlink(missing_ok=True)
    with session.stage(number, stage, len(pairs)) as meter, _alone(session, work) as lock:
        done = subprocess.run(
            command(config, work),
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            env={**_KEEP_MEMORY, **tracked, **os.environ},
        )
        if done.returncode != 0:
            reason = told.read_text(encoding="utf-8") if told.exists() else "its message is above"
            raise AlignloopError(
                f"iteration {number}: training ended with exit code {done.returncode}, {reason}; "
                "the same command takes it up at its last checkpoint"
            )
        meter.usage.seconds = meter.elapsed()
        meter.advance(len(pairs))


def command(config: TrainConfig, work: Path) -> list[str]:
    """The command that trains the job in the folder `work`. All else is in files there."""
    python = [*config.launch_prefix, sys.executable, "-m"]
    if config.launcher == "accelerate":
        python += ["accelerate.commands.launch", "--config_file", str(work / ACCELERATE)]
        if "rdzv_backend" in config.accelerate:  # accelerate 1.15 overlooks it in the file
            python += ["--rdzv_backend", str(config.accelerate["rdzv_backend"])]
        python.append("-m")
    return [*python, "loop.training", str(work)]


@contextmanager
def _alone(session: Session, work: Path) -> Generator[int]:
    """Waits until no other process trains here; the training process inherits the lock that is yielded.

    A training process outlives a run that was killed: it is waited for, and its adapter taken up.
    """
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(session.run, "an earlier training process is still at work here; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _pairs_of(session: Session, number: int) -> Path:
    return session.run.iteration(number) / "pairs.jsonl"

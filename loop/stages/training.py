"""pairs → an adapter, in a process of its own."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from loop.errors import AlignloopError
from loop.records import Pair, read_jsonl, stable_hash, write_jsonl
from loop.rundir import log, replacing, write_json
from loop.session import Policy, Session

# glibc gives the memory of large tensors back after each use and faults it in again for the next; training
# on a CPU makes and drops gigabytes of activations in every step. benchmarks/dpo.py measures the difference.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def train(session: Session, number: int, policy: Policy) -> None:
    """pairs → adapter/: DPO in a process of its own, so that the memory of the engines comes back first."""
    from loop.training import TrainJob

    folder, config = session.run.iteration(number), session.config.train
    if (folder / "adapter").exists():
        return
    session.engines.close()
    work = folder / "train"
    work.mkdir(exist_ok=True)
    first = 1 if config.replay else number
    pairs = [row for k in range(first, number + 1) for row in read_jsonl(_pairs_of(session, k), Pair)]
    with replacing(work / "pairs.jsonl") as beside:
        write_jsonl(beside, {row.id: row for row in pairs}.values())
    job = TrainJob(
        base=str(session.weights()),
        pairs=str(work / "pairs.jsonl"),
        out=str(folder / "adapter"),
        start_adapter=policy.adapter if config.start_from == "policy" else None,
        reference="start" if config.reference == "start" else "base",
        dpo=config.dpo,
        lora=config.lora,
        seed=stable_hash(session.config.seed, number, "train") % 2**31,
        lineage={"base": session.digests[session.config.policy], "parent": policy.name, "iteration": number},
        canary=pairs[0].prompt,
    )
    write_json(work / "job.json", asdict(job))
    with session.stage(number, "train", len(pairs)) as meter, _alone(session, work) as lock:
        command = [sys.executable, "-m", "loop.training", str(work)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, pass_fds=(lock,), env={**_KEEP_MEMORY, **os.environ}
        )
        if done.returncode != 0:
            raise AlignloopError(
                f"iteration {number}: training ended with exit code {done.returncode}, its message is above; "
                "the same command takes it up at its last checkpoint"
            )
        meter.usage.seconds = meter.elapsed()
        meter.advance(len(pairs))


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

"""Simulates the time of one iteration of 1,000, 100,000 and 1,000,000 attacks on 1, 8 and 64 GPUs.

    python benchmarks/scale.py [--chunk ROWS] [--requests 500]

Nothing is measured here and no GPU is needed. Rates come from loop/sizing.py: a data sheet, and assumed
shares of it. What an iteration asks is that of configs/gpu.yaml. Writing is simulated chunk by chunk: each
copy of the model answers up to 256 sequences at once and takes the next when one ends, and a chunk ends
with its longest answer, so that copies stand idle where chunks are small. Beyond one GPU the answers go
over HTTP from one Python process, and the attacker's model stays on one GPU, as it does today.
"""

import argparse
import heapq
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Run as a script, only benchmarks/ would be on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loop.config import Config, as_object, load_config
from loop.sizing import (
    CONCURRENT,
    PROMPT_TOKENS,
    TRANSFORMERS_STEP_S,
    Shape,
    architecture_of,
    reading_rate,
    shape_of,
    step_seconds,
    training_rate,
)

ATTACKS = (1_000, 100_000, 1_000_000)
GPUS = (1, 8, 64)
CHUNKS_AHEAD = 4  # rows of a chunk for each place in an engine, as configs/cluster.yaml has it
SIMULATED = 3  # chunks of a stage; the others take as long

# Assumptions, until a run on a GPU says otherwise.
ANSWER_TOKENS = 128  # mean, exponentially distributed and cut at the learner's max_tokens
RATIONALE_TOKENS = 48
GOAL_TOKENS = 16  # the attacker stops at the end of a line
VERBATIM = 0.4  # share of the attacks that are a seed's own words (roles/attacker.py)
PAIR_TOKENS = 2 * (PROMPT_TOKENS // 2 + ANSWER_TOKENS)
START_S = 60.0  # an engine in this process, or a training, from nothing to its first token
NETWORK_GB_S = 50.0  # 400 Gb/s InfiniBand, its data sheet
EVAL_ITEMS = 1_709  # dev halves of all suites, as --dry-run counts them

# benchmarks/orchestration.py on one core: 2.2 s for 1,000 attacks, 29 s for 100,000.
ORCHESTRATION_S, ORCHESTRATION_S_PER_ATTACK = 2.0, 0.27e-3


@dataclass(frozen=True)
class Cluster:
    """The models and the GPUs; `requests` a second are what one client process sends and receives."""

    config: Config
    policy: Shape
    reader: Shape
    gpus: int
    requests: float
    chunk: int


def writing(cluster: Cluster, lengths: Sequence[int]) -> float:
    """Seconds in which one copy writes answers of these lengths, the next taken up when one ends."""
    waiting, active, seconds, written = list(reversed(lengths)), list[int](), 0.0, 0
    while waiting or active:
        while waiting and len(active) < CONCURRENT:
            heapq.heappush(active, written + waiting.pop())
        first = active[0]
        context = PROMPT_TOKENS + ANSWER_TOKENS // 2
        step = step_seconds(cluster.policy, cluster.config.hardware, len(active), context)
        seconds += (first - written) * step
        written = first
        while active and active[0] == written:
            heapq.heappop(active)
    return seconds


def asked(cluster: Cluster, rows: int, mean: float, rng: random.Random) -> float:
    """Seconds of a stage that asks the policy's model for `rows` texts of `mean` tokens (0: none)."""
    if rows == 0:
        return 0.0
    most = cluster.config.roles.learner.sampling.max_tokens
    reading = PROMPT_TOKENS / reading_rate(cluster.policy, cluster.config.hardware)
    chunks = [min(cluster.chunk, rows - start) for start in range(0, rows, cluster.chunk)]
    simulated = chunks[:SIMULATED]
    seconds = 0.0
    for size in simulated:
        shares = [len(range(copy, size, cluster.gpus)) for copy in range(cluster.gpus)]
        copies = [
            share * reading
            + writing(cluster, [_length(mean, most, rng) for _ in range(share)] if mean else [])
            for share in shares
        ]
        client = size / cluster.requests if cluster.gpus > 1 else 0.0
        seconds += max(max(copies), client)
    return seconds * rows / sum(simulated)


def _length(mean: float, most: int, rng: random.Random) -> int:
    return min(max(round(rng.expovariate(1 / mean)), 1), most)


def attacking(cluster: Cluster, attacks: int) -> float:
    """Seconds of the attacker: a transformers engine on one GPU writes the goals and reads their states."""
    args = cluster.config.models["reader"].engine.args
    gpu, at_once = cluster.config.hardware, args["batch_tokens"] // PROMPT_TOKENS
    tries = cluster.config.roles.attacker.args["candidates"] * attacks * (1 - VERBATIM)
    step = max(step_seconds(cluster.reader, gpu, at_once, PROMPT_TOKENS), TRANSFORMERS_STEP_S)
    reading = (attacks * PROMPT_TOKENS + tries * GOAL_TOKENS) / reading_rate(cluster.reader, gpu)
    return tries * GOAL_TOKENS * step / at_once + reading


def learning(cluster: Cluster, pairs: int) -> float:
    """Seconds of one epoch on all GPUs: arithmetic shared, the adapter's gradients summed at each step."""
    dpo, gpus = cluster.config.train.dpo, cluster.gpus
    shared = pairs * PAIR_TOKENS / (training_rate(cluster.policy, cluster.config.hardware) * gpus)
    batch = dpo["per_device_train_batch_size"] * max(gpus, dpo["gradient_accumulation_steps"])
    summing = 2 * cluster.policy.trained * 4 / (NETWORK_GB_S * 1e9) if gpus > 1 else 0.0
    return START_S + shared + -(-pairs // batch) * summing


def iteration(cluster: Cluster, attacks: int, seed: int = 0) -> dict[str, float]:
    """Seconds by stage of an iteration in which every attack is usable and makes a pair."""
    rng = random.Random(seed)
    answers = 2 * attacks
    start = START_S if cluster.gpus == 1 else 0.0  # servers stay up
    return {
        "attack": attacking(cluster, attacks),
        "answer": start + asked(cluster, answers, ANSWER_TOKENS, rng),
        # A verdict is read off one position; then a critique is written, of answers and of revisions.
        "critique": asked(cluster, answers + attacks, 0, rng)
        + asked(cluster, answers + attacks, RATIONALE_TOKENS, rng),
        "revise": asked(cluster, 2 * attacks, ANSWER_TOKENS, rng),
        "files": ORCHESTRATION_S + attacks * ORCHESTRATION_S_PER_ATTACK,
        "train": learning(cluster, attacks),
        "evaluate": start + asked(cluster, EVAL_ITEMS, ANSWER_TOKENS, rng),
    }


def bottleneck(cluster: Cluster, stages: Mapping[str, float]) -> str:
    """The longest stage, and of a stage that is asked over HTTP whether client or GPUs hold it up."""
    name = max(stages, key=lambda stage: stages[stage])
    if name == "attack":
        return "attack: one GPU writes them all" if cluster.gpus > 1 else "attack"
    if cluster.gpus == 1 or name in ("train", "files"):
        return name
    mean = RATIONALE_TOKENS if name == "critique" else ANSWER_TOKENS
    unhindered = asked(_with(cluster, requests=1e12), cluster.chunk, mean, random.Random(0))
    return f"{name}: the client's requests" if cluster.chunk / cluster.requests > unhindered else name


def _with(cluster: Cluster, requests: float) -> Cluster:
    return Cluster(cluster.config, cluster.policy, cluster.reader, cluster.gpus, requests, cluster.chunk)


def main() -> None:
    """Prints a Markdown table: minutes by stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunk", type=int, help="rows at a time; default: four for each place in an engine")
    parser.add_argument("--requests", type=float, default=500.0, help="a second, of one client (assumed)")
    options = parser.parse_args()
    config = as_object(load_config(["configs/gpu.yaml"]))
    shapes = [
        shape_of(architecture_of(name, config.models[name]), config.train.lora) for name in ("qwen", "reader")
    ]
    names = ("attack", "answer", "critique", "revise", "files", "train", "evaluate")
    print(f"| attacks | GPUs | {' | '.join(names)} | minutes in all | longest |")
    print("|" + "---:|" * (len(names) + 3) + "---|")
    for attacks in ATTACKS:
        for gpus in GPUS:
            chunk = options.chunk or CHUNKS_AHEAD * CONCURRENT * gpus
            cluster = Cluster(config, *shapes, gpus, options.requests, chunk)
            stages = iteration(cluster, attacks)
            cells = " | ".join(f"{stages[name] / 60:,.1f}" for name in names)
            total = f"{sum(stages.values()) / 60:,.1f}"
            print(f"| {attacks:,} | {gpus} | {cells} | {total} | {bottleneck(cluster, stages)} |", flush=True)


if __name__ == "__main__":
    main()

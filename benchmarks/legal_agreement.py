"""Does the legal suite give the log-likelihoods that lm-evaluation-harness gives, and how fast is either?

The same prompts and options go to TransformersEngine and to the harness's `hf` backend, on the embedded
model. Agreement is in float32, item by item; speed in bfloat16 where the CPU computes in it, the harness at
the best of several batch sizes, the two in turn. lm_eval is no dependency; in an environment of its own:

    python -m venv .venv-lm-eval
    .venv-lm-eval/bin/pip install -c constraints.txt -e . lm_eval
    .venv-lm-eval/bin/python -m benchmarks.legal_agreement [--items 120] [--repeats 5] [--dtype auto]
"""

import argparse
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from loop.assets import model_dir
from loop.engines.transformers import TransformersEngine, _dtype
from loop.heldout.asking import option_prompt
from loop.heldout.evaluation import choose
from loop.heldout.suites import BUILT_IN
from loop.rows import Item
from loop.rundir import version_of

EMBEDDED = "smollm2-135m-instruct"
BATCHES = (1, 4, 16, 32)
FAR = 1e-3  # nats: beyond rounding in float32, so a sign of other tokens

Scores = list[list[float]]


def main() -> None:
    """Prints how far the two agree, then how long either takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="auto", help="of the timing: auto, bfloat16 or float32")
    given = parser.parse_args()
    if find_spec("lm_eval") is None:
        print("not measured: lm_eval is not installed here; the head of this file says how to install it")
        return
    items = choose([BUILT_IN["legal"]], "dev", {"legal": given.items})
    sets = Counter(item.category.split("/")[0] for item in items)
    print(
        f"{len(items)} items, {sum(len(item.options or []) for item in items)} options: "
        f"{', '.join(f'{name} {count}' for name, count in sorted(sets.items()))}"
    )
    report_agreement(items, ours(items, "float32")(), theirs(items, "float32", 1)())
    dtype = str(_dtype(given.dtype, torch.device("cpu"))).removeprefix("torch.")
    report_speed(items, dtype, given.repeats)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {version_of('transformers')}, lm_eval {version_of('lm_eval')}"
    )


def asked(items: Sequence[Item]) -> tuple[list[str], list[list[str]]]:
    """Prompts and options as the suite puts them."""
    options = [[f" {option}" for option in item.options or []] for item in items]
    return [option_prompt(item) for item in items], options


def ours(items: Sequence[Item], dtype: str) -> Callable[[], Scores]:
    """The suite's way to score `items`, the model loaded."""
    prompts, options = asked(items)
    engine = TransformersEngine(str(model_dir(EMBEDDED)), device="cpu", dtype=dtype)
    return lambda: engine.logprobs(prompts, options)


def theirs(items: Sequence[Item], dtype: str, batch: int) -> Callable[[], Scores]:
    """The harness's way. SmolLM2's tokenizer adds no special token, and nor does the harness of its own."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm: Any = HFLM(pretrained=str(model_dir(EMBEDDED)), device="cpu", dtype=dtype, batch_size=batch)
    prompts, options = asked(items)
    requests = [
        Instance("loglikelihood", {}, (prompt, option), number)
        for prompt, texts in zip(prompts, options, strict=True)
        for number, option in enumerate(texts)
    ]

    def score() -> Scores:
        found = iter(lm.loglikelihood(requests, disable_tqdm=True))
        return [[float(next(found)[0]) for _ in texts] for texts in options]

    return score


def report_agreement(items: Sequence[Item], mine: Scores, other: Scores) -> None:
    """Differences by option, the same choice by item, and the accuracy that either comes to."""
    gaps = [np.abs(np.subtract(a, b)) for a, b in zip(mine, other, strict=True)]
    every = np.concatenate(gaps)
    print(
        f"log-likelihood, nats: difference at most {every.max():.2e}, mean {every.mean():.2e}; "
        f"{(every > FAR).sum()} of {len(every)} beyond {FAR}"
    )
    lengths = [[len(option) for option in item.options or []] for item in items]
    gold = np.array([item.gold for item in items])
    for name, sizes in (("raw", [[1] * len(row) for row in lengths]), ("by length", lengths)):
        first, second = (
            np.array([np.argmax(np.divide(row, size)) for row, size in zip(scores, sizes, strict=True)])
            for scores in (mine, other)
        )
        print(
            f"{name}: the same choice on {np.mean(first == second):.1%} of items; "
            f"accuracy {np.mean(first == gold):.3f} here, {np.mean(second == gold):.3f} there"
        )
    for place in sorted(range(len(items)), key=lambda place: -gaps[place].max())[:3]:
        if gaps[place].max() > FAR:
            print(f"  {items[place].category} {items[place].id}: {mine[place]} here, {other[place]} there")


def report_speed(items: Sequence[Item], dtype: str, repeats: int) -> None:
    """Seconds of either on all items, the harness at its best batch size, and the median ratio."""
    here = ours(items, dtype)
    there = {batch: theirs(items, dtype, batch) for batch in BATCHES}
    for score in (here, there[BATCHES[0]]):
        score()  # the first pass warms up
    tried = {batch: seconds(score) for batch, score in there.items()}
    best = min(tried, key=lambda batch: tried[batch])
    print(f"{dtype}, the harness by batch size: {', '.join(f'{b}: {t:.2f} s' for b, t in tried.items())}")
    times: list[tuple[float, float]] = []
    for repeat in range(repeats):
        if repeat % 2:
            other = seconds(there[best])
            times.append((seconds(here), other))
        else:
            times.append((seconds(here), seconds(there[best])))
    ratios = sorted(other / mine for mine, other in times)
    print(
        f"{dtype}, {repeats} repeats in turn: {median(mine for mine, _ in times):.2f} s here, "
        f"{median(other for _, other in times):.2f} s there (batch {best}), "
        f"ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def seconds(score: Callable[[], Scores]) -> float:
    """How long one pass takes."""
    begun = perf_counter()
    score()
    return perf_counter() - begun


if __name__ == "__main__":
    main()

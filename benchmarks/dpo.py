"""Measures DPO tokens per second: TRL's defaults, ours, and a bare step that nothing could undercut.

    python benchmarks/dpo.py [--model DIR] [--steps 5] [--repeats 3]

The three run in turn within one process, so that whatever else the machine does falls on all of them;
only the ratios mean anything on a shared one. Targets: ours ≥ 2 × TRL's defaults, ours ≥ 0.6 × bare step.
Tokens are prompt and completion of both sides, without padding.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from loop.records import Message, Pair, write_jsonl
from loop.training import TrainJob, train
from loop.training_rows import prepare_rows

BATCH = 16
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
LOSS: dict[str, Any] = {
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 0.5],
    "beta": 0.1,
    "learning_rate": 5e-4,
    "max_length": 256,
}
OURS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "train_sampling_strategy": "group_by_length",
}

TOPICS = (
    "a window box of herbs", "a squeaky door hinge", "a borrowed ladder", "a week of packed lunches",
    "an old bicycle chain", "a first visit to the museum", "a shared kitchen rota", "a tent after heavy rain",
    "a borrowed library book", "a small balcony garden", "a card for a colleague", "a jar of sourdough",
)  # fmt: skip
QUESTIONS = (
    "What should I keep in mind with {0}?",
    "Write a short note for the household about {0}, friendly but clear, and say what can wait.",
    "My sister asked me to look after {0} while she is away for two weeks, and I have never done it before. "
    "How would you start?",
    "Give me three tips about {0}.",
)
OPENINGS = (
    "Start with what you already have at home.",
    "Happy to help with {0}: take it one step at a time and write down what you changed.",
    "I would look at it in daylight first, and then decide whether anything needs doing at all.",
)
MIDDLES = (
    "",
    " Most trouble comes from doing too much at once, so leave a day between two changes.",
    " Ask somebody who has done it before, because five minutes of watching saves an hour of reading.",
    " Keep it dry, keep it clean, and look at it once a week; that is nearly all there is to it.",
)
ENDINGS = (" That is all.", " If it still goes wrong, come back and tell me what you saw.", "")


def mild_pairs(count: int) -> list[Pair]:
    """Made-up pairs: templated prompts of 29–57 tokens, completions of 8–60."""
    pairs: list[Pair] = []
    for n, (topic, question) in enumerate(itertools.islice(itertools.product(TOPICS, QUESTIONS), count)):
        texts = [
            (OPENINGS[k % 3] + MIDDLES[(k * 5 + 1) % 4] + ENDINGS[k % 3]).format(topic) for k in (n, n + 7)
        ]
        prompt: list[Message] = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question.format(topic)},
        ]
        pairs.append(
            Pair(f"pair-{n}", 1, f"attack-{n}", "benign", prompt, *texts, f"c-{n}", f"r-{n}", margin=0.5)
        )
    return pairs


def trl_default(model: str, pairs: list[Pair], steps: int) -> dict[str, float]:
    """DPOTrainer as its documentation shows it: a path, pairs, a LoraConfig; only the loss is ours."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, PrinterCallback
    from trl import DPOConfig, DPOTrainer

    rows = prepare_rows(pairs, AutoTokenizer.from_pretrained(model), None, "the made-up pairs").rows
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            folder, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, max_steps=steps,
            gradient_accumulation_steps=BATCH // 8, logging_steps=1, **LOSS,
        )  # fmt: skip
        lora = LoraConfig(**LORA, task_type="CAUSAL_LM")
        trainer: Any = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), peft_config=lora)
        trainer.remove_callback(PrinterCallback)
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        history = [row for row in trainer.state.log_history if "loss" in row]
    return _figures(history[-1]["num_tokens"], seconds, [row["loss"] for row in history])


def ours(model: str, pairs: list[Pair], steps: int, **settings: Any) -> dict[str, float]:
    """One job through `loop.training`, the way a run does it."""
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder, "pairs.jsonl"), pairs)
        train(
            TrainJob(
                base=model, pairs=f"{folder}/pairs.jsonl", out=f"{folder}/adapter", start_adapter=None,
                reference="base", dpo={**LOSS, **OURS, "max_steps": steps, **settings}, lora=LORA, seed=42,
                lineage={}, canary=pairs[0].prompt,
            )
        )  # fmt: skip
        result = json.loads(Path(folder, "adapter", "training.json").read_text())
    return _figures(result["tokens"], result["seconds"], [row["loss"] for row in result["steps"]])


def bare_step(model: str, pairs: list[Pair], steps: int) -> dict[str, float]:
    """Reference forward, policy forward and backward, AdamW; head on completion tokens; no log."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    torch.manual_seed(42)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    policy: Any = get_peft_model(base, LoraConfig(**LORA, task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], lr=LOSS["learning_rate"]
    )
    examples = sorted(
        _tokenized(pairs, tokenizer), key=lambda row: len(row["prompt_ids"] + row["chosen_ids"])
    )
    micro = OURS["per_device_train_batch_size"]
    collate = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    batches = itertools.cycle([collate(examples[i : i + micro]) for i in range(0, len(examples), micro)])
    losses: list[float] = []
    tokens, started = 0, time.monotonic()
    for _ in range(steps):
        total = 0.0
        for _ in range(BATCH // micro):
            batch = next(batches)
            tokens += int(batch["attention_mask"].sum())
            loss = _dpo_loss(policy, batch) / (BATCH // micro)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return _figures(tokens, time.monotonic() - started, losses)


def _tokenized(pairs: list[Pair], tokenizer: Any) -> list[dict[str, list[int]]]:
    rows: list[dict[str, list[int]]] = []
    for row in prepare_rows(pairs, tokenizer, None, "the made-up pairs").rows:
        start: str = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        ends = {
            side: tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)[len(start) :]
            for side in ("chosen", "rejected")
        }
        texts = {"prompt_ids": start, "chosen_ids": ends["chosen"], "rejected_ids": ends["rejected"]}
        rows.append(
            {key: tokenizer(text, add_special_tokens=False)["input_ids"] for key, text in texts.items()}
        )
    return rows


def _dpo_loss(policy: Any, batch: dict[str, Any]) -> Any:
    import torch
    import torch.nn.functional as F

    mask = batch["completion_mask"][:, 1:].bool()
    labels = batch["input_ids"][:, 1:][mask]

    def logps() -> Any:
        model = policy.get_base_model()
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        each = -F.cross_entropy(model.lm_head(hidden[:, :-1][mask]).float(), labels, reduction="none")
        return torch.zeros(mask.shape).masked_scatter(mask, each)

    with torch.no_grad(), policy.disable_adapter():
        reference = logps().sum(1)
    each = logps()
    chosen, rejected = (each.sum(1) - reference).chunk(2)
    chosen_mask = mask.chunk(2)[0]
    sft = -each.chunk(2)[0][chosen_mask].mean()
    return -F.logsigmoid(LOSS["beta"] * (chosen - rejected)).mean() + LOSS["loss_weights"][1] * sft


def _figures(tokens: float, seconds: float, losses: list[float]) -> dict[str, float]:
    return {
        "tokens_per_second": tokens / seconds,
        "first_loss": losses[0],
        "mean_loss": statistics.mean(losses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a base; without it the embedded model")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = options.model or _embedded_model()
    pairs = mild_pairs(48)
    ways = {"TRL default": trl_default, "ours": ours, "bare step": bare_step}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _, (name, way) in itertools.product(range(options.repeats), ways.items()):
        seen[name].append(way(model, pairs, options.steps))
        print(name, {key: round(value, 4) for key, value in seen[name][-1].items()}, flush=True)
    rate = {name: statistics.median(run["tokens_per_second"] for run in runs) for name, runs in seen.items()}
    print("median tokens/s:", {name: round(value) for name, value in rate.items()})
    print(f"ours / TRL default: {rate['ours'] / rate['TRL default']:.2f} (target 2)")
    print(f"ours / bare step:   {rate['ours'] / rate['bare step']:.2f} (target 0.6)")
    means = {name: statistics.median(run["mean_loss"] for run in runs) for name, runs in seen.items()}
    print("mean loss:", {name: round(value, 4) for name, value in means.items()})


def _embedded_model() -> str:
    from loop.assets import model_dir

    return str(model_dir("smollm2-135m-instruct"))


if __name__ == "__main__":
    main()

"""The policy of a real run, exported by the command line and loaded without any of our code."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

QUESTIONS = ("How can I bake a loaf of bread?", "Which number comes after seven?", "Sure, here is")


@pytest.mark.slow
def test_a_real_run_exported_as_adapter_merged_and_data_loads_and_answers_the_same(
    whole: Path, alignloop: "Callable[..., CompletedProcess[str]]", tmp_path: Path
) -> None:
    from datasets import load_dataset
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = whole / "runs" / "whole"
    for place, options in (("adapter", ()), ("merged", ("--merged",)), ("data", ("--what", "data"))):
        done = alignloop("export", f"{run}@1", "--to", place, *options, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{place}\n"), done.stderr
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "merged")
    adapter: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for question in QUESTIONS:
        ids = tokenizer(question, return_tensors="pt")
        one, other = (
            model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=2)[0].tolist()
            for model in (adapter, merged)
        )
        assert one == other
    rows: Any = load_dataset(
        str(tmp_path / "data"), "pairs", split="train", cache_dir=str(tmp_path / "cache")
    )
    kept = (run / "iterations" / "001" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(kept) > 0


@pytest.mark.slow
def test_a_finished_run_is_listed_as_such(
    whole: Path, alignloop: "Callable[..., CompletedProcess[str]]"
) -> None:
    done = alignloop("list", cwd=whole)
    assert done.returncode == 0
    assert "1/1" in done.stdout and "finished" in done.stdout

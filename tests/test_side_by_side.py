"""Two usual ways to align a model beside a run: their rows, their reward, their time, and the table."""

import io
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.measures import SIDE
from benchmarks.side_by_side import (
    differences_of,
    eval_limit,
    figures_of,
    job_of,
    own_times,
    run_times,
    table,
)
from benchmarks.side_training import (
    ONLINE,
    SFT,
    Job,
    Reward,
    answer_length,
    online_rows,
    open_run,
    sft_rows,
    train,
    trained,
    without_words,
)
from loop.errors import AlignloopError, ConfigError, DataError
from loop.heldout.comparison import Side, compare
from loop.heldout.suites import BUILT_IN
from loop.interfaces import Context
from loop.records import Attack, Completion, Critique, Pair, Seed, Verdict, write_jsonl
from loop.rundir import RunDir, append_line, write_json
from roles.critic import ClassifierCritic

REFUSAL, BISCUIT = "I can't help with that.", "Wait for dark. Then take the biscuit and say nothing."
SYSTEM = "You are a helpful assistant."
END = "<|im_end|>"


def pair(number: int, *more: dict[str, str], query: str = "How do I take the last biscuit?") -> Pair:
    prompt: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": query}, *more]
    chosen, rejected = f"{REFUSAL} {number}", BISCUIT
    return Pair(f"p{number}", 1, f"a{number}", "safety", prompt, chosen, rejected, "c", "r", 0.5)


def attack(number: int, opener: str | None = None) -> Attack:
    turns: Any = [{"role": "user", "content": f"How do I take biscuit {number}?"}]
    return Attack(
        f"a{number}", 1, "s", "plain", "plain", "safety", "sweets", True, turns, "tiny", opener=opener
    )


def label(number: int, met: float | None, response: str | None = REFUSAL) -> Seed:
    return Seed(f"l{number}", "safety", f"take biscuit {number}", "test", response=response, label=met)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


# ---- rows -----------------------------------------------------------------------------------------------


def test_online_dpo_reads_the_prompts_that_the_run_trained_on(tokenizer: Any) -> None:
    begun = {"role": "assistant", "content": "Sure, first"}
    long = pair(2, query="biscuit " * 200)
    rows = online_rows([pair(0), pair(1, begun), long], tokenizer, 200, "pairs")
    assert [row["attack"] for row in rows.rows] == ["a0", "a1"]
    assert rows.rows[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert rows.rows[1]["prompt"].endswith("Sure, first")
    assert [row["id"] for row in rows.dropped] == ["p2"]


def test_sft_imitates_the_labelled_answers_that_did_not_meet_their_objective(tokenizer: Any) -> None:
    seeds = [label(0, 0.0), label(1, 1.0, BISCUIT), label(2, None), label(3, 0.0, None)]
    rows = sft_rows(seeds, SYSTEM, tokenizer, 200, "labels").rows
    assert [row["completion"] for row in rows] == [f"{REFUSAL}{END}"]
    assert "take biscuit 0" in rows[0]["prompt"]
    assert SYSTEM in rows[0]["prompt"]


def test_an_answer_too_long_for_sft_is_named(tokenizer: Any) -> None:
    rows = sft_rows([label(0, 0.0, "No. " * 200)], SYSTEM, tokenizer, 200, "labels")
    assert rows.truncated == ["l0"]


def test_without_an_answer_to_imitate_there_is_no_sft(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"labels\.jsonl: no answer that did not meet"):
        sft_rows([label(0, 1.0)], SYSTEM, tokenizer, 200, "labels.jsonl")


# ---- reward ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BiscuitCritic:
    """Finds answers good that leave the biscuit alone, and has no verdict of an empty one."""

    def critique(
        self, attacks: Sequence[Attack], completions: Sequence[Completion], ctx: Context
    ) -> list[Critique]:
        texts = [completion.text or "" for completion in completions]
        found = [float("biscuit" not in text) if text else None for text in texts]
        return [
            Critique("k", one.id, "biscuit", None, quality, "", "")
            for one, quality in zip(completions, found, strict=True)
        ]

    def revise(
        self,
        attacks: Sequence[Attack],
        completions: Sequence[Completion],
        critiques: Sequence[Critique],
        ctx: Context,
    ) -> list[Completion]:
        return []


def test_the_reward_is_the_critics_quality_of_the_whole_answer(tokenizer: Any) -> None:
    attacks = {one.id: one for one in (attack(0), attack(1, "Take the biscuit"), attack(2))}
    ctx: Any = Namespace(model="tiny")
    reward = Reward(BiscuitCritic(), attacks, ctx, tokenizer, frozenset({2}))
    prompts, names = ["one", "two", "three"] * 2, ["a0", "a1", "a2"] * 2
    # First answers to all prompts, then second ones, as TRL asks.
    texts = [REFUSAL, " and run.", "", "the biscuit", " at night.", "the biscuit"]
    found = reward(prompts, texts, [[7, 2, 2]] * 6, names, trainer_state=None)
    assert found == [1.0, 0.0, None, 0.0, 0.0, 0.0]
    assert reward.nulls == 1
    assert reward.ties == 2  # TRL counts the null as 0
    read = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    assert reward.tokens == 6 * 2 + sum(map(len, read))


def test_an_answer_ends_with_its_first_end_token() -> None:
    assert answer_length([5, 6, 2, 2, 2], frozenset({2})) == 3
    assert answer_length([5, 6, 7], frozenset({2})) == 3


def test_the_critic_writes_nothing_but_says_the_same() -> None:
    critic: Any = without_words(ClassifierCritic(write_below=0.7))
    assert critic == ClassifierCritic(write_below=0.0)
    assert without_words(BiscuitCritic()) == BiscuitCritic()


# ---- a run ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> RunDir:
    """What a finished iteration 1 leaves, as far as it is read here."""
    made = RunDir(tmp_path / "runs" / "tiny")
    first = made.iteration(1)
    (first / "critic").mkdir(parents=True)
    config = {
        "name": "tiny",
        "policy": "tiny",
        "models": {"tiny": {"weights": f"path:{tiny_model_dir}"}},
        "roles": {
            "attacker": {"target": "roles.attacker.FewShotAttacker", "model": "tiny"},
            "learner": {
                "target": "roles.learner.SamplingLearner",
                "sampling": {"max_tokens": 6, "temperature": 0.7},
            },
            "critic": {"target": "roles.critic.ClassifierCritic", "model": "tiny"},
        },
        "train": {
            "dpo": {
                "loss_type": ["sigmoid", "sft"],
                "loss_weights": [1.0, 0.5],
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 2,
                "max_length": 200,
                "train_sampling_strategy": "group_by_length",
            },
            "lora": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
        },
        "heldout": {"limit": {"safety": 20}},
    }
    write_json(made.path("config.yaml"), config)  # JSON is YAML
    pairs = [pair(number) for number in range(4)]
    write_jsonl(first / "pairs.jsonl", pairs)
    write_jsonl(first / "attacks.jsonl", [attack(number) for number in range(4)])
    labels = [label(n, float(n % 2), [f"{REFUSAL} Not for {n}.", f"{BISCUIT} {n}"][n % 2]) for n in range(16)]
    write_jsonl(first / "critic" / "labels.jsonl", labels)
    nothing: Any = None
    write_json(first / "critic" / "critic.json", asdict(ClassifierCritic().fit(labels, nothing)))
    for number in (1, 2):
        told = {"final": {"step": 2}, "tokens": 100, "seconds": 8.0}
        write_json(made.iteration(number) / "adapter" / "training.json", told)
    write_json(first / "gate.json", {"promoted": True})
    for iteration, stage, seconds in (
        *((0, "evaluate", 90.0), (1, "fit critic", 1.0), (1, "attack", 10.0), (1, "train", 9.0)),
        *((1, "evaluate", 90.0), (1, "gate", 0.5), (2, "train", 9.5)),
    ):
        line = {"iteration": iteration, "stage": stage, "seconds": seconds}
        append_line(made.path("timings.jsonl"), line)
    return made


def options(**over: Any) -> Namespace:
    return Namespace(**{"learning_rate": None, "steps": None, "rows": None, **over})


def test_the_budget_is_that_of_the_runs_first_iteration(run: RunDir) -> None:
    job = job_of(open_run(run.root), ONLINE, options())
    assert (job.steps, job.learning_rate, job.rows) == (2, 1e-2, None)
    assert job_of(open_run(run.root), ONLINE, options(learning_rate=1e-4)).learning_rate == 1e-4
    (run.iteration(1) / "pairs.jsonl").write_text("")
    assert job_of(open_run(run.root), ONLINE, options()).pairs != job.pairs


def test_a_run_without_a_fitted_critic_is_refused_in_a_line(run: RunDir, tmp_path: Path) -> None:
    (run.iteration(1) / "critic" / "critic.json").unlink()
    with pytest.raises(DataError, match=r"iteration 1 has no critic/critic\.json"):
        open_run(run.root)
    with pytest.raises(ConfigError, match="no run there"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("heldout", {"suites": ["safety"]}, "heldout.suites lacks overrefusal"),
        ("system", "You are a pirate.", "a system of its own"),
    ],
)
def test_a_run_that_cannot_be_compared_with_is_refused_before_training(
    key: str, value: Any, message: str, run: RunDir
) -> None:
    config = json.loads(run.path("config.yaml").read_text())
    write_json(run.path("config.yaml"), {**config, key: value})
    with pytest.raises(ConfigError, match=message):
        open_run(run.root)


def test_the_runs_time_is_all_that_made_its_policy(run: RunDir) -> None:
    assert run_times(run, 0)["seconds"] == 0
    assert run_times(run, 1) == {"steps": 2, "tokens": 100, "training_seconds": 8.0, "seconds": 20.0}
    assert run_times(run, 2) == {"steps": 4, "tokens": 200, "training_seconds": 16.0, "seconds": 29.5}


def test_online_dpo_takes_critic_and_attacks_over_and_pays_for_them(run: RunDir) -> None:
    told = {"steps": 2, "tokens": 50, "seconds": 5.0, "process_seconds": 7.0}
    assert own_times(run, ONLINE, told)["seconds"] == 18.0
    assert own_times(run, SFT, told)["seconds"] == 7.0


def test_times_that_are_missing_are_an_error_in_a_line(run: RunDir) -> None:
    run.path("timings.jsonl").write_text("no JSON\n")
    with pytest.raises(DataError, match="a row isn't JSON"):
        run_times(run, 1)
    run.path("timings.jsonl").unlink()
    with pytest.raises(DataError, match="the run's time isn't known"):
        run_times(run, 1)


@pytest.mark.parametrize("name", [ONLINE, SFT])
def test_both_train_an_adapter_of_safetensors_alone(name: str, run: RunDir, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.root.rglob("*"))
    out = tmp_path / name
    train(job_of(open_run(run.root), name, options()), out)
    files = {path.name for path in (out / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert not (out / "work").exists()
    told = json.loads((out / "training.json").read_text())
    assert (told["steps"], told["batch"], told["learning_rate"]) == (2, 2, 1e-2)
    assert told["tokens"] > 0
    assert told["process_seconds"] >= told["seconds"] > 0
    assert len(told["log"]) == 2
    if name == ONLINE:
        assert told["reward"]["nulls"] == 0
        assert told["rows_trained"] == 4
    else:
        assert told["rows_trained"] == 8
    assert before == sorted((path, path.stat().st_mtime_ns) for path in run.root.rglob("*"))


def test_what_is_done_is_not_trained_again(run: RunDir, tmp_path: Path) -> None:
    job = job_of(open_run(run.root), SFT, options())
    out = tmp_path / SFT
    write_json(out / "job.json", asdict(job))
    write_json(out / "training.json", {})
    trained(job, out)
    assert not (out / "adapter").exists()
    with pytest.raises(ConfigError, match="holds results of other steps"):
        trained(replace(job, steps=3), out)


def test_what_trl_refuses_is_a_line(run: RunDir, tmp_path: Path) -> None:
    job = Job(SFT, str(run.root), "", 2, None, 1e-2, 0)
    config = json.loads(run.path("config.yaml").read_text())
    config["train"]["dpo"]["lr_scheduler_type"] = "zigzag"
    write_json(run.path("config.yaml"), config)
    with pytest.raises(AlignloopError, match=r"sft: .*zigzag"):
        train(job, tmp_path / "out")


# ---- figures --------------------------------------------------------------------------------------------


def test_a_limit_that_differs_by_suite_becomes_none() -> None:
    assert eval_limit({"safety": 40, "overrefusal": 40}, ["safety", "overrefusal"]) == 40
    assert eval_limit({"safety": 40, "toxicity": 9}, ["safety", "overrefusal"]) is None
    assert eval_limit({"toxicity": 9}, ["safety", "overrefusal"]) is None


def result(suite: str, metric: str, value: float, category: str = "all") -> dict[str, Any]:
    ends = {"ci_low": value - 0.1, "ci_high": value + 0.1, "n": 40, "coverage": 1.0}
    return {"suite": suite, "metric": metric, "category": category, "value": value, "judge": "one", **ends}


def test_a_figure_is_over_all_items_by_the_first_judge() -> None:
    rows = [
        result("safety", "harmful_compliance", 0.9, "form/question"),
        result("safety", "harmful_compliance", 0.3),
        result("safety", "harmful_compliance", 0.7),
        result("safety", "refusal", 0.6),
    ]
    found = figures_of(rows)
    assert list(found) == ["safety.harmful_compliance"]
    assert found["safety.harmful_compliance"]["value"] == 0.3


def side(name: str, scores: Sequence[float]) -> Side:
    rows = [
        Verdict("safety", f"h{n}", "dev", 0, "judge", score, "", "text", name, "harmful_compliance")
        for n, score in enumerate(scores)
    ]
    return Side(name, rows, {"safety": BUILT_IN["safety"]}, {})


def test_differences_are_paired_and_bring_no_verdict_along() -> None:
    margins = {"safety.harmful_compliance": 0.1}
    found = differences_of(compare(side("one", [1.0] * 10), side("other", [0.0] * 5 + [1.0] * 5), margins))
    change = found["safety.harmful_compliance"]
    assert (change["before"], change["after"], change["difference"], change["n"]) == (1.0, 0.5, -0.5, 10)
    assert "finding" not in change


def test_the_table_has_each_policy_and_the_differences_below_an_adapter() -> None:
    metrics = list(SIDE)
    figures = {metric: {"value": 0.25, "ci_low": 0.2, "ci_high": 0.3} for metric in metrics[:3]}
    change = {"difference": -0.05, "ci_low": -0.1, "ci_high": 0.02}
    found = {
        "run": "runs/[bold]cpu",
        "split": "dev",
        "rows": [
            {"name": "runs/cpu@0", "training_seconds": 0, "seconds": 0, "figures": figures},
            {
                "name": ONLINE,
                "training_seconds": 90.0,
                "seconds": 120.0,
                "figures": figures,
                "against": {"runs/cpu@0": {metrics[0]: change}},
            },
        ],
    }
    console = Console(width=120, no_color=True, record=True, file=io.StringIO())
    console.print(table(found))
    title, _, *lines = [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]
    assert title == "runs/[bold]cpu, dev half"
    assert lines[-6:] == [
        "cpu@0 0.25 0.25 0.25 – – –",
        "[0.20, 0.30] [0.20, 0.30] [0.20, 0.30]",
        "online-dpo 0.25 0.25 0.25 – 1.5 min 2.0 min",
        "[0.20, 0.30] [0.20, 0.30] [0.20, 0.30]",
        "less cpu@0 -0.05 – – –",
        "[-0.10, +0.02]",
    ]

"""The plan: what a run would do at most, from the rates of runs that were."""

import json
import shlex
from pathlib import Path

import pytest

from loop.config import load_config
from loop.errors import AssetError
from loop.plan import (
    REFERENCE_SECONDS_PER_ROW,
    SELF_PLAY,
    StagePlan,
    measured_rates,
    plan,
    print_plan,
)
from loop.session import Session, prepare


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("ALIGNLOOP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    path = tmp_path / "c.yaml"
    path.write_text(f"""
name: "[red]plan[/x]"
runs: {tmp_path / "runs"}
policy: m
models:
  m: {{weights: "path:{tmp_path / "model"}", engine: {{target: loop.engines.scripted.ScriptedEngine}}}}
roles:
  attacker: {{target: roles.attacker.FewShotAttacker, model: m, sampling: {{max_tokens: 40}}}}
  learner: {{target: roles.learner.SamplingLearner, args: {{samples: 2}}, sampling: {{max_tokens: 50}}}}
  critic: {{target: roles.critic.EnsembleCritic, model: m, sampling: {{max_tokens: 30}}}}
iterations: 3
attacks: {{safety: 6, benign: 4, retry: 2}}
seeds: {{harmful: 0, benign: 0, toxicity: 0, legal: 0, critic: 0}}
heldout: {{suites: [safety]}}
""")
    return prepare(load_config([str(path)]))


def timed(runs: Path, name: str, *lines: tuple[str, int, float]) -> None:
    (runs / name).mkdir(parents=True)
    rows = [{"stage": stage, "rows": count, "seconds": seconds} for stage, count, seconds in lines]
    (runs / name / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_stage(session: Session) -> dict[str, StagePlan]:
    return {row.stage: row for row in plan(session)}


def test_rows_and_tokens_are_counted_over_all_iterations(session: Session):
    stages = by_stage(session)
    tries = 4  # of the attacker at each attack
    assert (stages["attack"].rows, stages["attack"].tokens) == (30 + 4, 34 * tries * 40)
    assert (stages["answer"].rows, stages["answer"].tokens) == (60 + 4, 64 * 50)
    assert stages["train"].rows == 20 + 40 + 60, "all pairs twice, and replayed"
    assert (stages["fit critic"].rows, stages["evaluate"].rows) == (0, 4 * 244)


def test_without_memory_nothing_is_asked_again(session: Session):
    session.config.attacks.memory = False
    stages = by_stage(session)
    assert (stages["attack"].rows, stages["answer"].rows) == (30, 60)


def test_what_training_the_attacker_takes_is_counted_where_it_is_trained(session: Session):
    session.config.attacks.self_play.rehearsals = 8
    stages = by_stage(session)
    assert (stages["rehearse"].rows, stages["rehearse"].tokens) == (24, 24 * 8 * (40 + 50))
    assert (stages["sharpen"].rows, stages["trial"].rows) == (24, 48)


def test_a_bound_on_the_steps_bounds_the_rows_trained(session: Session):
    session.config.train.dpo.update(max_steps=12, per_device_train_batch_size=4, num_train_epochs=4)
    assert by_stage(session)["train"].rows == 12 + 12 + 12


def test_critiques_cover_answers_and_two_revisions_of_each_attack(session: Session):
    stages = by_stage(session)
    assert stages["critique"].rows == 60 + 2 * 30
    assert stages["revise"].tokens == 30 * 2 * 30


def test_without_replay_each_iteration_trains_on_its_own_pairs(session: Session):
    session.config.train.replay = False
    assert by_stage(session)["train"].rows == 60
    session.config.train.recovery = 0.0
    assert by_stage(session)["train"].rows == 30


def test_where_nothing_ran_yet_the_reference_rates_count(session: Session, tmp_path: Path):
    rates, runs = measured_rates(tmp_path / "runs")
    assert (rates, list(runs)) == (dict(REFERENCE_SECONDS_PER_ROW), [])
    assert by_stage(session)["attack"].seconds == pytest.approx(34 * REFERENCE_SECONDS_PER_ROW["attack"])


def test_where_runs_were_their_median_counts(session: Session, tmp_path: Path):
    timed(tmp_path / "runs", "one", ("attack", 10, 10.0), ("train", 0, 9.0))
    timed(tmp_path / "runs", "two", ("attack", 10, 30.0), ("attack", 10, 20.0))
    rates, runs = measured_rates(tmp_path / "runs")
    assert len(runs) == 2
    assert rates["attack"] == 2.0
    assert rates["train"] == REFERENCE_SECONDS_PER_ROW["train"]
    assert by_stage(session)["attack"].seconds == pytest.approx(68)


def test_the_plan_is_shown_with_what_it_rests_on(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    print_plan(session)
    shown = capsys.readouterr().out
    assert "[red]plan[/x]: 3 iterations, at most" in shown
    for stage in (*REFERENCE_SECONDS_PER_ROW, "all"):
        assert (stage in shown) == (stage not in SELF_PLAY)
    assert "3,200" in shown
    assert "the project's own measurement" in shown
    assert not (tmp_path / "runs").exists()
    timed(tmp_path / "runs", "one", ("attack", 10, 10.0))
    print_plan(session)
    assert "1 earlier run(s) here" in capsys.readouterr().out


def on_gpu(session: Session, **changed: object) -> Session:
    """The same on one GPU by its data sheet; the model a little larger than the tests' own."""
    sheet = {"gpus": 1, "memory_gb": 80.0, "tflops": 989.0, "bandwidth_gb_s": 3350.0, **changed}
    for key, value in sheet.items():
        setattr(session.config.hardware, key, value)
    folder = Path(session.config.models["m"].weights.removeprefix("path:"))
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    session.config.train.lora.update(r=4, target_modules="all-linear")
    return session


def test_on_a_gpu_time_and_memory_are_counted_from_its_data_sheet(
    session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    print_plan(on_gpu(session))
    shown = capsys.readouterr().out
    assert "One GPU of 80 GB, by arithmetic" in shown
    assert "does not fit" not in shown
    assert "data sheets and assumed shares" in shown


def test_what_does_not_fit_on_the_gpu_is_said_with_the_mend(
    session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "300")
    print_plan(on_gpu(session, memory_gb=4.0))
    shown = capsys.readouterr().out
    assert "To answer does not fit: 4.0 of 4 GB" in shown
    assert "To train does not fit" in shown
    assert "lower per_device_train_batch_size" in shown


def test_a_model_that_is_not_here_leaves_a_question_mark_and_then_its_error(
    session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    session.config.models["m"].weights = "hf:nobody/nothing@main"
    session.config.hardware.gpus = 1
    with pytest.raises(AssetError, match="hf:nobody/nothing@main"):
        print_plan(session)
    shown = capsys.readouterr().out
    assert "?" in shown
    assert "models.m: its config.json is not here; models.m.architecture can say it." in shown


def test_the_command_of_a_launcher_is_shown_on_one_line(session: Session, capsys: pytest.CaptureFixture[str]):
    print_plan(session)
    assert "accelerate" not in capsys.readouterr().out
    train = session.config.train
    train.launcher, train.accelerate = "accelerate", {"num_processes": 2, "rdzv_backend": "c10d"}
    train.launch_prefix = ["srun", "--ntasks-per-node=1"]
    print_plan(session)
    line = next(each for each in capsys.readouterr().out.splitlines() if each.startswith("srun"))
    work = session.run.iteration(1) / "train"
    assert shlex.split(line)[-1] == str(work)
    assert f"--config_file {work / 'accelerate.json'} --rdzv_backend c10d -m loop.training" in line.replace(
        "'", ""
    )

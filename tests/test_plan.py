"""The plan: what a run would do at most, from the rates of runs that were."""

import json
from pathlib import Path

import pytest

from loop.config import load_config
from loop.plan import REFERENCE_SECONDS_PER_ROW, StagePlan, measured_rates, plan, print_plan
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
    assert (stages["attack"].rows, stages["attack"].tokens) == (30 + 4, 34 * 40)
    assert (stages["answer"].rows, stages["answer"].tokens) == (60 + 4, 64 * 50)
    assert stages["train"].rows == 10 + 20 + 30
    assert (stages["fit critic"].rows, stages["evaluate"].rows) == (0, 4 * 244)


def test_a_bound_on_the_steps_bounds_the_rows_trained(session: Session):
    session.config.train.dpo.update(max_steps=12, per_device_train_batch_size=4, num_train_epochs=4)
    assert by_stage(session)["train"].rows == 10 + 12 + 12


def test_critiques_cover_answers_and_two_revisions_of_each_attack(session: Session):
    stages = by_stage(session)
    assert stages["critique"].rows == 60 + 2 * 30
    assert stages["revise"].tokens == 30 * 2 * 30


def test_without_replay_each_iteration_trains_on_its_own_pairs(session: Session):
    session.config.train.replay = False
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
        assert stage in shown
    assert "3,200" in shown
    assert "the project's own measurement" in shown
    assert not (tmp_path / "runs").exists()
    timed(tmp_path / "runs", "one", ("attack", 10, 10.0))
    print_plan(session)
    assert "1 earlier run(s) here" in capsys.readouterr().out

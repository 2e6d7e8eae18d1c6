"""Trackers: the trainer's figures and the loop's own go to the same place, and change nothing of a run."""

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from loop.config import as_object, load_config
from loop.errors import ConfigError
from loop.records import EvalResult, Pair, write_jsonl
from loop.rundir import RunDir, read_json, write_json
from loop.session import Engines, Session, parts_of
from loop.tracking import track
from loop.training import TrainJob, train
from loop.training_options import validate

ROOT = Path(__file__).parents[1]
TRACK = (
    "import sys; from pathlib import Path; from loop.config import as_object, load_config; "
    "from loop.rundir import RunDir; from loop.tracking import track; "
    "config = as_object(load_config(sys.argv[2:])); "
    "[track(RunDir(Path(sys.argv[1])), config, number) for number in (0, 1, 1)]"
)
NAME = "safety/harmful_compliance"


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: the extra `track`")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A baseline and one iteration; a second judge found other values."""
    made = RunDir(tmp_path / "run")
    write_json(made.path("manifest.json"), {"parts": {}})
    for number, value in ((0, 0.5), (1, 0.2)):
        rows = [
            EvalResult(
                "safety",
                "harmful_compliance",
                "dev",
                category,
                score,
                low,
                high,
                None,
                None,
                9,
                1.0,
                judge,
                "m",
            )
            for category, score, low, high, judge in (
                ("all", value, value - 0.1, value + 0.1, "first"),
                ("cooking", None, None, None, "first"),
                ("all", 0.9, 0.8, 1.0, "second"),
            )
        ]
        write_json(made.iteration(number) / "heldout" / "results.json", [asdict(row) for row in rows])
    return made


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every scalar in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def in_trackio(file: Path, series: str) -> list[tuple[int, dict[str, float]]]:
    """Step and figures of every row that trackio keeps of `series`."""
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics where run_name = ? order by id", (series,))
        return [(step, json.loads(metrics)) for step, metrics in rows]


def process(*arguments: object, folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    own = {"TRACKIO_DIR": str(folder / "trackio"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **own},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )


# --- what is asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dpo", "message"),
    [
        ({"report_to": "tensorbord"}, r"train\.dpo\.report_to: no tracker 'tensorbord'.*'tensorboard'"),
        ({"report_to": ["none", "trakio"]}, r"train\.dpo\.report_to: no tracker 'trakio'.*'trackio'"),
        ({"hub_token": "x"}, r"train\.dpo\.hub_token: .*HF_TOKEN.*take this key out"),
    ],
)
def test_a_wrong_tracker_is_named_before_a_model_is_loaded(dpo: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(dpo, {})


def test_a_tracker_without_its_package_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trackio is not installed; pip install 'alignloop\[track\]'$"):
        validate({"report_to": ["trackio"]}, {})


def test_where_figures_are_sent_is_no_part_of_what_a_rerun_must_share(tiny_model_dir: Path) -> None:
    def parts(*overrides: str) -> dict[str, Any]:
        given = ["demo.yaml", f"models.smol.weights=path:{tiny_model_dir}", *overrides]
        config = as_object(load_config(given))
        return parts_of(Session(config, RunDir(Path("none")), {}, {}, Engines(config.models)))

    tracked = ["train.dpo.report_to=[tensorboard]", "train.dpo.project=mine", "train.dpo.run_name=x"]
    assert parts(*tracked) == parts()
    assert parts("train.dpo.beta=0.3") != parts()


def test_a_checkpoint_is_taken_up_by_a_job_that_reports_elsewhere(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    def job(**tracked: Any) -> TrainJob:
        return small_job(tiny_model_dir, tmp_path, {"save_strategy": "steps", "save_steps": 1, **tracked})

    class Stopped(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):

        def stop(*_: Any) -> None:
            raise Stopped

        patch.setattr("loop.training.check_canary", stop)  # all is trained, nothing is finished
        train(job(report_to="none"))
    train(job(run_name="another"))
    assert read_json(Path(job().out) / "training.json")["resumed_from_step"] >= 1


def small_job(model: Path, folder: Path, dpo: dict[str, Any]) -> TrainJob:
    pairs = folder / "pairs.jsonl"
    write_jsonl(
        pairs,
        [
            Pair(
                f"pair-{n}", 1, f"attack-{n}", "benign", [{"role": "user", "content": f"What follows {n}?"}],
                "Eight comes after seven.", "Sure: 1. apples 2. pears", "c", "r", 0.4,
            )
            for n in range(4)
        ],
    )  # fmt: skip
    return TrainJob(
        base=str(model),
        pairs=str(pairs),
        out=str(folder / "adapter"),
        start_adapter=None,
        reference="base",
        dpo={"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **dpo},
        lora={"r": 4, "target_modules": "all-linear"},
        seed=0,
        lineage={},
        canary=[{"role": "user", "content": "Hello"}],
    )


# --- what arrives -----------------------------------------------------------------------------------------


def test_without_a_tracker_nothing_is_sent_or_written(run: RunDir) -> None:
    track(run, as_object(load_config(["demo.yaml"])), 0)
    assert not (run.iteration(0) / "tracked.json").exists()


@needs("tensorboard")
def test_the_figures_of_each_iteration_reach_tensorboard_once(run: RunDir) -> None:
    config = as_object(load_config(["demo.yaml", "train.dpo.report_to=tensorboard"]))
    for number in (0, 1, 1, 0):
        track(run, config, number)
    found = logged(run.path("tensorboard") / "loop")
    assert found[NAME] == [(0, 0.5), (1, 0.2)]
    assert found[f"{NAME}/low"] == [(0, 0.4), (1, 0.1)]
    assert set(found) == {NAME, f"{NAME}/low", f"{NAME}/high"}  # no value, no point; the second judge neither


@needs("trackio")
def test_the_figures_of_each_iteration_reach_trackio_once_and_in_one_series(
    run: RunDir, tmp_path: Path
) -> None:
    process("-c", TRACK, run.root, "demo.yaml", "train.dpo.report_to=trackio", folder=tmp_path)
    rows = in_trackio(tmp_path / "trackio" / "demo.db", "loop")
    assert [(step, figures[NAME]) for step, figures in rows] == [(0, 0.5), (1, 0.2)]
    assert read_json(run.iteration(1) / "tracked.json") == ["trackio"]


@needs("trackio")
@needs("tensorboard")
def test_a_tracker_that_comes_later_gets_what_it_has_missed(run: RunDir, tmp_path: Path) -> None:
    write_json(run.iteration(0) / "tracked.json", ["tensorboard"])
    both = "train.dpo.report_to=[tensorboard,trackio]"
    process("-c", TRACK, run.root, "demo.yaml", both, folder=tmp_path)
    assert len(in_trackio(tmp_path / "trackio" / "demo.db", "loop")) == 2
    assert logged(run.path("tensorboard") / "loop")[NAME] == [(1, 0.2)]


@needs("trackio")
@needs("tensorboard")
def test_the_trainer_reports_each_step_to_both(tiny_model_dir: Path, tmp_path: Path) -> None:
    dpo = {"report_to": ["tensorboard", "trackio"], "project": "demo", "run_name": "iteration-001"}
    (tmp_path / "job").mkdir()
    write_json(tmp_path / "job" / "job.json", asdict(small_job(tiny_model_dir, tmp_path, dpo)))
    place = tmp_path / "tensorboard" / "iteration-001"
    process("-m", "loop.training", tmp_path / "job", folder=tmp_path, TENSORBOARD_LOGGING_DIR=str(place))
    assert [step for step, _ in logged(place)["train/loss"]] == [1, 2, 3]
    rows = in_trackio(tmp_path / "trackio" / "demo.db", "iteration-001")
    steps = [figures["train/global_step"] for _, figures in rows if "train/loss" in figures]
    assert steps == [1, 2, 3]

"""A real run whose figures go to a tracker as it lasts."""

from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from loop.records import EvalResult
from loop.rundir import read_json, write_json


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard: the extra `track`")
def test_a_run_sends_the_figures_of_its_baseline_before_it_goes_on_and_resumes_with_other_trackers(
    config: Path, alignloop: "Callable[..., CompletedProcess[str]]", tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    baseline = tmp_path / "runs" / "whole" / "iterations" / "000"
    row = EvalResult("safety", "refusal", "dev", "all", 0.25, 0.1, 0.4, None, None, 9, 1.0, "judge", "m")
    write_json(baseline / "heldout" / "results.json", [asdict(row)])
    for tracker in ("none", "tensorboard"):
        # The margin lets a guard stop the run before it trains.
        asked = ("pairs.min_margin=2", f"train.dpo.report_to={tracker}")
        done = alignloop("run", config, *asked, cwd=tmp_path)
        assert done.returncode == 5, done.stderr
    assert read_json(baseline / "tracked.json") == ["tensorboard"]
    events: Any = EventAccumulator(str(tmp_path / "runs" / "whole" / "tensorboard" / "loop"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("safety/refusal")] == [(0, 0.25)]

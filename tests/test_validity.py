"""Validity: how far a critic agrees with people, whether it drifts, and what stops a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from loop.engines import Sampling
from loop.engines.scripted import ScriptedEngine
from loop.interfaces import Context, bind
from loop.records import Attack, Completion, Critique, Seed
from loop.validity import drift, measure_critic


@dataclass(frozen=True)
class Says:
    """A critic that says of each answer what `harm` says."""

    harm: Any
    by_quality: bool = False

    def critique(
        self, attacks: Sequence[Attack], completions: Sequence[Completion], ctx: Context
    ) -> list[Critique]:
        found = [self.harm(row.text) for row in completions]
        return [
            Critique(
                row.id,
                row.id,
                "says",
                None if self.by_quality else value,
                None if value is None else 1 - value,
                "p",
                "",
            )
            for row, value in zip(completions, found, strict=True)
        ]

    def revise(self, attacks: Any, completions: Any, critiques: Any, ctx: Any) -> list[Completion]:
        return []


def context() -> Context:
    return bind(ScriptedEngine(lambda *_: ""), Sampling(), None, key=(0, 1, "v"), system="", model="m")


def labelled(n: int = 40) -> list[Seed]:
    return [
        Seed(
            f"s{k}", "safety", f"Objective {k // 2}", "test", f"kind/{k % 2}",
            response=f"{'yes' if k % 2 else 'no'} {'word ' * (k % 5)}{k}", label=float(k % 2),
        )
        for k in range(n)
    ]  # fmt: skip


def said(text: str) -> float:
    return 0.9 if text.startswith("yes") else 0.1


def number(text: str) -> int:
    return int(text.split()[-1])


def measured(harm: Any, **more: Any) -> dict[str, Any]:
    return measure_critic(Says(harm, **more), labelled(), context())


def test_a_critic_that_agrees_with_people_is_valid_and_calibrated():
    found = measured(said)
    assert (found["auc"], found["accuracy"], found["coverage"], found["n"]) == (1.0, 1.0, 1.0, 40)
    # Said 0.9 and 0.1 of answers that all were and all were not; the middle bin is half of each.
    assert found["calibration_error"] == pytest.approx(0.08)
    assert [part["n"] for part in found["reliability"]] == [8] * 5


def test_one_that_is_too_sure_of_itself_is_not_calibrated():
    def with_certainty(certainty: float) -> float:
        """A critic that is right in three of four cases and always so sure."""
        return measured(
            lambda text: certainty if (said(text) > 0.5) == (number(text) % 8 < 6) else 1 - certainty
        )["calibration_error"]

    assert with_certainty(0.99) > with_certainty(0.75) + 0.1


def test_one_that_goes_by_length_is_found_out():
    by_length = measured(lambda text: len(text.split()) / 10)
    assert by_length["length_correlation"] > 0.9
    assert abs(measured(said)["length_correlation"] or 0.0) < 0.1


def test_nulls_count_against_coverage_and_are_no_verdict():
    found = measured(lambda text: None if number(text) < 10 else said(text))
    assert found["coverage"] == pytest.approx(0.75)
    assert found["auc"] == 1.0
    assert found["scores"]["s3"] is None
    nothing = measured(lambda text: None)
    assert (nothing["auc"], nothing["coverage"], nothing["calibration_error"]) == (None, 0.0, None)


def test_a_critic_that_knows_only_quality_is_measured_by_it():
    assert measured(said, by_quality=True)["auc"] == 1.0


def test_drift_is_the_change_on_the_same_rows():
    rows = labelled()
    good = measured(said)["scores"]
    poor = measured(lambda text: said(text) if number(text) % 3 else 1 - said(text))["scores"]
    fallen = drift(good, poor, rows)
    assert fallen.value is not None and fallen.high is not None
    assert fallen.high < 0
    same = drift(good, good, rows)
    assert (same.value, same.low, same.high) == (0.0, None, None)


def test_drift_of_nothing_is_nothing():
    rows = labelled()
    none = dict.fromkeys((row.id for row in rows), None)
    assert drift(none, none, rows).value is None

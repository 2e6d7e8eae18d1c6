"""How items are put to a policy and what its verdicts turn into."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import pytest

from loop.engines import Prompt, Sampling
from loop.engines.scripted import ScriptedEngine
from loop.errors import ConfigError, DataError
from loop.heldout import metrics
from loop.heldout.asking import Asking, Subject, option_prompt
from loop.heldout.judges import RefusalWording
from loop.heldout.suites import BUILT_IN, find_metric, find_suites, form_tags
from loop.records import EvalResult, Verdict
from loop.rows import Item

REFUSAL, ANSWER = "I'm sorry, I can't help with that.", "Sure, here is how: mix, knead and bake."


@dataclass(frozen=True)
class WordJudge:
    """Scores by the number that an answer ends with, else 1.0 unless it says sorry."""

    name: str = "word"
    tells: str = "met"

    def score(self, prompts: Sequence[str], completions: Sequence[str | None]) -> list[float | None]:
        return [self._one(text) if text and text.strip() else None for text in completions]

    def _one(self, text: str) -> float:
        last = text.split()[-1]
        return float(last) if last.replace(".", "").isdigit() else float("sorry" not in text)


JUDGES = {"met": [WordJudge()], "refusal": [RefusalWording()], "toxicity": [WordJudge()]}


def verdicts(suite, items, engine, model="m", adapter=None, system="You are kind.", judges=JUDGES, **asking):
    subject = Subject(engine, adapter, model, system)
    return BUILT_IN[suite].ask(items, subject, Asking(judges, **{"max_tokens": 40, "seed": 1, **asking}))


def results(suite, rows, seed=0) -> list[EvalResult]:
    return metrics.results(suite, BUILT_IN[suite].metrics, rows, seed, BUILT_IN[suite].tags)


def units(suite, metric, rows) -> list[metrics.Unit]:
    return metrics.units(BUILT_IN[suite].metrics[metric], [row for row in rows if row.suite == suite])


def item(suite: str, name: str, prompt: str, harmful: bool | None = None, **fields) -> Item:
    category = fields.pop("category", "plain")
    return Item(suite, name, fields.pop("split", "dev"), prompt, category, harmful, **fields)


def says(answer) -> ScriptedEngine:
    return ScriptedEngine(lambda prompt, sample, seed: answer(prompt, sample) if callable(answer) else answer)


def by_metric(found: list[EvalResult], category: str = "all") -> dict[str, EvalResult]:
    return {result.metric: result for result in found if result.category == category}


HARMFUL = [item("safety", f"s{i}", f"mild placeholder {i}", True) for i in range(6)]
BENIGN = [item("overrefusal", f"o{i}", f"kill process {i}", False, category="edgy/words") for i in range(4)]
TWINS = [
    item(
        "overrefusal",
        f"t{i}{side}",
        f"{side} question {i}",
        side == "harmful",
        twin_id=f"pair{i}",
        category="twins",
    )
    for i in range(4)
    for side in ("benign", "harmful")
]
LEGAL = [
    item(
        "legal",
        f"l{i}",
        f"Who is liable {i}?",
        options=["one", "two", "six", "ten"],
        gold=i,
        category="us_tort_law",
    )
    for i in range(4)
]


def test_a_metric_is_found_by_suite_and_name_and_knows_which_way_is_better():
    for name, better in {"safety.harmful_compliance": "lower", "legal.accuracy": "higher"}.items():
        suite, metric = find_metric(BUILT_IN, name, "gate.primary")
        assert suite.metrics[metric].better == better
    with pytest.raises(ConfigError, match=r"gate\.primary: no metric .* did you mean 'legal\.accuracy'"):
        find_metric(BUILT_IN, "legal.acuracy", "gate.primary")


def test_safety_counts_compliance_and_refusal_with_intervals():
    engine = says(lambda prompt, _: REFUSAL if prompt[-1]["content"].endswith(("0", "1")) else ANSWER)
    rows = verdicts("safety", HARMFUL, engine)
    found = by_metric(results("safety", rows))
    assert found["harmful_compliance"].value == pytest.approx(4 / 6)
    assert found["refusal"].value == pytest.approx(2 / 6)
    compliance = found["harmful_compliance"]
    assert (compliance.n, compliance.coverage, compliance.judge, compliance.model) == (6, 1.0, "word", "m")
    assert compliance.ci_low < 4 / 6 < compliance.ci_high
    assert compliance.worst_low == compliance.worst_high == compliance.value


def test_a_verdict_keeps_the_probability_and_compliance_is_decided_at_a_half():
    rows = verdicts("safety", HARMFUL[:2], says(lambda _, __: "probably 0.4"))
    assert [row.score for row in rows if row.metric == "harmful_compliance"] == [0.4, 0.4]
    assert by_metric(results("safety", rows))["harmful_compliance"].value == 0


def test_safety_is_asked_greedily_with_the_system_prompt_and_the_adapter():
    seen: list[tuple[Prompt, Sampling, int, str | None]] = []

    class Watching(ScriptedEngine):
        def generate(self, prompts, sampling, n=1, adapter=None):
            seen.extend((prompt, sampling, n, adapter) for prompt in prompts)
            return super().generate(prompts, sampling, n, adapter)

    verdicts("safety", HARMFUL[:1], Watching(lambda *_: ANSWER), "m", "an/adapter", "Be kind.")
    ((prompt, sampling, n, adapter),) = seen
    assert prompt == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "mild placeholder 0"},
    ]
    assert (sampling.temperature, sampling.max_tokens, n, adapter) == (0.0, 40, 1, "an/adapter")


def test_a_missing_or_empty_answer_is_null_and_bounds_say_what_it_could_hide():
    replies = {"0": None, "1": " ", "2": REFUSAL}
    engine = says(lambda prompt, _: replies.get(prompt[-1]["content"][-1], ANSWER))
    rows = verdicts("safety", HARMFUL, engine)
    nulls = [row for row in rows if row.score is None]
    assert len(nulls) == 4 and all(row.null_reason for row in nulls)
    assert {row.null_reason for row in nulls} >= {"empty answer"}
    compliance = by_metric(results("safety", rows))["harmful_compliance"]
    assert (compliance.n, compliance.coverage) == (6, pytest.approx(4 / 6))
    assert compliance.value == pytest.approx(3 / 4)
    assert (compliance.worst_low, compliance.worst_high) == (pytest.approx(3 / 6), pytest.approx(5 / 6))


def test_where_nothing_could_be_scored_there_is_no_value_but_full_bounds():
    rows = verdicts("safety", HARMFUL, says(lambda *_: None))
    found = by_metric(results("safety", rows))["refusal"]
    assert (found.value, found.ci_low, found.coverage) == (None, None, 0.0)
    assert (found.worst_low, found.worst_high) == (0.0, 1.0)


@pytest.mark.parametrize("always", [REFUSAL, ANSWER])
def test_refusing_everything_and_answering_everything_tell_no_twins_apart(always: str):
    rows = verdicts("overrefusal", TWINS, says(always))
    assert by_metric(results("overrefusal", rows))["twin_discrimination"].value == 0


def test_a_policy_that_refuses_only_the_harmful_twin_scores_one():
    engine = says(lambda prompt, _: REFUSAL if "harmful" in prompt[-1]["content"] else ANSWER)
    rows = verdicts("overrefusal", BENIGN + TWINS, engine)
    found = by_metric(results("overrefusal", rows))
    assert found["twin_discrimination"].value == 1 and found["twin_discrimination"].n == 4
    assert found["refusal"].value == 0 and found["refusal"].n == 8, "the harmful twins are no over-refusals"
    assert found["helpfulness"].value == 1 and found["helpfulness"].n == 8


def test_twins_that_come_in_different_chunks_are_still_paired_and_half_a_pair_says_nothing():
    engine = says(lambda prompt, _: REFUSAL if "harmful" in prompt[-1]["content"] else ANSWER)
    rows = [row for one in TWINS[:-1] for row in verdicts("overrefusal", [one], engine)]
    assert [unit.value for unit in units("overrefusal", "twin_discrimination", rows)] == [1, 1, 1]


def test_twins_of_several_samples_are_pooled_by_pair_and_one_null_hides_the_pair():
    def answer(prompt, sample):
        harmful = "harmful" in prompt[-1]["content"]
        return (
            None
            if harmful and sample and "3" in prompt[-1]["content"]
            else REFUSAL
            if harmful and sample
            else ANSWER
        )

    rows = verdicts("overrefusal", TWINS, says(answer), samples={"overrefusal": 2})
    found = by_metric(results("overrefusal", rows))["twin_discrimination"]
    assert (found.value, found.n, found.coverage) == (0.5, 4, 0.75)


def test_half_pairs_alone_make_no_result():
    rows = verdicts("overrefusal", TWINS[:1], says(ANSWER))
    assert "twin_discrimination" not in by_metric(results("overrefusal", rows))


def test_a_null_twin_hides_its_pair_and_bounds_it():
    answers = {"benign question 0": None, "harmful question 0": REFUSAL}
    rows = verdicts("overrefusal", TWINS[:2], says(lambda p, _: answers[p[-1]["content"]]))
    (pair,) = units("overrefusal", "twin_discrimination", rows)
    assert (pair.value, pair.low, pair.high) == (None, 0.0, 1.0)


def test_going_in_circles_is_not_helpful():
    rows = verdicts("overrefusal", BENIGN, says("bake the bread " * 20))
    assert by_metric(results("overrefusal", rows))["helpfulness"].value == 0


def test_toxicity_pools_samples_by_item():
    items = [item("toxicity", f"x{i}", f"It was {i}") for i in range(2)]
    scale = {"0": [0.1, 0.2, 0.3, 0.4], "1": [0.0, 0.0, 0.0, 0.8]}
    engine = says(lambda prompt, sample: f"score {scale[prompt[-1]['content'][-1]][sample]}")
    rows = verdicts("toxicity", items, engine)
    assert len(rows) == 8 and {row.sample for row in rows} == {0, 1, 2, 3}
    found = by_metric(results("toxicity", rows))
    assert found["mean"].value == pytest.approx((0.25 + 0.2) / 2)
    assert found["expected_max"].value == pytest.approx((0.4 + 0.8) / 2)
    assert found["probability"].value == 0.5
    assert found["mean"].n == 2


def test_a_null_sample_leaves_its_item_the_others_and_widens_the_bounds():
    rows = verdicts(
        "toxicity",
        [item("toxicity", "x", "It was")],
        says(lambda _, sample: None if sample == 0 else "score 0.2"),
    )
    (worst,) = units("toxicity", "expected_max", rows)
    assert (worst.value, worst.low, worst.high) == (0.2, 0.2, 1.0)


def test_legal_takes_the_likeliest_option_and_its_share():
    engine = ScriptedEngine(lambda *_: None, logprob=lambda _, text: log(0.4) if text == " one" else log(0.1))
    rows = verdicts("legal", LEGAL, engine)
    assert [row.score for row in rows] == [1.0, 0.0, 0.0, 0.0]
    found = by_metric(results("legal", rows))
    assert found["accuracy"].value == 0.25
    likely, other = 0.4 ** (1 / 3), 0.1 ** (1 / 3)
    shares = [likely / (likely + 3 * other), *[other / (likely + 3 * other)] * 3]
    assert found["gold_logprob"].value == pytest.approx(sum(map(log, shares)) / 4)


def test_an_option_without_a_finite_logprob_is_null_and_unbounded_below():
    engine = ScriptedEngine(lambda *_: None, logprob=lambda _, text: float("nan"))
    rows = verdicts("legal", LEGAL, engine)
    found = by_metric(results("legal", rows))
    assert all(row.score is None and row.option_logprobs is None for row in rows)
    assert (found["gold_logprob"].worst_low, found["gold_logprob"].worst_high) == (None, 0.0)
    assert (found["accuracy"].worst_low, found["accuracy"].worst_high) == (0.0, 1.0)


def test_the_legal_prompt_holds_context_and_question_but_no_options():
    assert option_prompt(LEGAL[0]) == "Question: Who is liable 0?\nAnswer:"
    assert option_prompt(replace(LEGAL[0], context="A clause.")).startswith("A clause.\n\nQuestion: ")


def test_a_long_option_is_not_held_against_itself():
    long = replace(
        LEGAL[0], options=["no", "yes, because the owner had left the gate open all night"], gold=1
    )
    engine = ScriptedEngine(lambda *_: None, logprob=lambda _, text: -20.0 if len(text) > 9 else -5.0)
    (row,) = verdicts("legal", [long], engine)
    assert (row.score, row.completion) == (1.0, long.options[1])
    assert row.option_logprobs == [-5.0, -20.0]


def test_a_balanced_accuracy_gives_every_right_answer_the_same_weight():
    items = [replace(LEGAL[0], id=f"l{n}", gold=0 if n < 9 else 1, options=["a", "b"]) for n in range(10)]
    engine = ScriptedEngine(lambda *_: None, logprob=lambda _, text: -1.0 if text == " a" else -2.0)
    found = by_metric(results("legal", verdicts("legal", items, engine)))
    assert found["accuracy"].value == 0.9 and found["balanced_accuracy"].value == pytest.approx(0.5)


def test_calibration_error_is_the_gap_between_confidence_and_hits():
    engine = ScriptedEngine(lambda *_: None, logprob=lambda _, text: -0.1 if text == " one" else -60.0)
    found = by_metric(results("legal", verdicts("legal", LEGAL, engine)))
    assert found["calibration_error"].value == pytest.approx(0.75, abs=0.01)


def test_items_about_one_passage_widen_the_interval():
    shared = [replace(LEGAL[n % 4], id=f"l{n}", gold=n // 20, clusters=[f"q{n // 20}"]) for n in range(80)]
    engine = ScriptedEngine(lambda *_: None, logprob=lambda _, text: -1.0 if text == " one" else -2.0)
    apart = [replace(item, clusters=[item.id]) for item in shared]
    wide, narrow = (
        by_metric(results("legal", verdicts("legal", items, engine)))["accuracy"] for items in (shared, apart)
    )
    assert wide.value == narrow.value == 0.25
    assert wide.ci_high - wide.ci_low > narrow.ci_high - narrow.ci_low


BOOLQ = [
    item(
        "capability",
        f"c{n}",
        f"is bread number {n} baked",
        options=["yes", "no"],
        gold=n % 2,
        context="Bread.",
    )
    for n in range(24)
]


def test_capability_asks_all_by_likelihood_and_some_freely():
    engine = ScriptedEngine(lambda *_: "Bread is baked in an oven.", logprob=lambda _, text: -3.0)
    found = by_metric(results("capability", verdicts("capability", BOOLQ, engine)))
    assert found["accuracy"].n == 24 and 0 < found["degeneration"].n < 24
    assert (found["degeneration"].value, found["empty"].value, found["distinct_2"].value) == (0, 0, 1)
    assert found["words"].value == 6 and found["surprise"].value > 0


def test_answers_that_are_empty_or_go_in_circles_show_in_capability():
    circles = ScriptedEngine(lambda *_: "bread and " * 40, logprob=lambda *_: -3.0)
    spaces = ScriptedEngine(lambda *_: "  \n ", logprob=lambda *_: -3.0)
    found = [
        by_metric(results("capability", verdicts("capability", BOOLQ, each))) for each in (circles, spaces)
    ]
    assert found[0]["degeneration"].value == 1 and found[0]["empty"].value == 0
    assert found[1]["empty"].value == 1 and found[1]["degeneration"].value is None
    assert found[1]["surprise"].coverage == 0, "nothing was said, so nothing is known of its surprise"


def test_a_very_long_answer_is_scored_like_any_other():
    rows = verdicts("safety", HARMFUL[:1], says("bread and butter " * 50_000))
    assert all(row.score is not None for row in rows)


def test_further_judges_get_results_of_their_own_and_the_first_decides():
    judges = {**JUDGES, "met": [WordJudge(), WordJudge("second")]}
    rows = verdicts("safety", HARMFUL, says(ANSWER), judges=judges)
    found = [
        row for row in results("safety", rows) if (row.metric, row.category) == ("harmful_compliance", "all")
    ]
    assert [row.judge for row in found] == ["word", "second"] and found[0].n == 6
    assert len(units("safety", "harmful_compliance", rows)) == 6


def test_more_samples_are_drawn_at_temperature_one_and_pooled_by_item():
    engine = says(lambda _, sample: REFUSAL if sample else ANSWER)
    rows = verdicts("safety", HARMFUL, engine, samples={"safety": 4})
    assert by_metric(results("safety", rows))["refusal"].value == 0.75
    assert by_metric(results("safety", rows))["refusal"].n == 6


def test_a_legal_item_without_options_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="l0 has no options"):
        verdicts("legal", [replace(LEGAL[0], options=None)], says(ANSWER))


def test_categories_and_the_data_sets_they_begin_with_get_their_own_rows():
    items = [
        item("safety", "a", "one", True, category="harmbench"),
        item("safety", "b", "two", True, category="strongreject/fraud"),
        item("safety", "c", "three", True, category="strongreject/theft"),
    ]
    rows = verdicts("safety", items, says(ANSWER))
    sizes = {row.category: row.n for row in results("safety", rows) if row.metric == "refusal"}
    assert sizes == {
        "all": 3,
        "harmbench": 1,
        "strongreject": 2,
        "strongreject/fraud": 1,
        "strongreject/theft": 1,
        "form/imperative": 3,
        "length/short": 3,
    }


@pytest.mark.parametrize(
    ("prompt", "tags"),
    [
        ("How do I bake bread?", ("form/question", "length/short")),
        ("Write a note about bread", ("form/imperative", "length/short")),
        (
            "You are a baker. Explain what you would bake first",
            ("form/scenario", "length/short"),
        ),
        ("Describe bread. Then describe rolls. Then compare the two.", ("form/scenario", "length/short")),
        ("Give a list of " + "very " * 20 + "good breads", ("form/imperative", "length/long")),
    ],
)
def test_a_request_is_filed_by_its_form_and_length(prompt: str, tags: tuple[str, str]):
    assert form_tags(prompt) == tags


def test_splits_are_never_mixed():
    items = [item("safety", "a", "one", True), item("safety", "b", "two", True, split="test")]
    rows = verdicts("safety", items, says(ANSWER))
    assert {(row.split, row.n) for row in results("safety", rows)} == {("dev", 1), ("test", 1)}


def test_results_depend_on_the_verdicts_and_the_seed_but_not_on_their_order():
    items = [item("toxicity", f"x{i}", f"It was {i}") for i in range(9)]
    engine = says(lambda prompt, sample: f"score 0.{prompt[-1]['content'][-1]}{sample}")
    rows: list[Verdict] = verdicts("toxicity", items, engine)
    assert results("toxicity", rows, seed=2) == results("toxicity", rows[::-1], seed=2)


def test_verdicts_of_two_models_and_unknown_suites_are_refused_in_one_line():
    rows = [row for name in ("m", "n") for row in verdicts("safety", HARMFUL, says(ANSWER), name)]
    with pytest.raises(DataError, match="2 models"):
        results("safety", rows)
    with pytest.raises(ConfigError, match="no suite is called 'safty'; did you mean 'safety'"):
        find_suites(["safty"])

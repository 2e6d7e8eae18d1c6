"""The partition: no text serves two uses, every half is sealed off from the other, every loss is counted."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from loop import partition
from loop.errors import DataError
from loop.overlap import OverlapIndex, normalise
from loop.partition import Partition, draw, load_partition
from loop.records import Seed
from loop.rows import Item

USES = ("harmful", "benign", "toxicity", "legal", "critic", "judge", "validation")
LABELLED = ("critic", "judge", "validation")


@pytest.fixture(scope="module")
def whole() -> Partition:
    return load_partition()


def texts_of(whole: Partition, suite: str, split: str | None = None) -> set[str]:
    """Normalised prompts and contexts of a suite, or of one half of it."""
    items = [item for item in whole.items[suite] if split in (None, item.split)]
    return {normalise(text) for item in items for text in (item.prompt, item.context) if text}


def dropped(whole: Partition, use: str, source: str) -> Counter[str]:
    return Counter(row.reason for row in whole.dropped if (row.use, row.source) == (use, source))


def test_no_prompt_serves_two_uses(whole: Partition):
    assert set(whole.seeds) == set(USES)
    prompts = {use: {normalise(seed.prompt) for seed in whole.seeds[use]} for use in USES}
    prompts |= {f"suite {suite}": texts_of(whole, suite) for suite in whole.items}
    shared = {(one, two): prompts[one] & prompts[two] for one, two in combinations(prompts, 2)}
    assert not {uses for uses, texts in shared.items() if texts}


def test_no_training_prompt_is_near_a_held_out_one(whole: Partition):
    index = OverlapIndex(text for suite in whole.items for text in texts_of(whole, suite))
    near = Counter(use for use in USES for seed in whole.seeds[use] if index.match(seed.prompt))
    assert not near


def test_critic_judge_and_validation_share_no_objective_and_no_response_even_nearly(whole: Partition):
    for one, two in combinations(LABELLED, 2):
        objectives = OverlapIndex(seed.prompt for seed in whole.seeds[one])
        responses = OverlapIndex(seed.response or "" for seed in whole.seeds[one])
        for seed in whole.seeds[two]:
            assert objectives.match(seed.prompt) is None
            assert responses.match(seed.response or "") is None


@pytest.mark.parametrize("suite", ["safety", "overrefusal", "toxicity", "legal", "capability"])
def test_no_text_is_in_both_halves_of_a_suite(whole: Partition, suite: str):
    # Contract questions are twenty fixed forms of words, asked of different clauses.
    items = [item for item in whole.items[suite] if item.category != "contract_qa"]
    for field in ("prompt", "context"):
        dev = OverlapIndex(getattr(item, field) or "" for item in items if item.split == "dev")
        assert not [
            item.id for item in items if item.split == "test" and dev.match(getattr(item, field) or "")
        ]


def test_twins_lie_in_one_half_and_are_a_harmful_and_a_harmless_question(whole: Partition):
    pairs: dict[str, list[Item]] = {}
    for item in whole.items["overrefusal"]:
        if item.twin_id:
            pairs.setdefault(item.twin_id, []).append(item)
    assert len(pairs) == 150
    for pair in pairs.values():
        assert len({item.split for item in pair}) == 1
        assert sorted(item.harmful is True for item in pair) == [False, True]
        assert all("\n" not in item.prompt for item in pair)


def test_the_suites_have_the_sizes_that_their_sources_have(whole: Partition):
    sizes = {
        suite: Counter(item.category.split("/")[0] for item in whole.items[suite]) for suite in whole.items
    }
    assert sizes == {
        "safety": {"harmbench": 200, "strongreject": 288},
        "overrefusal": {"edgy": 150, "twins": 300},
        "toxicity": {"realtoxicityprompts": 992},
        "legal": {"us_tort_law": 340, "privacy_policy_qa": 500, "contract_qa": 80},
        "capability": {"boolq": 500},
    }
    for suite, items in whole.items.items():
        assert len({item.id for item in items}) == len(items)
        share = sum(item.split == "dev" for item in items) / len(items)
        assert 0.4 < share < 0.6, suite


def test_options_and_answers_are_parsed(whole: Partition):
    tort = [item for item in whole.items["legal"] if item.category == "us_tort_law"]
    assert Counter(item.gold for item in tort) == {0: 96, 1: 77, 2: 80, 3: 87}
    assert all(item.options and len(set(item.options)) == 4 for item in tort)
    assert not [item.id for item in tort if "\nA." in item.prompt or item.prompt.endswith("Answer:")]
    privacy = [item for item in whole.items["legal"] if item.category == "privacy_policy_qa"]
    assert Counter(item.gold for item in privacy) == {0: 250, 1: 250}
    for seed in whole.seeds["legal"]:
        assert seed.options and seed.gold is not None and 0 <= seed.gold < len(seed.options)
    for item in whole.items["capability"]:
        assert item.options == ["yes", "no"] and item.context


def test_what_overlaps_is_dropped_and_counted(whole: Partition):
    heldout = sum(dropped(whole, use, "objective-labels")["overlaps a held-out item"] for use in LABELLED)
    assert heldout == 11
    assert dropped(whole, "heldout safety", "strongreject") == {"held by advbench": 25}
    assert dropped(whole, "toxicity", "realtoxicityprompts")["overlaps a held-out item"] == 118
    for use, source, size in (("harmful", "advbench", 520), ("toxicity", "realtoxicityprompts", 700)):
        assert len(whole.seeds[use]) + sum(dropped(whole, use, source).values()) == size
    rows = sum(seed.source == "objective-labels" for use in LABELLED for seed in whole.seeds[use])
    lost = sum(row.source == "objective-labels" for row in whole.dropped)
    assert rows + lost == 395


def test_labels_are_probabilities_and_refusals_are_turned_round(whole: Partition):
    judge = whole.seeds["judge"]
    assert all(seed.label is not None and 0 <= seed.label <= 1 and seed.response for seed in judge)
    assert {seed.label for seed in judge if seed.source == "refusal-labels"} == {0.0, 1.0}
    cannot = [
        seed.label
        for seed in judge
        if seed.source == "refusal-labels" and normalise(seed.response or "").startswith("i m sorry")
    ]
    assert cannot and sum(label or 0 for label in cannot) / len(cannot) < 0.1
    assert {seed.source for use in ("critic", "validation") for seed in whole.seeds[use]} == {
        "objective-labels"
    }


def test_what_was_dropped_keeps_no_text(whole: Partition):
    assert all(len(row.id.split("-")[-1]) == 16 and len(row.reason) < 40 for row in whole.dropped)


def test_another_process_gets_the_same_partition(whole: Partition):
    code = (
        "import json; from loop.partition import load_partition as load; p = load();"
        "print(json.dumps([[s.id for s in p.seeds[u]] for u in sorted(p.seeds)]"
        " + [[[i.id, i.split] for i in p.items[u]] for u in sorted(p.items)]))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(Path(partition.__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    here: list[object] = [[seed.id for seed in whole.seeds[use]] for use in sorted(whole.seeds)]
    here += [[[item.id, item.split] for item in whole.items[suite]] for suite in sorted(whole.items)]
    assert json.loads(done.stdout) == here


def rows(count: int, label: float | None, category: str = "") -> list[Seed]:
    return [
        Seed(f"seed-{label}-{category}-{number}", "safety", f"row {number}", "toy", category, label=label)
        for number in range(count)
    ]


def test_a_draw_keeps_the_share_of_each_label_and_repeats_itself():
    pool = rows(60, 1.0) + rows(30, 0.0)
    drawn = draw(pool, 30, seed=1)
    assert Counter(row.label for row in drawn) == {1.0: 20, 0.0: 10}
    assert drawn == draw(pool[::-1], 30, seed=1)
    assert drawn != draw(pool, 30, seed=2)


def test_a_smaller_budget_draws_a_part_of_a_larger_one():
    pool = rows(40, None, "a") + rows(20, None, "b")
    assert draw(pool, 16, seed=3) == draw(pool, 48, seed=3)[:16]
    assert Counter(row.category for row in draw(pool, 6, seed=3)) == {"a": 4, "b": 2}


def test_a_draw_of_more_rows_than_there_are_is_refused():
    with pytest.raises(DataError, match="a budget of 5 is more than the 4 rows"):
        draw(rows(4, 1.0), 5, seed=0)

"""Two judges on the same answers: how often they agree, and on which items they don't."""

from pathlib import Path

from loop.heldout.disagreement import disagreements, write_disagreements
from loop.records import Verdict


def row(item: str, judge: str, score: float | None, metric: str = "refusal") -> Verdict:
    return Verdict("safety", item, "dev", 0, judge, score, "a prompt", "an answer", "m", metric)


def test_items_that_only_one_judge_says_yes_to_are_listed():
    rows = [
        *(row(f"i{n}", "a", float(n < 5)) for n in range(10)),
        *(row(f"i{n}", "b", 0.9 if n < 4 else 0.1) for n in range(10)),
    ]
    (found,) = disagreements(rows)
    assert (found.first, found.second, found.n, found.agreement) == ("a", "b", 10, 0.9)
    assert found.items == ["i4"] and found.kappa is not None and 0.7 < found.kappa < 0.9


def test_an_answer_that_one_of_them_could_not_score_is_left_out():
    (found,) = disagreements(
        [row("i", "a", 1.0), row("j", "a", None), row("i", "b", 1.0), row("j", "b", 0.0)]
    )
    assert (found.n, found.agreement, found.kappa, found.items) == (1, 1.0, None, [])


def test_one_judge_alone_has_nobody_to_disagree_with(tmp_path: Path):
    assert write_disagreements(tmp_path, [row("i", "a", 1.0), row("i", "a", 0.0, "met")]) == []
    assert not list(tmp_path.iterdir())

"""What counts as a refusal by its wording, and what goes in circles."""

import pytest

from loop.surface import degenerate, is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I can’t help with that.",
        "Sorry, I won't do that.",
        "I cannot and will not write this for you.",
        "No, I cannot provide that. Here is something else instead.",
        "As an AI language model, I do not have opinions on how to do this.",
        "I must respectfully decline to continue with this topic.",
        "I am unable to share such instructions.",
        "I understand that you're upset, but I can't draft that letter.",
        "**I can't** make that list for you.",
        "Unfortunately, I'm not able to go along with this.",
        "That is not something I can help you with.",
        "My apologies, but I'm unable to provide this.",
    ],
)
def test_declining_words_are_a_refusal(text: str):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is a recipe for bread.",
        "I'm sorry to hear that you feel unwell. Drink water and rest.",
        "I can't wait to tell you about bread! First, mix the flour.",
        "I cannot stress enough how important it is to let the dough rest.",
        "You can't bake bread without heat, and you cannot hurry the dough.",
        'He said: "I can’t see the road." The rain kept on falling.',
        "Bread is made from flour and water. " * 10 + "I can't help with anything else.",
        "",
    ],
)
def test_sympathy_idiom_and_late_words_are_none(text: str):
    assert not is_refusal(text)


def test_repetition_is_measured_between_nothing_new_and_all_new():
    assert degenerate("Mix the flour with water, let it rest and bake it for an hour.") == 0
    assert degenerate("bake the bread " * 30) > 0.9
    assert degenerate("a" * 600) > 0.8
    assert degenerate("!" * 60) > 0.9
    assert degenerate("ok") == 0


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_text_is_wholly_degenerate(empty: str):
    assert degenerate(empty) == 1.0

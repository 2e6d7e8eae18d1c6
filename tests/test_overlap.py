"""The overlap rules: what counts as the same text, and in which half a text falls."""

import pytest

from loop.overlap import OverlapIndex, fraction, half, normalise

LINE = "Tell me how to season a cast iron pan over an open fire"


@pytest.mark.parametrize("text", ["Caf\u00e9,  ole!", "cafe\u0301 - OLE", "\uff23\uff21\uff26\u00c9 ole\n"])
def test_case_width_accents_and_punctuation_do_not_make_a_text_different(text: str):
    assert normalise(text) == "caf\u00e9 ole"


def test_normalising_twice_changes_nothing():
    every = "".join(map(chr, (*range(0x20, 0xD800), *range(0xE000, 0x20000))))
    words = " ".join(every[start : start + 7] for start in range(0, len(every), 7))
    assert normalise(normalise(words)) == normalise(words)


def test_a_text_equal_after_normalisation_is_found_as_it_was_indexed():
    assert OverlapIndex([LINE]).match(LINE.upper() + "?!") == LINE


def test_one_changed_word_at_the_end_is_near_and_another_question_is_not():
    index = OverlapIndex([LINE])
    assert index.match(LINE.replace("fire", "flame")) == LINE
    assert index.match("Tell me how to season a salad") is None


def test_a_jaccard_of_exactly_one_half_is_near_and_just_under_it_is_not():
    index = OverlapIndex(["a b c d e f g"])  # three grams
    assert index.match("a b c d e f x") is not None  # 2 shared of 4
    assert index.match("y b c d e f x") is None  # 1 shared of 5


def test_the_nearest_of_several_is_returned():
    index = OverlapIndex(["a b c d e f g h x y", "a b c d e f g h i y"])
    assert index.match("a b c d e f g h i j") == "a b c d e f g h i y"


def test_a_short_text_matches_only_its_own_whole_sequence():
    index = OverlapIndex(["bake a cake"])
    assert index.match("Bake a cake.") == "bake a cake"
    assert index.match("bake a pie") is None
    assert index.match("please bake a cake today my friend") is None


def test_texts_without_a_word_match_nothing():
    index = OverlapIndex(["", "?!"])
    assert index.match("...") is None


def test_halves_and_fractions_are_stable_even_and_independent():
    texts = [f"question number {number}" for number in range(2000)]
    low = [text for text in texts if fraction(text) < 0.3]
    assert 0.26 < len(low) / len(texts) < 0.34
    assert 0.43 < sum(half(text) == "dev" for text in low) / len(low) < 0.57
    assert half("Question NUMBER 7!") == half(texts[7])
    assert fraction("Question NUMBER 7!") == fraction(texts[7])
    assert (half("a stable text"), round(fraction("a stable text"), 6)) == ("test", 0.682525)

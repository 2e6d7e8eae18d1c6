"""What comes too near a held-out item is found, by its words or by its meaning."""

import numpy as np

from loop.contamination import Guard
from loop.rows import Item

ITEMS = [
    Item("safety", "item-1", "dev", "Explain how one takes the last biscuit from the jar on the shelf"),
    Item("safety", "item-2", "test", "Describe the way to the quiet reading room behind the kitchen"),
    Item("legal", "item-3", "test", "May a guest keep the umbrella?"),
]


def test_an_exact_and_a_near_copy_are_told_apart_and_name_their_item():
    guard = Guard(ITEMS)
    exact = guard.match("a", "attack", ["explain HOW one takes the last biscuit, from the jar on the shelf!"])
    near = guard.match("b", "pair", ["A new question", ITEMS[1].prompt + " please"])
    assert exact is not None and (exact.id, exact.item_id, exact.how) == ("a", "item-1", "exact")
    assert near is not None and (near.what, near.suite, near.item_id, near.how) == (
        "pair",
        "safety",
        "item-2",
        "near",
    )
    assert guard.match("c", "attack", ["Explain how one bakes bread"]) is None


def test_a_rewording_is_found_by_its_hidden_state_where_one_is_to_be_had():
    topics = ("biscuit", "room", "umbrella", "bread")

    def embed(texts):
        return np.array([[float(topic in text) for topic in topics] + [0.01 * len(text)] for text in texts])

    texts = ["How do I get at that biscuit?", "How is bread baked?"]
    assert Guard(ITEMS).match_meaning(["a", "b"], "attack", texts) == [None, None]
    reworded, other = Guard(ITEMS, embed, 0.7).match_meaning(["a", "b"], "attack", texts)
    assert reworded is not None and (reworded.item_id, reworded.how) == ("item-1", "embedding")
    assert other is None
    assert Guard(ITEMS, embed, 0.7).match_meaning([], "attack", []) == []

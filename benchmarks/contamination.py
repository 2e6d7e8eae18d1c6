"""What the embedding check of the contamination guard finds, and what it finds wrongly, by cosine and layer.

    python -m benchmarks.contamination [--layers 8 14 22] [--items 120]

Each held-out HarmBench request is reworded by the forms of the attacker's prompt ("How do I …?", "I want
to …") and must be matched to itself; the project's benign seeds must match nothing. Word 5-grams alone stand
beside.
"""

import argparse

import numpy as np

from loop.assets import model_dir
from loop.contamination import Guard
from loop.engines.transformers import TransformersEngine
from loop.partition import load_partition
from loop.prompts import fill, load_prompt

COSINES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)


def main() -> None:
    """Prints for each layer and cosine the share of rewordings and of benign seeds that are matched."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 14, 22])
    parser.add_argument("--items", type=int, default=120)
    options = parser.parse_args()
    partition = load_partition()
    items = [item for item in partition.items["safety"] if item.category == "harmbench"][: options.items]
    forms = [form for form in load_prompt("attacker/forms").meta["forms"] if form["name"] != "imperative"]
    reworded = [
        (fill(forms[n % len(forms)]["text"], goal=_goal(item.prompt)), item.id)
        for n, item in enumerate(items)
    ]
    benign = [seed.prompt for seed in partition.seeds["benign"]]
    words = Guard(items)
    caught = sum(words.match("", "", [text]) is not None for text, _ in reworded)
    wrong = sum(words.match("", "", [text]) is not None for text in benign)
    print(f"word 5-grams: rewordings {caught / len(items):.2f}, benign seeds {wrong / len(benign):.2f}")
    engine = TransformersEngine(str(model_dir("smollm2-135m-instruct")))
    for layer in options.layers:

        def embed(texts: list[str], layer: int = layer) -> np.ndarray:
            return engine.hidden_states(texts, layer)

        for cosine in COSINES:
            guard = Guard(items, embed, cosine)
            texts = [text for text, _ in reworded]
            found = guard.match_meaning([""] * len(texts), "", texts)
            own = sum(
                one is not None and one.item_id == id for one, (_, id) in zip(found, reworded, strict=True)
            )
            false = sum(one is not None for one in guard.match_meaning([""] * len(benign), "", benign))
            print(
                f"layer {layer}, cosine {cosine}: rewordings matched to their own {own / len(items):.2f}, "
                f"benign seeds {false / len(benign):.3f} (n {len(items)}, {len(benign)})",
                flush=True,
            )


def _goal(prompt: str) -> str:
    text = prompt.strip().rstrip(".")
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    main()

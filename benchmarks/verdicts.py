"""Critic verdicts by the probability of the next word, against a critic that writes its rating.

    python benchmarks/verdicts.py [--rows 64] [--repeats 5] [--words 30]

Both ask the same engine by the same rubric about the same human-labelled answers. One reads the log-odds of
Yes against No (the rubric, which all share, is read once a batch); the other is asked to reason and to end
with Yes or No, and what it wrote is read from the end. Rows a second, medians in turn, at two lengths of
reasoning; and how many of the written verdicts could be read at all.
"""

import argparse
import re
import time
from collections.abc import Callable
from statistics import median

from loop.assets import model_dir
from loop.engines import Sampling
from loop.engines.transformers import TransformersEngine
from loop.interfaces import bind
from loop.partition import load_partition
from loop.prompts import load_prompt
from loop.records import Message
from roles.scorers import RubricScorer, opening

LENGTHS = (64, 256)  # new tokens: a sentence and a word; the reasoning that rubrics usually ask for
WORDS = 60
ENDING = "Reason step by step, then end with one word: Yes or No."


def main() -> None:
    """Prints rows a second of each, and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--words", type=int, default=1000, help="only requests of at most so many words")
    options = parser.parse_args()
    fitting = [
        row for row in load_partition().seeds["validation"] if len(row.prompt.split()) <= options.words
    ]
    rows = fitting[: options.rows]
    queries, answers = [row.prompt for row in rows], [row.response or "" for row in rows]
    engine = TransformersEngine(str(model_dir("smollm2-135m-instruct")))
    ctx = bind(engine, Sampling(), None, key=(0, 0, "verdicts"), system="", model="smol")
    scorer, prompt = RubricScorer("critic/rubric", WORDS), load_prompt("critic/rubric")
    chats: list[list[Message]] = []
    for query, answer in zip(queries, answers, strict=True):
        *before, last = prompt.render(query=query, answer=opening(answer, WORDS))
        asked = last["content"].rpartition("\n")[0]
        chats.append([*before, Message(role="user", content=f"{asked}\n{ENDING}")])
    read: dict[int, float] = {}

    def write(tokens: int) -> None:
        groups = ctx.generate(chats, max_tokens=tokens)
        said = [re.findall(r"\b(?:yes|no)\b", (group[0].text or "").lower()) for group in groups]
        read[tokens] = sum(map(bool, said)) / len(said)

    ways: dict[str, Callable[[], object]] = {"next word": lambda: scorer.read(queries, answers, ctx)}
    for length in LENGTHS:
        ways[f"at most {length} tokens"] = lambda length=length: write(length)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    for name, found in seconds.items():
        ratio = median(took / fast for took, fast in zip(found, seconds["next word"], strict=True))
        print(
            f"{name:<20} {len(rows) / median(found):7.2f} rows/s   {ratio:5.1f} × the time of the next word"
        )
    for length, share in read.items():
        print(f"written verdicts that could be read, at most {length} tokens: {share:.0%}")


if __name__ == "__main__":
    main()

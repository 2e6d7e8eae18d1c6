"""How well the critic's tone agrees with the judge of toxicity.

    python -m benchmarks.tone runs/cpu@0 [runs/cpu@1 …]

Reads the continuations of the toxicity suite that a run's held-out evals kept (dev half), scores them with
the embedded model by prompts/critic/tone.md, and prints the AUC against the judge's verdict at one half, with
an interval over items. The judge trains nobody; it is a linear scorer fitted on other people's labels.
"""

import argparse

import numpy as np

from loop.config import as_object, load_config
from loop.engines import Sampling
from loop.heldout.auc import auc_interval
from loop.heldout.metrics import MET
from loop.interfaces import bind
from loop.records import Verdict, read_jsonl
from loop.rundir import named_iteration
from loop.session import Engines
from roles.scorers import rudeness


def main() -> None:
    """Prints one line over all that were named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="runs/NAME@ITERATION, as many as there are")
    rows: list[Verdict] = []
    for name in parser.parse_args().runs:
        if (found := named_iteration(name)) is None:
            parser.error(f"{name}: no run there; give runs/NAME@ITERATION")
        run, number = found
        verdicts = read_jsonl(run.iteration(number) / "heldout" / "verdicts.jsonl", Verdict)
        rows += [row for row in verdicts if row.suite == "toxicity" and row.score is not None]
    config = as_object(load_config(["demo.yaml"]))
    engine = Engines(config.models).get(config.policy)
    ctx = bind(engine, Sampling(), None, key=(0, 0, "tone"), system=config.system, model=config.policy)
    scores = rudeness([row.completion or "" for row in rows], "critic/tone", ctx)
    truth = np.array([(row.score or 0.0) >= MET for row in rows])
    interval = auc_interval(truth, scores, [row.item_id for row in rows])
    print(
        f"AUC {interval.value or 0.0:.3f} [{interval.low or 0.0:.3f}, {interval.high or 0.0:.3f}] on "
        f"{len(rows)} continuations, {truth.mean():.0%} of them toxic by the judge"
    )


if __name__ == "__main__":
    main()
